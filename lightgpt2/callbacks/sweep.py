"""Quality against sparsity: the trained weights pruned to many levels, with random pruning as the control."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tqdm import tqdm

from lightgpt2.callbacks.pruning import Share
from lightgpt2.errors import UserError
from lightgpt2.functional.pruning import keep_masks, magnitudes, random_scores
from lightgpt2.methods.method import Method
from lightgpt2.models import ledger
from lightgpt2.models.files import atomic_file, write_json
from lightgpt2.models.loading import load_model
from lightgpt2.models.pruning import prunable
from lightgpt2.models.saving import whole_weights
from lightgpt2.report.table import sweep_table
from lightgpt2.runs.run import Run
from lightgpt2.tasks.scoring import Score, score

_KEY = "trainer.callbacks.SparsitySweep"
LEVELS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


class SparsitySweep(Callback):
    """At fit end prunes copies of the model to each level, by magnitude and at random, and scores each from disk.

    On the whole validation split. The artefact itself stays as it is. `lightgpt2 sweep` runs this.

    Args:
        targets: As for `GlobalL1Pruning`.
        levels: Shares of the chosen weights that go, each in [0, 1); 0 is always among them.
        budget: How much the perplexity may rise above that of level 0.
        seed: Seed of the random control.
    """

    order = 3  # after all that writes the ledger

    def __init__(
        self,
        targets: str = "linear",
        levels: list[Share] | None = None,
        budget: NonNegativeFloat = 1.0,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.targets = targets
        self.levels = sorted({0.0, *map(float, LEVELS if levels is None else levels)})
        self.budget, self.seed = float(budget), int(seed)
        self.run: Run

    def attach(self, run: Run) -> None:
        """Says whose model it is."""
        self.run = run

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks for what cannot be pruned, before anything is trained."""
        assert isinstance(pl_module, Method)
        if pl_module.device_mesh is not None:
            raise UserError(f"{_KEY}: not supported with FSDP2; use trainer.strategy auto, or ddp")
        prunable(pl_module.model, self.targets, f"{_KEY}.targets")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prunes and scores; writes `sweep.json`, its plot, the ledger, TensorBoard and a table."""
        assert isinstance(pl_module, Method)
        if not trainer.is_global_zero:
            return
        chosen = prunable(pl_module.model, self.targets, f"{_KEY}.targets")
        trained = {name: p.detach().clone() for name, p in chosen.items()}
        gone = pl_module.masks.counts(chosen)[1] / sum(p.numel() for p in chosen.values())
        if gone:  # the model as it is comes first, and none has less
            self.levels = [gone, *(level for level in self.levels if level > gone)]
        scores = {"l1": magnitudes(trained), "random": random_scores(trained, self.seed)}
        arms: dict[str, list[Score]] = {name: [] for name in scores}
        try:
            with tqdm(total=2 * len(self.levels), desc="Sweep", leave=False) as bar:
                for criterion, level in ((c, level) for level in self.levels for c in scores):
                    masks = keep_masks(scores[criterion], level, dict(pl_module.masks.items()))
                    _set(chosen, {name: trained[name] * masks[name].to(trained[name].device) for name in chosen})
                    arms[criterion].append(self._score(trainer, pl_module))
                    bar.update()
        finally:
            _set(chosen, trained)
        figures = {name: [_figures(scored, points[0]) for scored in points] for name, points in arms.items()}
        self._write(trainer, {"key": "sparsity", "targets": self.targets, "values": self.levels, "arms": figures})

    def _score(self, trainer: Trainer, method: Method) -> Score:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        with tempfile.TemporaryDirectory(dir=self.run.folder, prefix=".scoring-") as temporary:
            folder = Path(temporary) / "model"
            method.save(folder, data.tokenizer, whole_weights(method.model))
            model = load_model(str(folder), "model", method.trust_remote_code)
        model.to(device=trainer.strategy.root_device)
        loader, documents = data.scoring_loader("valid"), data.document_sizes("valid")
        return score(model, method.task, loader, documents, "Scoring")

    def _write(self, trainer: Trainer, found: dict[str, Any]) -> None:
        figures = [row["perplexity"] for row in found["arms"]["l1"]]
        found |= {"budget": self.budget, "largest_inside_budget": largest_inside(self.levels, figures, self.budget)}
        from lightgpt2.report.plots import sweep_plot  # slow to import, and needed here only

        write_json(self.run.folder / "sweep.json", found)
        if plot := sweep_plot(found, "sparsity", self.run.name):
            with atomic_file(self.run.folder / "sweep.svg") as temporary:
                temporary.write_text(plot.file(), encoding="utf-8")
        entries = ledger.read(str(self.run.model))
        entries[-1].setdefault("sweeps", {})["sparsity"] = found
        write_json(self.run.model / ledger.FILE, entries)
        print(f"{sweep_table(found)}\n\n{self.run.folder}/sweep.json, sweep.svg", flush=True)
        if isinstance(trainer.logger, TensorBoardLogger):
            for criterion, rows in found["arms"].items():
                for level, row in zip(self.levels, rows, strict=True):
                    trainer.logger.experiment.add_scalar(f"sweep/{criterion}", row["perplexity"], round(100 * level))


def _figures(scored: Score, first: Score) -> dict[str, Any]:
    """A level's figures, with how many times the first level's its perplexity is."""
    quality, ratio = scored.as_dict(), scored.against(first)
    return {key: quality[key] for key in ledger.QUALITY} | {"ratio": ratio.perplexity, "ratio_95": ratio.interval()}


def largest_inside(values: list[float], perplexities: list[float], budget: float) -> float | None:
    """The largest value up to which every perplexity is at most `budget` above that of the first.

    Args:
        values: What was swept, ascending.
        perplexities: One for each.
        budget: The rise that is allowed.

    Returns:
        The value; None where the first perplexity is none (not finite).
    """
    inside = None
    for value, perplexity in zip(values, perplexities, strict=True):
        if not perplexity <= perplexities[0] + budget:
            break
        inside = value
    return inside


@torch.no_grad()
def _set(parameters: dict[str, Any], values: dict[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
