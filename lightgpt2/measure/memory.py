"""Bytes of a model's weights as they are stored, and of the process that holds them.

The one reader of a process's memory; it imports no torch, so that a process which measures something else does not hold it.
"""

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_STATUS = Path("/proc/self/status")


def stored_tensors(model: "PreTrainedModel") -> Iterator[tuple[str, "Tensor"]]:
    """Parameters, buffers, and what quantized layers keep elsewhere; tied ones come more than once."""
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        yield name, tensor.detach()
        # Scales and code tables, nested ones too where the scales are quantized themselves.
        state: Any = getattr(tensor, "quant_state", None)
        states = [state, getattr(state, "state2", None)]
        parts = [getattr(each, part, None) for each in states for part in ("absmax", "code", "offset")]
        yield from ((f"{name} (quantization)", p) for p in (*parts, getattr(tensor, "SCB", None)) if p is not None)
    for name, module in model.named_modules():  # PyTorch's own packs its weights
        if callable(packed := getattr(module, "weight", None)):
            yield f"{name}.weight", packed().int_repr()


def megabytes(tensors: Iterable["Tensor"]) -> float:
    """Bytes of tensors in units of 10^6, those that share memory counted once."""
    seen = {(t.device, t.data_ptr()): t.numel() * t.element_size() for t in tensors}
    return sum(seen.values()) / 1e6


def weights_mb(model: "PreTrainedModel") -> float:
    """All that the model stores, quantization state included."""
    return megabytes(tensor for _, tensor in stored_tensors(model))


def embedding_mb(model: "PreTrainedModel") -> float:
    """The token embedding's share, and the vocabulary head's where it is not tied to it."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return megabytes(layer.weight.detach() for layer in layers if layer is not None)


def reset_peak() -> None:
    """Begin the peak of this process anew from what it holds now (on processors where the system can: Linux)."""
    if "torch" in sys.modules and _cuda().is_initialized():
        _cuda().reset_peak_memory_stats()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # the C library keeps freed memory for itself otherwise
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def now_mb(cuda: bool = False) -> float:
    """The memory of this process now: allocated on the current CUDA device, or resident on a processor."""
    return _cuda().memory_allocated() / 1e6 if cuda else _resident("VmRSS")


def peak_mb(cuda: bool = False) -> float:
    """The highest memory of this process since the peak was reset: allocated on CUDA, resident on a processor.

    Linux keeps a process's highest resident size in two places. `getrusage` is the wrong one: a child inherits there what its
    parent held when it started it.
    """
    return _cuda().max_memory_allocated() / 1e6 if cuda else _resident("VmHWM")


def reserved_mb() -> float:
    """The most that CUDA's allocator has reserved since the peak was reset."""
    return _cuda().max_memory_reserved() / 1e6


def _cuda() -> Any:
    import torch

    return torch.cuda


def _resident(field: str) -> float:
    """A line of Linux's account of this process; elsewhere the peak is all there is."""
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
