"""What a run shows, on all of its loggers: each has of it what it can show."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray
from torch import Tensor


class Board:
    """The loggers of a trainer, at its step; to be used by one process.

    All loggers take scalars and settings, most of them texts and pictures, TensorBoard and W&B histograms too.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._loggers, self._step = trainer.loggers, trainer.global_step

    def scalars(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Adds a point to a curve for each value.

        Args:
            values: Values by the names of the curves.
            step: Their place on the axis; default: the optimizer step.
        """
        for logger in self._loggers:
            logger.log_metrics({**values}, step=self._step if step is None else step)

    def figures(self, values: Mapping[str, float]) -> None:
        """Shows values that a run has one of each, and no curve."""
        self.scalars(values)
        self.repeat(values)

    def repeat(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Writes points once more that are the only ones of their curves, for TensorBoard.

        Where several runs are chosen, its scalars panel has an empty chart for curves of one point each.

        Args:
            values: Values by the names of the curves.
            step: Their place on the axis; default: the optimizer step.
        """
        for logger in self._loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_metrics({**values}, step=self._step if step is None else step)

    def text(self, name: str, text: str) -> None:
        """Shows a text in Markdown."""
        for logger in self._loggers:
            match logger:
                case TensorBoardLogger():
                    logger.experiment.add_text(name, text, self._step)
                case WandbLogger():
                    logger.log_text(name, ["text"], [[text]], step=self._step)
                case MLFlowLogger():
                    logger.experiment.log_text(logger.run_id, text, f"{name}/{self._step}.md")

    def picture(self, name: str, picture: NDArray[np.uint8]) -> None:
        """Shows a picture, `[height, width]` or `[height, width, 3]`."""
        for logger in self._loggers:
            match logger:
                case TensorBoardLogger():
                    form = "HW" if picture.ndim == 2 else "HWC"
                    logger.experiment.add_image(name, picture, self._step, dataformats=form)
                case WandbLogger():
                    logger.log_image(name, [picture], step=self._step)
                case MLFlowLogger():
                    logger.experiment.log_image(logger.run_id, picture, key=name, step=self._step)

    def histogram(self, name: str, values: Tensor) -> None:
        """Shows how values are distributed."""
        for logger in self._loggers:
            match logger:
                case TensorBoardLogger():
                    logger.experiment.add_histogram(name, values, self._step)
                case WandbLogger():
                    wandb: Any = import_module("wandb")  # which is not among the project's dependencies
                    logger.log_metrics({name: wandb.Histogram(values.numpy())}, step=self._step)

    def settings(self, settings: Mapping[str, Any], final: Mapping[str, float]) -> None:
        """Shows the settings of the run beside its final metrics, and sends all that was shown on its way."""
        for logger in self._loggers:
            if isinstance(logger, TensorBoardLogger):  # whose table of runs has both
                logger.log_hyperparams({**settings}, {**final}, step=self._step)
            else:
                logger.log_hyperparams({**settings})
                logger.log_metrics({**final}, step=self._step)
        self.repeat(final)
        self.flush()

    def flush(self) -> None:
        """Writes what is still held in memory."""
        for logger in self._loggers:
            logger.save()


def places(trainer: Trainer) -> Iterator[str]:
    """Where a person finds the curves: for each logger a command, a file or an address, where it has one."""
    for logger in trainer.loggers:
        match logger:
            case TensorBoardLogger():
                yield f"tensorboard --logdir {Path(logger.log_dir)}"
            case CSVLogger():
                yield str(Path(logger.log_dir) / "metrics.csv")
            case WandbLogger():
                run = logger.experiment
                yield run.url or f"wandb sync {Path(run.dir).parent}"
            case MLFlowLogger():
                yield f"mlflow ui --backend-store-uri {logger.experiment.tracking_uri}"
