"""Movement pruning: which heads and neurons, blocks or weights stay is learned with the weights; the former are then removed.

Sanh et al. 2020 (arXiv:2005.07683) for the scores, Lagunas et al. 2021 (arXiv:2109.04838) for blocks, heads and neurons. The
algorithm itself is in `functional.movement`; which weights belong to a unit, in `models.units`.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.adaptations.base import Adaptation, Context, Result
from lightgpt2.adaptations.pruning_settings import Pruning
from lightgpt2.errors import Problem, UserError
from lightgpt2.functional.movement import Units
from lightgpt2.functional.pruning import random_scores
from lightgpt2.functional.schedules import Progress, cubic
from lightgpt2.models import units
from lightgpt2.models.axes import block_units
from lightgpt2.models.families import family_of
from lightgpt2.models.operations import KINDS, Operation
from lightgpt2.models.pruning import saved_zeros
from lightgpt2.models.surgery import removal
from lightgpt2.models.trimming import remove

_PIXELS = 256  # of a picture of a matrix, on its longer side at most
_CELL = 8  # pixels of a unit's side in a picture, where there is room


class MovementGates(Adaptation):
    """Gates on units of the weights, which scores close along a cubic schedule.

    From `warmup` on the share that goes rises step by step until `cooldown`. Validation and checkpoints are always of the model
    as it is pruned then. Heads and neurons are removed from the artefact; single weights and blocks are zero in it.

    Args:
        pruning: What goes, and when.
    """

    order = 20
    shards = False

    def __init__(self, pruning: Pruning = Pruning()) -> None:
        super().__init__()
        self.pruning, self.removes = pruning, pruning.granularity == "structured"

    def problems(self, config: PretrainedConfig | None, others: Sequence[Adaptation]) -> list[Problem]:
        found = self.pruning.problems()
        if config is not None and family_of(config).recurrent:
            what = f"models of type {config.model_type} have no attention and no neurons, among which it chooses"
            found.append(Problem("", what, "prune single weights with lightgpt2.callbacks.GlobalL1Pruning"))
        elif config is not None:
            heads, neurons = ([*counts.values()] for counts in block_units(config))
            found += self.pruning.model_problems(heads, neurons, config.hidden_size)
        return [problem.under(f"{self.key}.pruning") for problem in found]

    def step_problems(self, total_steps: int) -> list[Problem]:
        begin, end = self._bounds(total_steps)
        asked = f"warmup {self.pruning.warmup}, cooldown {self.pruning.cooldown}"
        what = f"{total_steps} steps leave none for the schedule of pruning ({asked})"
        return [] if begin < end else [Problem("trainer.max_steps", what, "give more steps")]

    def check(self, model: PreTrainedModel) -> None:
        """Raises a `UserError` if no unit is to go, or fewer than earlier stages have pruned, which count."""
        for name, kind in self._kinds.items() if self._context.training else ():
            share, total = self.pruning.shares[name], sum(kind.keep(each).numel() for each in kind.names)
            gone = sum(int((~mask).sum()) for mask in self._left(name).values())
            if share and not round(share * total):
                fix = f"give at least {1 / total:.1g}, or 0"
                raise UserError([Problem(f"{self.key}.pruning.{name}", f"{share} of {total:,} is none", fix)])
            if share and gone > round(share * total):
                what = f"{share} is less than the {gone / total:.4f} that an earlier stage pruned"
                raise UserError([Problem(f"{self.key}.pruning.{name}", what, "give more, or 0")])

    def apply_to(self, model: PreTrainedModel, context: Context) -> list[Operation]:
        pruning, self._context = self.pruning, context
        self._map = units.unit_map(model, pruning.granularity, pruning.block)
        self.units = units.make_units(model, self._map, trained=pruning.criterion == "movement")
        if pruning.criterion == "random":
            for i, (_, kind) in enumerate(self._kinds.items()):
                kind.set_scores(random_scores({name: kind.keep(name) for name in kind.names}, pruning.seed + i))
        units.gate_weights(model, self._map, self.units)
        return []

    def parameter_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Gives the scores their learning rate and no weight decay."""
        scores = [p for p in self.units.parameters() if p.requires_grad]
        own = {id(p) for p in scores}
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in own]
        return [*groups, {**groups[-1], "lr": float(self.pruning.lr), "params": scores}] if scores else groups

    def penalty(self, progress: Progress) -> Tensor | None:
        """The L1 term on the scores, whose weight follows the schedule; None without a threshold."""
        if self.pruning.threshold is None or self.pruning.criterion != "movement":
            return None
        weight = self._scheduled(progress, self.pruning.threshold.penalty)
        return weight * torch.stack([kind.openness() for _, kind in self._kinds.items()]).mean()

    def after_step(self, model: PreTrainedModel, progress: Progress) -> Mapping[str, float]:
        if self.pruning.criterion == "magnitude":
            for name, scores in units.magnitudes(model, self._map).items():
                self._kinds[name].set_scores(scores)
        figures: dict[str, float] = {}
        for name, kind in self._kinds.items():
            if self.pruning.threshold:
                found = kind.decide_above(self._scheduled(progress, self.pruning.threshold.at), self.pruning.regrow)
            else:
                share = self._scheduled(progress, self.pruning.shares[name])
                found = kind.decide(share, self.pruning.scope, self.pruning.regrow, self._left(name))
            figures |= {f"pruning/{name}/{key}": value for key, value in (found | kind.sparsity()).items()}
        return figures

    def histograms(self) -> dict[str, Tensor]:
        """The scores of each kind of unit."""
        scores = {
            name: [score.detach().flatten() for score in kind.scores.values()] for name, kind in self._kinds.items()
        }
        return {f"pruning/{name}/scores": torch.cat(each).cpu() for name, each in scores.items()}

    def pictures(self) -> dict[str, Tensor]:
        """What stays of each kind of unit: layers by units, or matrices."""
        kept = {name: {layer: kind.keep(layer) for layer in kind.names} for name, kind in self._kinds.items()}
        return {f"pruning/{name}/{key}": picture for name in kept for key, picture in _pictures(kept[name]).items()}

    def finish(self, result: Result) -> None:
        """Removes heads and neurons whose gates are closed; sets such blocks and weights to zero."""
        if self.removes:
            counts = zip(units.KINDS, block_units(result.model.config), strict=True)
            heads, neurons = (self._kept(kind, names) for kind, names in counts)
            result.operations.append({**removal(result.model.config, heads, neurons), **self.pruning.record()})
            result.replace_model(remove(result.model, heads, neurons))
            return
        parameters = dict(result.model.named_parameters())
        pruned = {
            name: entry.gated(parameters[name], self._kinds[entry.kind].gate(entry.name)).detach().cpu()
            for name, entry in self._map.items()
        }
        result.weights = result.weights | pruned
        count = sum(value.numel() for value in pruned.values())
        record = KINDS["movement"].record(targets="linear", adapters=False, tensors=len(pruned), weights=count)
        result.operations.append(record)
        settings = self.pruning.record()

        def count_zeros(folder: Path) -> None:
            record.update(achieved=saved_zeros(folder / "model.safetensors", pruned) / count, **settings)

        result.checks.append(count_zeros)

    def _bounds(self, total: int) -> tuple[int, int]:
        return round(self.pruning.warmup * total), round((1 - self.pruning.cooldown) * total)

    def _scheduled(self, progress: Progress, final: float) -> float:
        return cubic(progress.step, *self._bounds(progress.total), 0.0, final)

    @property
    def _kinds(self) -> dict[units.Kind, Units]:
        """The units by kind."""
        return cast(dict[units.Kind, Units], dict(self.units.items()))

    def _left(self, kind: str) -> dict[str, Tensor]:
        """Masks of a kind's units in matrices that hold zeros of earlier stages: false where all of a unit is zero."""
        held = dict(self._context.masks.items())
        entries = ((name, entry) for name, entry in self._map.items() if entry.kind == kind and name in held)
        return {entry.name: entry.total(held[name].float()) > 0 for name, entry in entries}

    def _kept(self, kind: units.Kind, names: Iterable[str]) -> dict[str, Tensor]:
        """The masks of the units that stay by the names of their layers; empty for a layer that had none."""
        known = self._kinds.get(kind)
        none = torch.zeros(0, dtype=torch.bool)
        return {name: known.keep(name).cpu() if known and name in known.names else none for name in names}


def _pictures(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pictures `[height, width]` in [0, 1], white where a unit stays: one of all layers `[units]`, or one of each matrix.

    It is grey where a layer has fewer units than another.
    """
    numbers = {name: mask.float().cpu() for name, mask in masks.items()}
    if any(mask.ndim == 2 for mask in numbers.values()):
        return {name: _shrunk(mask) for name, mask in numbers.items()}
    widest = max(mask.numel() for mask in numbers.values())
    rows = torch.stack([pad(mask, (0, widest - mask.numel()), value=0.5) for mask in numbers.values()])
    wide = _CELL if widest * _CELL <= 4 * _PIXELS else 1
    return {"layers": rows.repeat_interleave(_CELL, dim=0).repeat_interleave(wide, dim=1)}


def _shrunk(picture: Tensor) -> Tensor:
    height, width = (min(size, _PIXELS) for size in picture.shape)
    return adaptive_avg_pool2d(picture[None], (height, width))[0]
