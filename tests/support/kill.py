"""A callback that kills its own process, as a power cut would."""

import os
import signal
from typing import Any

from lightning import Callback, LightningModule, Trainer


class KillAt(Callback):
    """Sends SIGKILL to this process in the middle of a micro-batch, before its gradients are used.

    Args:
        batch: Number of micro-batches of this process to finish first.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.seen = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Counts."""
        self.seen += 1

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """Kills."""
        if self.seen > self.batch:
            os.kill(os.getpid(), signal.SIGKILL)
