"""Stages that make each other's input."""

import os
import signal
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


def missing(needs: dict[str, str], model: dict[str, Any]) -> dict[str, str]:
    """The model folders that a stage starts from and that are not there yet, with the configurations that make them.

    Args:
        needs: For each model folder the configuration whose `fit` makes it.
        model: The stage's model settings; folders that they do not mention (any more) are not needed.
    """
    return {path: config for path, config in needs.items() if _mentions(model, path) and not Path(path).exists()}


def provide(absent: dict[str, str]) -> None:
    """Makes model folders, each by a `fit` in a process of its own; one that was interrupted is resumed.

    Args:
        absent: For each folder the configuration that makes it.

    Raises:
        UserError: The fit failed, or did not make the folder.
        Interrupted: It was interrupted.
    """
    if "LOCAL_RANK" in os.environ:  # a process that Lightning launched beside the first, which has done this
        return
    for path, config in absent.items():
        command = ["fit", "--config", config]
        if Run(Path(config).stem).last.exists():
            command += ["--ckpt_path", "last"]
        print(f"{path} is needed and not there: making it with lightgpt2 {' '.join(command)}", flush=True)
        started = time.monotonic()
        code = _wait(subprocess.Popen([sys.executable, "-m", "lightgpt2", *command]))
        if code == 130:
            raise Interrupted(f"{config} was interrupted; the same command goes on with it")
        if code or not Path(path).exists():
            raise UserError(f"needs.{path}: lightgpt2 {' '.join(command)} did not make it; see its message above")
        print(f"{path} made in {time.monotonic() - started:.0f} s", flush=True)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Waits for a stage, which gets the terminal's Ctrl-C itself and saves; passes on a SIGTERM, which it does not get."""
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue
    finally:
        signal.signal(signal.SIGTERM, before)
