"""Where the time goes, operator by operator, and whether it goes there on the device that was asked for."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule

from lightgpt2.models.files import atomic_file

TOP = 10  # operators in the table
ACTIVE = 3  # steps that are profiled
_ATTENTION = "aten::_scaled_dot_product_"
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_int_mm", "aten::_scaled_mm")


@dataclass(frozen=True)
class Profile:
    """What a few profiled steps showed.

    Attributes:
        operators: The operators with the most time of their own: `name`, `calls`, `self_ms`, `share` of all operators'
            time, and `device`.
        attention_kernel: The attention operators that ran, or `eager`.
        products: Matrix products, by name: microseconds of their kernels on CUDA.
    """

    operators: list[dict[str, Any]]
    attention_kernel: str
    products: dict[str, float]


def profiled(step: Callable[[], None], device: str, trace: Path) -> Profile:
    """Profiles a few steps, after one that is thrown away and one that warms the profiler up.

    Args:
        step: The work.
        device: `cpu` or `cuda:N`.
        trace: Where the Chrome trace goes (it opens in Perfetto).
    """
    cuda = device.startswith("cuda")
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
    """Operators are what has a namespace; the rest are marks, and CUDA's own functions and kernels."""
    rows = [row for row in averages if "::" in row.key and row.device_type == DeviceType.CPU]
    products = {
        row.key: float(row.device_time_total) for row in rows if row.key in _PRODUCTS or _is_bitsandbytes(row.key)
    }
    return Profile(_top(rows, cuda), attention_kernel(row.key for row in rows), products)


def _is_bitsandbytes(name: str) -> bool:
    return name.startswith("bitsandbytes::")


def _top(rows: list[Any], cuda: bool) -> list[dict[str, Any]]:
    """On CUDA an operator's own time is that of the kernels it launched."""
    times = {id(row): float(row.self_device_time_total if cuda else row.self_cpu_time_total) for row in rows}
    total = sum(times.values()) or 1.0
    longest = sorted(rows, key=lambda row: -times[id(row)])[:TOP]
    return [
        {
            "name": row.key,
            "calls": row.count,
            "self_ms": times[id(row)] / 1e3,
            "share": times[id(row)] / total,
            "device": "cuda" if cuda else "cpu",
        }
        for row in longest
    ]


def attention_kernel(names: Iterable[str]) -> str:
    """Which attention ran, from the names of the operators that did; `eager` where it was plain matrix products.

    Args:
        names: Names of operators.
    """
    return ", ".join(sorted({name for name in names if name.startswith(_ATTENTION)})) or "eager"


def residency_problem(device: str, tensors: Mapping[str, str], products: Mapping[str, float]) -> str | None:
    """Why figures for CUDA would not be CUDA's, if so: something lay or ran elsewhere.

    Args:
        device: The device that was asked for: `cpu` or `cuda:N`.
        tensors: For each parameter's and buffer's name the type of its device.
        products: For each matrix product that ran the microseconds of its kernels on CUDA.
    """
    if not device.startswith("cuda"):
        return None
    if elsewhere := [f"{name} on {where}" for name, where in tensors.items() if where != "cuda"]:
        return f"{len(elsewhere)} of {len(tensors)} tensors are not on CUDA, first {elsewhere[0]}"
    if idle := [name for name, microseconds in products.items() if microseconds <= 0]:
        return f"no CUDA kernels were seen for {', '.join(sorted(idle))}"
    return None
