"""Predictions as JSON lines, one document a line."""

import json
import math
from collections import defaultdict
from typing import Any

import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from lightgpt2.models.files import atomic_file
from lightgpt2.runs import Run


class PredictionWriter(Callback):
    """Writes what `predict` returned to `checkpoints/<run>/predictions.jsonl`.

    Scores of a document's windows are added up: `nll` in nats, `tokens`, and `perplexity`.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._rows: list[dict[str, Any]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects a batch's rows."""
        self._rows += outputs

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the rows of all processes and writes them in the order of the documents."""
        rows, self._rows = self._rows, []
        if dist.is_initialized():
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        if not trainer.is_global_zero:
            return
        documents = _documents(rows)
        with atomic_file(self.run.predictions) as temporary, temporary.open("w", encoding="utf-8") as file:
            for document in documents:
                file.write(json.dumps(document, ensure_ascii=False) + "\n")
        print(f"{len(documents)} documents written to {self.run.predictions}", flush=True)


def _documents(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a document, sorted; what a silent batch repeated is dropped."""
    if not rows or "nll" not in rows[0]:
        return [row for _, row in sorted({row["document"]: row for row in rows}.items())]
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0])
    for row in rows:
        sums[row["document"]][0] += row["nll"]
        sums[row["document"]][1] += row["tokens"]
    return [
        {"document": d, "nll": nll, "tokens": int(n), "perplexity": math.exp(min(nll / n, 700)) if n else None}
        for d, (nll, n) in sorted(sums.items())
    ]
