"""Log the curves of a run: to the progress bar and the loggers."""

import time
from typing import Any

import torch
from lightning import Callback, Trainer

from lightgpt2.callbacks.board import Board
from lightgpt2.measure.memory import peak_mb
from lightgpt2.methods.method import Method


class Monitor(Callback):
    """Logs items/s and memory beside what the method logs, and samples at each validation."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Method, batch: Any, batch_idx: int) -> None:
        """Starts the clock of a step; validation and saving lie outside it."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Method, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not pl_module.step_metrics:
            return
        # The terms were read from the device before the step; only the optimizer's own kernels may still run.
        speed = batch["step_items"] / (time.perf_counter() - self._started)
        unit = pl_module.task.unit
        pl_module.log(f"{unit}/s", speed, prog_bar=True, logger=False, batch_size=1)
        memory = peak_mb(torch.cuda.is_available())
        pl_module.step_metrics |= {f"train/{unit}_per_s": speed, "train/memory_mb": memory}

    def on_validation_end(self, trainer: Trainer, pl_module: Method) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        prompts = pl_module.task.prompts(pl_module.data)
        samples = pl_module.samples(prompts) if prompts else []  # on all processes: each may hold a part of the model
        if not trainer.is_global_zero:
            return
        board = Board(trainer)
        if samples:
            rows = "\n\n".join(f"    {prompt} ▸ {text}".replace("\n", "\n    ") for prompt, text in samples)
            board.text("samples", rows)
        for part in pl_module.adaptations:
            for name, values in part.histograms().items():
                board.histogram(name, values)
            for name, picture in part.pictures().items():
                board.picture(name, (255 * picture).to(torch.uint8).numpy())
