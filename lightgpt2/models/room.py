"""How much memory and disk a model needs, estimated from its configuration before anything is built."""

import copy
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PretrainedConfig

from lightgpt2.models.families import family_of
from lightgpt2.models.loading import new_model
from lightgpt2.models.surgery import keep_layers

WEIGHT = 4  # bytes of a parameter in FP32
TRAINED = 4 * WEIGHT  # with its gradient and the two running means of AdamW
_MEMORY, _CONTAINER = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")


def parameters(config: PretrainedConfig, key: str = "model") -> int:
    """The number of a model's parameters.

    Models with one layer in each stack, and with two in one of them, tell what a layer has; on the meta device, where nothing
    is allocated.

    Raises:
        UserError: The configuration contradicts itself.
    """
    depths = family_of(config).depths(config)
    flat = dict.fromkeys(depths, 1)
    least = _counted(config, flat, key)
    more = {stack: _counted(config, flat | {stack: 2}, key) - least for stack, deep in depths.items() if deep > 1}
    return least + sum((depths[stack] - 1) * count for stack, count in more.items())


def _counted(config: PretrainedConfig, depths: Mapping[str, int], key: str) -> int:
    """The parameters of the model with only the first layers of each stack."""
    shallow = copy.deepcopy(config)
    keep_layers(shallow, {stack: [*range(deep)] for stack, deep in depths.items()})
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return sum(parameter.numel() for parameter in new_model(shallow, key).parameters())


def free_memory() -> int:
    """Bytes that this process may still take: of the system, swap included, within its container; and of all GPUs."""
    if _MEMORY.exists():
        lines = (line.split() for line in _MEMORY.read_text(encoding="ascii").splitlines())
        free = sum(int(words[1]) * 1024 for words in lines if words[0] in ("MemAvailable:", "SwapFree:"))
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if _CONTAINER.exists() and (limit := _CONTAINER.read_text(encoding="ascii").strip()).isdecimal():
        free = min(free, int(limit))
    return free + sum(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def lack(needed: int, free: int, of: str) -> str | None:
    """What to say where more is needed than is free; `of` is what."""
    return f"{_size(needed)} of {of} are needed, and {_size(free)} are free" if needed > free else None


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.3f} MB"
