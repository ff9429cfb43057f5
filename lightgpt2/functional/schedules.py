"""Learning-rate factors as pure functions of the optimizer step."""

import math
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
