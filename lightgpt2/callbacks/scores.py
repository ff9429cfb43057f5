"""What `validate` and `test` print, and what `predict` writes: figures of documents, from those of their windows."""

import json
from typing import Any, TypeVar

import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from lightgpt2.models.files import atomic_file
from lightgpt2.runs.run import Run
from lightgpt2.tasks.scoring import Score, Window, as_windows

Row = TypeVar("Row")


class ScorePrinter(Callback):
    """Prints perplexity with its 95 % interval, bits per byte and the number of tokens of a split."""

    def __init__(self) -> None:
        self._windows: list[Window] = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the scores of a batch's windows."""
        self._windows += as_windows(outputs)

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the validation split's scores."""
        self._print(trainer, "valid")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the test split's scores."""
        self._print(trainer, "test")

    def _print(self, trainer: Trainer, split: str) -> None:
        windows = _of_all_processes(self._windows)
        if not trainer.is_global_zero:
            return
        result = Score.of_windows(windows, trainer.datamodule.document_sizes(split))  # type: ignore[attr-defined]
        interval = result.interval()
        bounds = "{:.4f} - {:.4f}".format(*interval) if interval else "none of one document"
        print(
            f"{split}: perplexity {result.perplexity:.4f} (95 % interval {bounds}), "
            f"{result.bits_per_byte:.4f} bits per byte, {result.tokens.sum():,} tokens in {len(result.sizes):,} documents",
            flush=True,
        )


class PredictionWriter(Callback):
    """Writes one JSON line a document to `checkpoints/<run>/predictions.jsonl`.

    Its continuation; or its score: `nll` in nats, `tokens` and `perplexity`, added up over its windows.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._outputs: list[Any] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects what a batch brought."""
        self._outputs += as_windows(outputs) if isinstance(outputs, dict) else outputs

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the rows of all processes and writes them in the order of the documents."""
        outputs = _of_all_processes(self._outputs)
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if pl_module.task.predict == "scores":  # type: ignore[union-attr]
            documents = Score.of_windows(outputs, data.document_sizes(data.predict_split)).rows()
        else:  # a batch that keeps processes in step repeats a document
            documents = list({row["document"]: row for row in outputs}.values())
        with atomic_file(self.run.predictions) as temporary, temporary.open("w", encoding="utf-8") as file:
            for row in sorted(documents, key=lambda row: row["document"]):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{len(documents)} documents written to {self.run.predictions}", flush=True)


def _of_all_processes(rows: list[Row]) -> list[Row]:
    """The rows of all processes together; leaves the given list empty."""
    mine = rows.copy()
    rows.clear()
    if not dist.is_initialized():
        return mine
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return [row for part in gathered for row in part]
