"""`--logger`: the loggers that have a name, with their files under `tb-logs/`."""

import os
from importlib.util import find_spec
from typing import Any, assert_never

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lightgpt2.cli.trainer_settings import LoggerName
from lightgpt2.errors import Problem, UserError
from lightgpt2.runs.run import LOGS, Run

_PROJECT = "lightgpt2"
_FIXES = {"wandb": "run wandb login, or set WANDB_MODE=offline", "mlflow": "install mlflow, or set MLFLOW_TRACKING_URI"}


def problems(name: LoggerName | None, other: object) -> list[Problem]:
    """Why a run cannot have a logger, if so.

    Args:
        name: Its name; None where none is asked for.
        other: The value of `trainer.logger`.
    """
    if name is None:
        return []
    if other not in (None, True):
        return [Problem("logger", "trainer.logger is given too", "remove one of them")]
    if name in _FIXES and find_spec(name) is None:
        return [Problem("logger", f"the package {name} is not installed", f"pip install {name}, or give another")]
    return []


def open_logger(name: LoggerName, run: Run, first_step: int) -> Logger:
    """Makes a logger and begins its run.

    Args:
        name: Its name.
        run: The run that it shows.
        first_step: The optimizer step that the run goes on from.

    Raises:
        UserError: It does not begin one.
    """
    try:
        logger = _made(name, run, first_step)
        _ = logger.experiment
    except Exception as error:  # whatever these packages raise
        if name not in _FIXES:
            raise
        what = f"{name} begins no run ({' '.join(str(error).split())})"
        raise UserError([Problem("logger", what, _FIXES[name])]) from error
    return logger


def close(logger: Logger | None) -> None:
    """Ends the run that W&B has begun: it has one at a time in a process."""
    if isinstance(logger, WandbLogger):
        logger.experiment.finish()


def _made(name: LoggerName, run: Run, first_step: int) -> TensorBoardLogger | CSVLogger | WandbLogger | MLFlowLogger:
    match name:
        case "tensorboard":
            # What a killed process logged after its last checkpoint is about to be logged again.
            purge: dict[str, Any] = {"purge_step": first_step + 1} if first_step else {}
            return TensorBoardLogger(run.logs.parent, name=run.logs.name, version="", **purge)
        case "csv":
            return CSVLogger(run.logs.parent, name=run.logs.name)
        case "wandb":
            LOGS.mkdir(exist_ok=True)  # it would write elsewhere without a word
            project = os.environ.get("WANDB_PROJECT", _PROJECT)
            return WandbLogger(name=run.name, project=project, save_dir=LOGS, group=run.name)
        case "mlflow":
            LOGS.mkdir(exist_ok=True)
            server = os.environ.get("MLFLOW_TRACKING_URI")
            files, address = None if server else f"{LOGS}/mlflow", server or f"sqlite:///{LOGS}/mlflow.db"
            return MLFlowLogger(_PROJECT, run_name=run.name, tracking_uri=address, artifact_location=files)
        case _:
            assert_never(name)
