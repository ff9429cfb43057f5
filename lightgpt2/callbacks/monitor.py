"""What a person watches while a run goes on: progress bar and TensorBoard."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightgpt2.measure.memory import peak_mb
from lightgpt2.methods.method import Method


class Monitor(Callback):
    """Logs loss terms, gradient norm, learning rate, tokens/s and memory at every optimizer step, and validation scores.

    All are logged against the number of optimizer steps taken, so curves of runs with different accumulation line up.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the clock of a step; validation and saving lie outside it."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs a finished optimizer step."""
        assert isinstance(pl_module, Method)
        metrics, pl_module.step_metrics = pl_module.step_metrics, {}
        if not metrics:
            return
        # The terms were read from the device before the step; only the optimizer's own kernels may still run.
        speed = batch["step_tokens"] / (time.perf_counter() - self._started)
        pl_module.log_dict(
            {"loss": metrics["train/loss"], "tokens/s": speed}, prog_bar=True, logger=False, batch_size=1
        )
        self._write(
            trainer, {**metrics, "train/tokens_per_s": speed, "train/memory_mb": peak_mb(torch.cuda.is_available())}
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the validation scores and sample continuations of a fit."""
        assert isinstance(pl_module, Method)
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        names = ("val/loss", "val/perplexity")
        self._write(trainer, {name: float(trainer.callback_metrics[name]) for name in names})
        if isinstance(trainer.logger, TensorBoardLogger):
            self._write_samples(trainer, trainer.logger, pl_module)
            if trainer.is_global_zero:
                pl_module.draw(trainer.logger.experiment, trainer.global_step)

    def _write(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def _write_samples(self, trainer: Trainer, logger: TensorBoardLogger, method: Method) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        prompts = data.prompts("valid", method.task.samples, method.task.prompt_tokens)
        if not prompts:  # none asked for, or no document is long enough
            return
        texts = method.continuations(prompts)  # on all processes: each may hold a part of the model
        if not trainer.is_global_zero:
            return
        shown = data.tokenizer.batch_decode(prompts, skip_special_tokens=True)
        rows = "\n\n".join(f"    {p} ▸ {t}".replace("\n", "\n    ") for p, t in zip(shown, texts, strict=True))
        logger.experiment.add_text("samples", rows, trainer.global_step)
