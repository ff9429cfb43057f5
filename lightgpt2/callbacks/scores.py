"""What `validate` and `test` print."""

from typing import Any

import numpy as np
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from lightgpt2.inference.scoring import Score

Rows = list[tuple[int, float, int]]  # document, nll, tokens


class ScorePrinter(Callback):
    """Prints perplexity with its 95 % interval, bits per byte and the number of tokens of a split."""

    def __init__(self) -> None:
        self._rows: Rows = []

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
        self._rows += zip(*(outputs[key].tolist() for key in ("document", "nll", "tokens")), strict=True)

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the validation split's scores."""
        self._print(trainer, "valid")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the test split's scores."""
        self._print(trainer, "test")

    def _print(self, trainer: Trainer, split: str) -> None:
        rows, self._rows = self._rows, []
        if dist.is_initialized():
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        if not trainer.is_global_zero:
            return
        sizes = trainer.datamodule.document_sizes(split)  # type: ignore[attr-defined]
        nll, tokens = np.zeros(len(sizes)), np.zeros(len(sizes), dtype=np.int64)
        for document, value, count in rows:
            nll[document] += value
            tokens[document] += count
        result = Score(nll, tokens, sizes)
        low, high = result.interval()
        print(
            f"{split}: perplexity {result.perplexity:.4f} (95 % interval {low:.4f} - {high:.4f}), "
            f"{result.bits_per_byte:.4f} bits per byte, {tokens.sum():,} tokens in {len(sizes):,} documents",
            flush=True,
        )
