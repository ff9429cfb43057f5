"""How a method validates, tests and predicts."""

from typing import Any

from lightning import LightningModule
from torch import Tensor
from torchmetrics import Metric
from transformers import PreTrainedModel

from lightgpt2.functional.divergence import IGNORE
from lightgpt2.tasks.language_modeling import LanguageModeling


class Scored(LightningModule):
    """The part of a method that is the same whatever it trains: a model's scores, and its continuations.

    Attributes:
        model: The model.
        task: What is predicted and how it is scored.
        val_nll: The split's token-weighted mean so far.
    """

    model: PreTrainedModel
    task: LanguageModeling
    val_nll: Metric

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Adds a batch of windows to the split's token-weighted mean; returns each window's score."""
        scored = self._scored(batch)
        self.val_nll.update(scored["nll"] / scored["tokens"].clamp(min=1), weight=scored["tokens"])
        return scored

    def _scored(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        tokens = (batch["labels"] != IGNORE).sum(dim=1)
        return {"document": batch["document"], "nll": self.task.nll(self.model, batch), "tokens": tokens}

    def on_validation_epoch_end(self) -> None:
        """Logs the split's loss and perplexity."""
        self._log_split("val")

    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Logs the split's loss and perplexity."""
        self._log_split("test")

    def _log_split(self, name: str) -> None:
        loss = self.val_nll.compute()
        self.val_nll.reset()
        # Shown here; the Monitor callback writes them to the loggers, against the number of steps.
        values = {f"{name}/loss": loss, f"{name}/perplexity": loss.exp()}
        self.log_dict(values, prog_bar=True, logger=False, sync_dist=True)  # the same on all processes already

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        """What the predictions file is made of: each window's score, or each document's continuation."""
        if self.task.predict == "scores":
            return self._scored(batch)
        prompts = [row[:n].tolist() for row, n in zip(batch["input_ids"], batch["lengths"].tolist(), strict=True)]
        shown = self.trainer.datamodule.tokenizer.batch_decode(prompts, skip_special_tokens=True)  # type: ignore[attr-defined]
        rows = zip(batch["document"].tolist(), shown, self.continuations(prompts), strict=True)
        return [{"document": document, "prompt": prompt, "continuation": text} for document, prompt, text in rows]

    def continuations(self, prompts: list[list[int]]) -> list[str]:
        """What the model makes of the beginnings of texts.

        Args:
            prompts: Token lists.
        """
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        return self.task.continuations(self.model, tokenizer, prompts)
