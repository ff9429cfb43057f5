"""Kills as a power cut would: of a process in the middle of a micro-batch, or of a process with its children."""

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


class KillAt(Callback):
    """Kills this process in the middle of a micro-batch, before its gradients are used, once it has done `batch` of them."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.seen = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen += 1

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        if self.seen > self.batch:
            os.kill(os.getpid(), signal.SIGKILL)


def children(pid: int) -> list[int]:
    """The processes that a process has started, in any of its threads."""
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def kill_with_children(pid: int) -> None:
    """Kills a process and the stage that it is running, which has another session."""
    with contextlib.suppress(ProcessLookupError):  # it had ended
        os.kill(pid, signal.SIGSTOP)  # it starts no other one meanwhile
        for each in (*children(pid), pid):
            os.kill(each, signal.SIGKILL)
