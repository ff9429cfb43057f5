"""Checkpoints from which a run goes on exactly, and a stop that loses nothing."""

import os
import shutil
import signal
import zipfile
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightgpt2 import signals
from lightgpt2.data.base import TaskData
from lightgpt2.errors import Interrupted, UserError
from lightgpt2.methods.method import Method, NonFiniteLossError
from lightgpt2.models.files import atomic_file
from lightgpt2.runs.run import FORMAT, Identity, Run, seal


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and loads it without running code.

    Lightning's own buffers the whole checkpoint in memory, and its temporary file may lie on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_file(Path(path)) as temporary:
            torch.save(checkpoint, temporary)
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.comment = seal(archive)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return checkpoint


class Checkpointing(Checkpoint):
    """Writes `last.ckpt` and `best.ckpt` of a run.

    `last.ckpt` is written between two optimizer steps, after the validation that was due: a run resumed from it does what the
    uninterrupted run did, to the bit. `best.ckpt` is written after the validation with the best value of the task's primary
    metric. Ctrl-C, SIGTERM and SIGHUP finish the step, save, and stop; a second one stops at once.

    Args:
        every_n_steps: Optimizer steps between two `last.ckpt`.
    """

    def __init__(self, every_n_steps: PositiveInt = 100) -> None:
        self.every_n_steps = every_n_steps
        self.best: float | None = None
        self.run: Run
        self.identity: Identity
        self._saved_step = -1
        self._stop = False
        self._handlers: dict[signal.Signals, Any] = {}

    def attach(self, run: Run, identity: Identity) -> None:
        self.run, self.identity = run, identity

    def setup(self, trainer: Trainer, pl_module: Method, stage: str) -> None:
        """Has checkpoints written whole, by a plain `Trainer` too."""
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: Trainer, pl_module: Method) -> None:
        self._saved_step = trainer.global_step
        resumed = trainer.ckpt_path
        if resumed is not None and trainer.is_global_zero and Path(resumed) != self.run.last:
            with atomic_file(self.run.last) as temporary:  # what lies there is of steps that are about to be done again
                shutil.copyfile(resumed, temporary)

        def ask(signum: int, frame: FrameType | None) -> None:
            if self._stop:
                self._restore_handlers()
                os.kill(os.getpid(), signum)
            self._stop = True
            if trainer.is_global_zero:
                print("\nStopping after this step; again to stop at once.", flush=True)

        self._handlers = signals.on_request(ask)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Method, batch: Any, batch_idx: int) -> None:
        """Between two optimizer steps: saves when it is time to, and stops when asked."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        stop = self._asked(trainer)
        step = trainer.global_step
        if step != self._saved_step and (stop or step % self.every_n_steps == 0):
            trainer.save_checkpoint(self.run.last)
            self._saved_step = step
        if stop:
            self._restore_handlers()
            raise Interrupted(f"stopped at step {step}; go on with the same command and --ckpt_path last")

    def on_validation_end(self, trainer: Trainer, pl_module: Method) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        value = float(trainer.callback_metrics[f"val/{pl_module.task.primary}"])
        if pl_module.task.is_better(value, self.best):
            self.best = value
            trainer.save_checkpoint(self.run.best)

    def on_train_end(self, trainer: Trainer, pl_module: Method) -> None:
        """Saves after the artefact, and stops here where it was asked to in the last step or after it."""
        if trainer.global_step != self._saved_step:
            trainer.save_checkpoint(self.run.last)
        self._restore_handlers()
        if self._asked(trainer):
            raise Interrupted(
                "stopped with the trained model saved; score it with the same command and --ckpt_path last"
            )

    def _asked(self, trainer: Trainer) -> bool:
        """True if one of the processes was asked to stop."""
        return trainer.strategy.reduce_boolean_decision(self._stop, all=False) if trainer.world_size > 1 else self._stop

    def on_exception(self, trainer: Trainer, pl_module: Method, exception: BaseException) -> None:
        """Keeps the weights from before a non-finite loss."""
        self._restore_handlers()
        if isinstance(exception, NonFiniteLossError):
            trainer.save_checkpoint(self.run.last)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Method, checkpoint: dict[str, Any]) -> None:
        """Marks the checkpoint as this run's, with counters of a whole number of optimizer steps.

        What it remembers stands beside Lightning's states of callbacks, which a plain `Trainer` would miss with a warning.

        Lightning has counted the micro-batch that was fetched but not yet used, which will be fetched again; and it counts
        an epoch as done that the end of the run cut off, which a longer run goes on with.
        """
        checkpoint |= {"run": self.identity, "format": FORMAT, "best": self.best}
        checkpoint["batching"] = _batching(trainer, pl_module.data)
        loop = checkpoint["loops"]["fit_loop"]
        for counts in (loop["epoch_loop.batch_progress"][name] for name in ("current", "total")):
            done = counts["completed"] - counts["completed"] % trainer.accumulate_grad_batches
            counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), done))
        epoch, within = divmod(trainer.global_step, pl_module.data.steps_per_epoch)
        if within:
            for counts in loop["epoch_progress"].values():
                counts.update(ready=epoch + 1, started=epoch + 1, processed=epoch, completed=epoch)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Method, checkpoint: dict[str, Any]) -> None:
        """Refuses other micro-batches than the checkpoint's: Lightning's counters are of them."""
        self.best = checkpoint["best"]
        theirs, ours = checkpoint["batching"], _batching(trainer, pl_module.data)
        if trainer.state.fn == "fit" and theirs != ours:
            changed = [f"{k}: {theirs.get(k)} there, {ours[k]} here" for k in ours if theirs.get(k) != ours[k]]
            what = f"the checkpoint was trained on other batches ({', '.join(changed)})"
            raise UserError(f"--ckpt_path: {what}; resume with the same")

    def _restore_handlers(self) -> None:
        signals.restore(self._handlers)
        self._handlers = {}


def _batching(trainer: Trainer, data: TaskData) -> dict[str, Any]:
    """What decides the batches: what the data says, and how an optimizer step is cut into micro-batches."""
    own = {"trainer.accumulate_grad_batches": trainer.accumulate_grad_batches, "processes": trainer.world_size}
    return data.batching() | own
