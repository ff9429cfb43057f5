"""Schedules as pure functions of the optimizer step."""

import math
from dataclasses import dataclass
from typing import Literal

Decay = Literal["cosine", "linear", "constant"]


def warmup_decay(step: int, total: int, warmup: int, decay: Decay, floor: float) -> float:
    """Factor on the peak learning rate at one optimizer step.

    Rises linearly over `warmup` steps (the first step already takes 1/warmup of the peak), then falls from 1 to
    `floor`, which step `total - 1` reaches.

    Args:
        step: Optimizer step about to be taken, from 0.
        total: Number of optimizer steps of the run.
        warmup: Number of warm-up steps.
        decay: Shape of the fall after warm-up.
        floor: Factor at the end, in [0, 1].

    Returns:
        The factor, in (0, 1] during warm-up and in [floor, 1] after it.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[decay]
    return floor + (1 - floor) * shape


def cubic(step: float, begin: float, end: float, start: float, final: float) -> float:
    """The cubic schedule of gradual pruning (Zhu & Gupta 2017, arXiv:1710.01878, eq. 1).

    `final + (start - final) * (1 - p)^3`, p from 0 at `begin` to 1 at `end`: steep at first, flat at the end; constant
    before and after. (The often copied form with the signs swapped falls.)

    Args:
        step: Optimizer steps taken so far.
        begin: Step at which it begins to change.
        end: Step from which on it is `final`; at least `begin`.
        start: Value before `begin`.
        final: Value from `end` on.

    Returns:
        The value, between `start` and `final`.
    """
    if step >= end:
        return final
    if step <= begin:
        return start
    return final + (start - final) * (1 - (step - begin) / (end - begin)) ** 3


@dataclass(frozen=True)
class Progress:
    """The optimizer steps taken so far, and those of the whole run."""

    step: int
    total: int
