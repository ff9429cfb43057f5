"""How `model.safetensors` holds weights as integers with scales, and packed; `stored` in its header's metadata says which.

`integers` lists by name the
parameters that are stored as integers:

    {"bits": 8, "group": 768, "shape": [768, 2304], "transposed": true}

The tensor of that name is `[outputs, groups, group]` in int8; or in uint8 with two 4-bit integers a byte, in two's complement,
the first one in the low half. `NAME_scale` is `[outputs, groups, 1]` in FP32. Their product, row after row without the zeros
that fill up a row's last group, is the parameter, or its transpose. (None has the parameter's own shape: plain transformers
refuses the file, and takes no integers for weights.)

`packed` lists by name the tensors whose bytes are compressed:

    {"dtype": "int8", "shape": [2304, 1, 768], "kept": 353894, "parts": [165021, 301455]}

The tensor of that name is the concatenation of `parts`, in bytes, each compressed by zlib. If `kept` is a number, the first
part is one bit for each element (the first in the lowest bit) that says which ones are stored, as they are not zero. Then come
the first bytes of all stored elements, their second bytes, and so on.
"""

import contextlib
import copy
import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig
from transformers.utils import cached_file

Table = dict[str, dict[str, Any]]  # facts about tensors by their names
_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class StoredModel:
    """A model whose file may hold integers, or be packed, as `config.lightgpt2` says; goes before transformers' class."""

    @classmethod
    def _whole(cls) -> Any:
        """The class of such a model once nothing of it is stored in another way."""
        return cls

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **options: Any) -> Any:
        """As transformers' own; `read` reads the file if the configuration says so."""
        source = pretrained_model_name_or_path
        where = {key: options[key] for key in _WHERE if key in options}
        if not isinstance(config, PretrainedConfig):
            config = cls.config_class.from_pretrained(config or source, **where)  # type: ignore[attr-defined]
        config = copy.deepcopy(config)
        config.__dict__.pop("transformers_weights", None)  # which tells plain transformers that it needs this code
        own: Any = super()
        said = getattr(config, "lightgpt2", {})
        if not {"stored", "packed"} & {*said} or source is None:
            return own.from_pretrained(source, *args, config=config, **options)
        config.lightgpt2 = {key: value for key, value in said.items() if key != "packed"}
        if not config.lightgpt2:  # unpacked it is a plain one
            own = cls._whole()
            for name in ("lightgpt2", "auto_map"):
                config.__dict__.pop(name, None)
        weights = read(cached_file(source, "model.safetensors", **where))
        if options.get("generation_config") is None:
            with contextlib.suppress(OSError):
                options["generation_config"] = GenerationConfig.from_pretrained(source, **where)
        loaded = own.from_pretrained(None, *args, config=config, state_dict=weights, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = str(source)
        return loaded


def read(file: str | Path) -> dict[str, Tensor]:
    """The weights that a file stands for, by the names of the model's parameters: integers times scales, in FP32."""
    tensors, integers = read_stored(file)
    for name, about in integers.items():
        tensors[name] = dequantized(tensors[name], tensors.pop(f"{name}_scale"), **about)
    return tensors


def read_stored(file: str | Path) -> tuple[dict[str, Tensor], Table]:
    """A file's tensors, unpacked but not multiplied, and its table of integers."""
    with safe_open(file, framework="pt") as opened:
        said = json.loads((opened.metadata() or {}).get("stored", "{}"))
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dictionary
    for name, about in said.get("packed", {}).items():
        tensors[name] = unpacked(tensors[name], **about)
    return tensors, said.get("integers", {})


def write(file: str | Path, tensors: dict[str, Tensor], integers: Table, packed: bool = False) -> Table:
    """Write what `read_stored` reads, packed if asked; returns the table of packed tensors."""
    table: Table = {}
    if packed:
        pairs = {name: pack(tensor) for name, tensor in tensors.items()}
        tensors = {name: data for name, (data, _) in pairs.items()}
        table = {name: about for name, (_, about) in pairs.items()}
    save_file(tensors, file, {"format": "pt", "stored": json.dumps({"integers": integers, "packed": table})})
    _sort_header(Path(file))
    return table


def _sort_header(file: Path) -> None:
    """Put the entries of a file's metadata in order: safetensors writes them in any, and equal weights would differ."""
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        assert len(text) == size, "the header keeps its length"
        opened.seek(8)
        opened.write(text)


# -- integers ----------------------------------------------------------------------------------------------------------------


def halved(integers: Tensor) -> Tensor:
    """Two integers from -8 to 7 in each byte: `[..., g]` in int8 becomes `[..., ceil(g / 2)]` in uint8."""
    even = torch.nn.functional.pad(integers, (0, integers.shape[-1] % 2)).view(torch.uint8) & 15
    return even[..., ::2] | even[..., 1::2] << 4


def dequantized(stored: Tensor, scale: Tensor, bits: int, group: int, shape: list[int], transposed: bool) -> Tensor:
    """A parameter from its integers and scales; see the head of this file."""
    stored = whole(stored, bits, group)
    inputs = shape[0] if transposed else shape[1]
    rows = (stored.float() * scale).flatten(1)[:, :inputs]
    return (rows.T if transposed else rows).contiguous()


def whole(stored: Tensor, bits: int, group: int) -> Tensor:
    """Stored integers, one in each byte: `[outputs, groups, group]` in int8."""
    if bits == 4:
        stored = torch.stack([stored & 15, stored >> 4], dim=-1).flatten(-2)[..., :group].to(torch.int8)
        stored = (stored ^ 8) - 8  # the sign
    return stored


def round_inputs(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A linear layer's forward pre-hook that rounds its inputs to INT8, with a scale for each token."""
    values = args[0].float()
    scale = (values.detach().abs().amax(dim=-1) / 127).clamp_min(torch.finfo(torch.float32).tiny).flatten()
    zero, rows = torch.zeros_like(scale, dtype=torch.int32), values.reshape(-1, values.shape[-1])
    rounded = torch.fake_quantize_per_channel_affine(rows, scale, zero, 0, -127, 127)
    return rounded.view_as(values).to(args[0].dtype), *args[1:]


# -- packing -----------------------------------------------------------------------------------------------------------------


def pack(tensor: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """A tensor's bytes, compressed with or without a mask of zeros, whichever is less; and the facts about them."""
    planes = tensor.contiguous().flatten().view(torch.uint8).reshape(tensor.numel(), tensor.element_size())
    there = (planes != 0).any(dim=1)  # by bytes: a negative zero is stored
    dense = [_deflated(plane) for plane in planes.T]
    sparse = [_deflated(_bits(there)), *(_deflated(plane) for plane in planes[there].T)]
    kept, parts = (int(there.sum()), sparse) if sum(map(len, sparse)) < sum(map(len, dense)) else (None, dense)
    about = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "kept": kept}
    return _bytes(b"".join(parts)), {**about, "parts": [len(part) for part in parts]}


def unpacked(data: Tensor, dtype: str, shape: list[int], kept: int | None, parts: list[int]) -> Tensor:
    """The tensor that `pack` was given."""
    planes = [_bytes(zlib.decompress(part.numpy())) for part in data.split(parts)]
    if kept is None:
        elements = torch.stack(planes, dim=1)
    else:
        bits, *planes = planes
        mask = (bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8) & 1).flatten()[: math.prod(shape)].bool()
        elements = torch.zeros(len(mask), len(planes), dtype=torch.uint8)
        elements[mask] = torch.stack(planes, dim=1)
    return elements.view(getattr(torch, dtype)).reshape(shape)


def _bits(mask: Tensor) -> Tensor:
    """A boolean mask `[n]` as bytes `[ceil(n / 8)]`."""
    rows = torch.nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
    return (rows << torch.arange(8, dtype=torch.uint8)).sum(dim=1, dtype=torch.uint8)


def _deflated(data: Tensor) -> bytes:
    # Weights have no repetitions to look for, only values of unlike frequency: with them zlib would be slower and no shorter.
    coder = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data.numpy().tobytes()) + coder.flush()


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)
