"""The settings of movement pruning: what goes, and when."""

from dataclasses import dataclass
from math import isinf
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, restricted_number_type

from lightgpt2.errors import Problem
from lightgpt2.functional.movement import Scope
from lightgpt2.models.units import Granularity

if TYPE_CHECKING:
    Share = float
else:
    Share = restricted_number_type("Share", float, [(">=", 0), ("<", 1)])


@dataclass
class Threshold:
    """A threshold that scores must pass, in the place of shares (soft movement pruning).

    Attributes:
        at: The sigmoid of its score above which a unit stays, at the end of the schedule, in [0, 1).
        penalty: Weight of the L1 term that keeps scores low, at the end of the schedule: the mean of their sigmoid.
    """

    at: Share = 0.1
    penalty: NonNegativeFloat = 100.0


@dataclass
class Pruning:
    """The units that go, and when.

    Attributes:
        attention: Share of the heads that goes, or of the weights or blocks of the attention's matrices, in [0, 1).
        ffn: Share of the neurons, or of the weights or blocks of the feed-forward matrices, in [0, 1). In both, those that an
            earlier stage pruned count.
        granularity: `structured`, whole heads and neurons, which are removed from the artefact; `block`; or `weight`.
        block: Rows and columns of a block.
        scope: Whether the shares are of all layers together (`global`) or of each.
        threshold: In the place of shares: a threshold that scores must pass, whatever share that leaves.
        criterion: `movement`; or as controls `magnitude`, the norm of a unit's weights as they are now, and `random`, scores
            that are drawn once.
        regrow: Whether what has gone may come back when its score rises, as in the paper. At a moderate share it costs quality:
            units at the edge go in and out by turns.
        lr: Peak learning rate of the scores; it follows the schedule of the weights'.
        warmup: Share of the run's steps before the first unit goes.
        cooldown: Share of its steps that are left when the last one has gone.
        seed: Seed of `random`.
    """

    attention: Share = 0.0
    ffn: Share = 0.0
    granularity: Granularity = "structured"
    block: PositiveInt = 32
    scope: Scope = "global"
    threshold: Threshold | None = None
    criterion: Literal["movement", "magnitude", "random"] = "movement"
    regrow: bool = False
    lr: PositiveFloat = 1e-2
    warmup: Share = 0.1
    cooldown: Share = 0.15
    seed: NonNegativeInt = 0

    @property
    def shares(self) -> dict[str, float]:
        """The shares by kind of unit."""
        return {"attention": float(self.attention), "ffn": float(self.ffn)}

    def problems(self) -> list[Problem]:
        """The contradictions in the settings by themselves; keys below the section."""
        found = []
        if self.threshold and any(self.shares.values()):
            found.append(Problem("threshold", "it decides how much goes", "set attention and ffn to 0, or remove it"))
        if self.threshold and (criterion := self.criterion) != "movement":
            found.append(Problem("threshold", f"{criterion} learns no scores to pass it", "give criterion movement"))
        if not self.threshold and not any(self.shares.values()):
            fix = "give it, or ffn, a share above 0, or give threshold"
            found.append(Problem("attention", "nothing is to be pruned", fix))
        numbers = {"lr": self.lr, "threshold.penalty": self.threshold.penalty if self.threshold else 0.0}
        found += [Problem(name, f"must be finite, got {x}", "give a number") for name, x in numbers.items() if isinf(x)]
        if self.warmup + self.cooldown >= 1:
            what = f"{self.warmup} and cooldown: {self.cooldown} leave no step to prune at"
            found.append(Problem("warmup", what, "give a sum below 1"))
        return found

    def model_problems(self, heads: list[int], neurons: list[int], width: int) -> list[Problem]:
        """The problems with a model: given the heads of each layer that can go by themselves, its neurons, its width."""
        if self.granularity == "block" and self.block > (least := min(width, *filter(None, neurons))):
            return [Problem("block", f"{self.block} is more than the {least} rows of a matrix", "give at most that")]
        found = []
        units = {"attention": ("heads", heads), "ffn": ("neurons", neurons)}
        for kind, share in self.shares.items() if self.granularity == "structured" else ():
            name, counts = units[kind]
            groups = [sum(counts)] if self.scope == "global" else counts
            if share and not any(round(share * count) for count in groups):
                where = "the model" if self.scope == "global" else "a layer (scope: layer)"
                what = f"{share} of the {max(groups)} {name} of {where} is none"
                found.append(Problem(kind, what, f"give at least {1 / max(1, *groups):.3g}, or 0"))
        return found

    def record(self) -> dict[str, Any]:
        """The ledger's record of the settings."""
        asked = {"threshold": float(self.threshold.at)} if self.threshold else self.shares
        return {"criterion": self.criterion, "granularity": self.granularity, "scope": self.scope, "asked": asked}
