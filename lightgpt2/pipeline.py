"""Stages that make each other's input."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lightgpt2.errors import Interrupted, UserError
from lightgpt2.runs import Run


def _mentions(values: Any, path: str) -> bool:
    if isinstance(values, dict):
        return any(_mentions(value, path) for value in values.values())
    return bool(values == path)


def provide(needs: dict[str, str], model: dict[str, Any]) -> None:
    """Makes the model folders that a stage starts from and that are not there yet.

    Each is made by a `fit` of the configuration that the stage names for it, in a process of its own; one that was
    interrupted is resumed. Folders that the stage's settings do not mention (any more) are not made.

    Args:
        needs: For each model folder the configuration whose `fit` makes it.
        model: The stage's resolved model settings.

    Raises:
        UserError: The fit failed, or did not make the folder.
        Interrupted: It was interrupted.
    """
    if "LOCAL_RANK" in os.environ:  # a process that Lightning launched beside the first, which has done this
        return
    for path, config in needs.items():
        if Path(path).exists() or not _mentions(model, path):
            continue
        command = ["fit", "--config", config]
        if Run(Path(config).stem).last.exists():
            command += ["--ckpt_path", "last"]
        print(f"{path} is needed and not there: making it with lightgpt2 {' '.join(command)}", flush=True)
        started = time.monotonic()
        code = subprocess.run([sys.executable, "-m", "lightgpt2", *command], check=False).returncode
        if code == 130:
            raise Interrupted(f"{config} was interrupted; the same command goes on with it")
        if code or not Path(path).exists():
            raise UserError(f"needs.{path}: lightgpt2 {' '.join(command)} did not make it; see its message above")
        print(f"{path} made in {time.monotonic() - started:.0f} s", flush=True)
