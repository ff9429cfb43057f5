"""AdamW and its learning-rate schedule, as a configuration says them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, OpenUnitInterval, PositiveFloat
from torch import nn

from lightgpt2.errors import Problem
from lightgpt2.functional.schedules import Decay, warmup_decay


@dataclass
class OptimizerConfig:
    """AdamW and its learning-rate schedule.

    Attributes:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of matrices; vectors (biases, norms) have none.
        beta1: Decay of the gradient's running mean.
        beta2: Decay of its running square.
        warmup_steps: Optimizer steps over which the learning rate rises from zero.
        decay: How it falls from there to the end of the run.
        final_lr: The learning rate at the end, as a share of the peak.
    """

    lr: PositiveFloat = 5e-4
    weight_decay: NonNegativeFloat = 0.01
    beta1: OpenUnitInterval = 0.9
    beta2: OpenUnitInterval = 0.95
    warmup_steps: NonNegativeInt = 0
    decay: Decay = "cosine"
    final_lr: ClosedUnitInterval = 0.0

    def problems(self, total: int) -> list[Problem]:
        """What does not fit into a run of `total` optimizer steps; keys below the section."""
        if self.warmup_steps <= total or total == 0:
            return []
        what = f"{self.warmup_steps} is more than the {total} optimizer steps of the run"
        return [Problem("warmup_steps", what, f"give at most {total}")]

    def groups(self, parameters: Iterable[nn.Parameter], fused: bool) -> list[dict[str, Any]]:
        """The two parameter groups, matrices and vectors; settings are plain values, as a checkpoint holds nothing else."""
        trained = list(parameters)
        common = {"lr": float(self.lr), "betas": (float(self.beta1), float(self.beta2)), "fused": fused}
        return [
            {**common, "weight_decay": float(self.weight_decay), "params": [p for p in trained if p.ndim >= 2]},
            {**common, "weight_decay": 0.0, "params": [p for p in trained if p.ndim < 2]},
        ]

    def factor(self, total: int) -> Callable[[int], float]:
        """The factor on the peak learning rate by optimizer step, of `total` steps."""
        return lambda step: warmup_decay(step, total, self.warmup_steps, self.decay, self.final_lr)
