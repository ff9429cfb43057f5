"""Bytes: of a model's weights as they are stored, and of the process that holds them."""

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

_STATUS = Path("/proc/self/status")


def stored_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers, and what bitsandbytes keeps beside its quantized weights; tied ones come more than once."""
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        yield name, tensor.detach()
        yield from _quantization_state(name, tensor)


def _quantization_state(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    """Scales and code tables, nested ones too where the scales are quantized themselves."""
    states = [getattr(tensor, "quant_state", None)]
    states.append(getattr(states[0], "state2", None))
    parts = [getattr(state, part, None) for state in states for part in ("absmax", "code", "offset")]
    for part in [*parts, getattr(tensor, "SCB", None)]:
        if isinstance(part, Tensor):
            yield f"{name} (quantization)", part


def megabytes(tensors: Iterable[Tensor]) -> float:
    """Bytes of tensors in units of 10^6, those that share memory counted once."""
    seen = {(t.device, t.data_ptr()): t.numel() * t.element_size() for t in tensors}
    return sum(seen.values()) / 1e6


def weights_mb(model: PreTrainedModel) -> float:
    """All that the model stores, quantization state included."""
    return megabytes(tensor for _, tensor in stored_tensors(model))


def embedding_mb(model: PreTrainedModel) -> float:
    """The token embedding's share, and the vocabulary head's where it is not tied to it."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return megabytes(layer.weight.detach() for layer in layers if layer is not None)


def reset_peak() -> None:
    """Begins the peak of this process anew from what it holds now (on processors where the system can: Linux)."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # the C library keeps freed memory for itself otherwise
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mb(cuda: bool) -> float:
    """The highest memory of this process since the peak was reset: allocated on CUDA, resident on a processor.

    Linux keeps a process's highest resident size in two places. `getrusage` is the wrong one: a child inherits there what its
    parent held when it started it.

    Args:
        cuda: Whether the memory of the current CUDA device is meant.
    """
    return torch.cuda.max_memory_allocated() / 1e6 if cuda else _resident("VmHWM")


class Meter:
    """Memory of this process since the meter was made: resident on a CPU, allocated on CUDA.

    Args:
        device: `cpu` or `cuda:N`.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        if self._cuda:
            torch.cuda.init()
        reset_peak()  # forgets the imports'
        self._start = self.now_mb()

    def now_mb(self) -> float:
        """What is held now."""
        return torch.cuda.memory_allocated() / 1e6 if self._cuda else _resident("VmRSS")

    def grown_mb(self) -> float:
        """How much more is held now than at the start."""
        return self.now_mb() - self._start

    def peaks(self) -> dict[str, float | None]:
        """The highest so far, absolute and above the start; on CUDA also what the allocator reserved."""
        peak = peak_mb(self._cuda)
        return {
            "peak_memory_mb": peak,
            "peak_above_start_mb": peak - self._start,
            "peak_reserved_mb": torch.cuda.max_memory_reserved() / 1e6 if self._cuda else None,
        }


def _resident(field: str) -> float:
    """A line of Linux's account of this process; elsewhere the peak is all there is."""
    if _STATUS.exists():
        lines = [line.split() for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
        return int(lines[0][1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
