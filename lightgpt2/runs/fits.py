"""Calls of `lightgpt2 fit`, each in a process of its own: for a recipe's stages, and for what a configuration needs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from lightgpt2.errors import Interrupted, UserError
from lightgpt2.runs.run import Run
from lightgpt2.runs.settings import Settings


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
        options = ["--config", config]
        if Run(Path(config).stem).last.exists():
            options += ["--ckpt_path", "last"]
        print(f"{path} is needed and not there: making it with lightgpt2 fit {' '.join(options)}", flush=True)
        started = time.monotonic()
        code, stopped = fit(options)
        if stopped:
            raise Interrupted(f"{config} was interrupted; the same command goes on with it")
        if code or not Path(path).exists():
            raise UserError(f"needs.{path}: lightgpt2 fit {' '.join(options)} did not make it; see its message above")
        print(f"{path} made in {time.monotonic() - started:.0f} s", flush=True)


def fit(options: list[str], held: int | None = None) -> tuple[int, bool]:
    """Runs `lightgpt2 fit` in a process of its own.

    That process gets the terminal's Ctrl-C itself and saves; a SIGTERM, which it does not get, is passed on.

    Args:
        options: Its options.
        held: A lock that it keeps too, so that it is not left behind by a killed pipeline for another one to run into.

    Returns:
        Its exit code, and whether it or this process was asked to stop.
    """
    process: subprocess.Popen[bytes] | None = None
    asked: list[int] = []

    def stop(signum: int, _: Any) -> None:
        asked.append(signum)
        if process and signum == signal.SIGTERM:
            process.terminate()

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        command = [sys.executable, "-m", "lightgpt2", "fit", *options]
        process = subprocess.Popen(command, pass_fds=() if held is None else (held,))
        if signal.SIGTERM in asked:  # before there was a process to pass it on to
            process.terminate()
        code = process.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return code, bool(asked) or code in (130, -signal.SIGINT, -signal.SIGTERM)


def rehearse(configs: dict[str, Settings]) -> list[str]:
    """What `fit` would say of configurations, as far as shows while their models are not there.

    Args:
        configs: The configurations by what they are called.

    Returns:
        One line for each mistake, beginning with what its configuration is called.
    """
    if not configs:
        return []
    # In a process of its own: what it imports takes seconds, and would be kept for as long as all stages take. In a
    # session of its own: a Ctrl-C is this process's business.
    done = subprocess.run(
        [sys.executable, "-m", "lightgpt2.cli.rehearsal"],
        input=yaml.safe_dump(configs), stdout=subprocess.PIPE, text=True, check=True, start_new_session=True,
    )  # fmt: skip
    problems: list[str] = yaml.safe_load(done.stdout)
    return problems
