"""Quality against sparsity: the trained weights pruned to many levels, with random pruning as the control."""

from contextlib import suppress
from typing import Any

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt
from lightning import Trainer
from torch import Tensor, nn
from tqdm import tqdm

from lightgpt2.adaptations.pruning_settings import Share
from lightgpt2.callbacks.base import RunCallback
from lightgpt2.callbacks.board import Board
from lightgpt2.errors import UserError
from lightgpt2.functional.pruning import keep_masks, magnitudes, random_scores
from lightgpt2.methods.method import Method
from lightgpt2.models.files import scratch_folder
from lightgpt2.models.loading import load_model
from lightgpt2.models.pruning import prunable
from lightgpt2.models.quality import Metric, value_of
from lightgpt2.models.saving import whole_weights

_KEY = "trainer.callbacks.SparsitySweep"


class SparsitySweep(RunCallback):
    """At fit end prunes copies of the model to each level, by magnitude and at random, and scores each from disk.

    On the whole validation split. The artefact itself stays as it is. `lightgpt2 sweep` runs this.

    Args:
        targets: As for `GlobalL1Pruning`; by default the adapters if there are any, else `linear`.
        levels: Shares of the chosen weights to prune, each in [0, 1), by default 0 to 0.9; 0 is always among them.
        budget: How many per cent worse than at level 0 the primary metric may be.
        seed: Seed of the random control.
    """

    phase = 3

    def __init__(
        self,
        targets: str | None = None,
        levels: list[Share] | None = None,
        budget: NonNegativeFloat = 2.0,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.targets, self.budget, self.seed = targets, float(budget), int(seed)
        self.levels = sorted({0.0, *map(float, (n / 10 for n in range(10)) if levels is None else levels)})

    def on_fit_start(self, trainer: Trainer, pl_module: Method) -> None:
        """Looks for what cannot be pruned, before anything is trained."""
        if pl_module.device_mesh is not None:
            raise UserError(f"{_KEY}: not supported with FSDP2; use trainer.strategy auto, or ddp")
        self._chosen(pl_module)

    def _chosen(self, method: Method) -> tuple[str, dict[str, nn.Parameter]]:
        """What is pruned, by name too."""
        if self.targets is None:
            with suppress(UserError):  # there are no adapters
                return "lora", prunable(method.model, "lora", _KEY)
        targets = self.targets or "linear"
        return targets, prunable(method.model, targets, f"{_KEY}.targets")

    def on_fit_end(self, trainer: Trainer, pl_module: Method) -> None:
        if not trainer.is_global_zero:
            return
        from lightgpt2.runs.sweep import write_sweep  # slow to import, and needed here only

        task = pl_module.task
        targets, chosen = self._chosen(pl_module)
        gone = pl_module.held.masks.counts(chosen)[1] / sum(p.numel() for p in chosen.values())
        # A model that is pruned already comes first, and no level has less.
        levels = [gone, *(level for level in self.levels if level > gone)] if gone else self.levels
        arms: dict[str, list[dict[str, Any]]] = {}
        for arm, metrics in self._score_levels(trainer, pl_module, chosen, levels).items():
            for scored in metrics:
                change = scored[task.primary].against(metrics[0][task.primary])
                row = {**task.quality(scored), "ratio": change.ratio, "ratio_95": change.interval_95}
                arms.setdefault(arm, []).append(row)
        about = {"key": "sparsity", "targets": targets, "values": levels}
        write_sweep(self.run.folder, self.run.model, self.run.name, about, arms, self.budget)
        board = Board(trainer)
        for arm, level, row in ((a, *pair) for a in arms for pair in zip(levels, arms[a], strict=True)):
            board.scalars({f"sweep/{arm}": value_of(row)}, step=round(100 * level))

    def _score_levels(
        self, trainer: Trainer, method: Method, chosen: dict[str, nn.Parameter], levels: list[float]
    ) -> dict[str, list[dict[str, Metric]]]:
        """The metrics at each level, by arm; the model is afterwards what it was."""
        trained = {name: p.detach().clone() for name, p in chosen.items()}
        criteria = {"l1": magnitudes(trained), "random": random_scores(trained, self.seed)}
        arms: dict[str, list[dict[str, Metric]]] = {arm: [] for arm in criteria}
        try:
            with tqdm(total=2 * len(levels), desc="Sweep", leave=False, disable=None) as bar:
                for arm, level in ((arm, level) for level in levels for arm in criteria):
                    masks = keep_masks(criteria[arm], level, dict(method.held.masks.items()))
                    _set(chosen, {name: trained[name] * masks[name].to(trained[name].device) for name in chosen})
                    arms[arm].append(self._score(trainer, method))
                    bar.update()
        finally:
            _set(chosen, trained)
        return arms

    def _score(self, trainer: Trainer, method: Method) -> dict[str, Metric]:
        with scratch_folder(self.run.folder, "scoring") as scratch:
            folder = scratch / "model"
            method.save(folder, method.data.tokenizer, whole_weights(method.model))
            model = load_model(str(folder), "model", method.trust_remote_code)
        model.to(device=trainer.strategy.root_device)
        return method.task.evaluate(model, method.data, "valid", "Scoring")


@torch.no_grad()
def _set(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
