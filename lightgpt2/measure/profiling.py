"""Where the time goes, operator by operator, and whether it goes there on the device that was asked for."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule

from lightgpt2.models.files import atomic_file

ACTIVE = 3  # steps that are profiled
_TOP = 10  # operators in the table
_ATTENTION = "aten::_scaled_dot_product_"
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_int_mm", "aten::_scaled_mm")


@dataclass(frozen=True)
class Profile:
    """What a few profiled steps showed.

    Attributes:
        operators: See `top`.
        attention_kernel: The attention operators that ran, or `eager`.
        products: Microseconds of their kernels on CUDA, by name of the matrix product.
    """

    operators: list[dict[str, Any]]
    attention_kernel: str
    products: dict[str, float]


def profiled(step: Callable[[], None], cuda: bool, trace: Path) -> Profile:
    """Profile a few steps, after one that is thrown away and one that warms the profiler up; write the Chrome trace."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    found: list[Profile] = []

    def finish(profiler: profile) -> None:
        with atomic_file(trace) as temporary:
            profiler.export_chrome_trace(str(temporary))
        found.append(_read(profiler.key_averages(), cuda))

    plan = schedule(wait=1, warmup=1, active=ACTIVE, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=finish) as profiler:
        for _ in range(2 + ACTIVE):
            step()
            if cuda:
                torch.cuda.synchronize()
            profiler.step()
    return found[0]


def _read(averages: Iterable[Any], cuda: bool) -> Profile:
    """Operators have a namespace; the rest are marks, and CUDA's own functions and kernels."""
    rows = [row for row in averages if "::" in row.key and row.device_type == DeviceType.CPU]
    products = [row for row in rows if row.key in _PRODUCTS or row.key.startswith("bitsandbytes::")]
    # On CUDA an operator's own time is that of the kernels it launched.
    own = [(r.key, r.count, (r.self_device_time_total if cuda else r.self_cpu_time_total) / 1e3) for r in rows]
    launched = {row.key: float(row.device_time_total) for row in products}
    return Profile(top(own, "cuda" if cuda else "cpu"), attention_kernel(row.key for row in rows), launched)


def top(own: Iterable[tuple[str, int, float]], device: str) -> list[dict[str, Any]]:
    """The operators (name, calls, own milliseconds) with the most time, with their share of all operators' time."""
    longest = sorted(own, key=lambda row: -row[2])
    total = sum(spent for _, _, spent in longest) or 1.0
    return [
        {"name": name, "calls": calls, "self_ms": spent, "share": spent / total, "device": device}
        for name, calls, spent in longest[:_TOP]
    ]


def attention_kernel(names: Iterable[str]) -> str:
    """The attention that ran, from the names of the operators that did; `eager` where it was plain matrix products."""
    return ", ".join(sorted({name for name in names if name.startswith(_ATTENTION)})) or "eager"


def residency_problem(device: str, tensors: Mapping[str, str], products: Mapping[str, float]) -> str | None:
    """Why figures for CUDA would not be CUDA's: something lay or ran elsewhere. None if all is where it should be.

    Args:
        device: The device that was asked for: `cpu` or `cuda:N`.
        tensors: The type of its device, by name of the parameter or buffer.
        products: Microseconds of their kernels on CUDA, by name of the matrix product.
    """
    if not device.startswith("cuda"):
        return None
    if elsewhere := [f"{name} on {where}" for name, where in tensors.items() if where != "cuda"]:
        return f"{len(elsewhere)} of {len(tensors)} tensors are not on CUDA, first {elsewhere[0]}"
    if idle := [name for name, microseconds in products.items() if microseconds <= 0]:
        return f"no CUDA kernels were seen for {', '.join(sorted(idle))}"
    return None
