"""Calls of `lightgpt2 fit`, each in another process: for a recipe's stages, and for what a configuration needs."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from lightgpt2 import signals
from lightgpt2.errors import Interrupted, Problem, UserError
from lightgpt2.runs.run import Run
from lightgpt2.runs.settings import Settings, flat

_CHECKER = "lightgpt2.cli.check_stages"  # reads configurations from its standard input, writes their mistakes, in YAML
_STOP = (*signals.ASKING, signal.SIGQUIT)
# Its working folder is no place to import from: of a `yaml.py` that lies there nothing runs.
_ENVIRONMENT = {"PYTHONSAFEPATH": "1"}


def missing(needs: dict[str, str], model: dict[str, Any]) -> dict[str, str]:
    """Those of `needs` that the settings of a model mention and that are not there yet: by folder the configuration."""
    given = flat(model, lists=True).values()
    mentioned = [each for value in given for each in (value if isinstance(value, list) else [value])]
    return {path: config for path, config in needs.items() if path in mentioned and not Path(path).exists()}


def make_missing(absent: dict[str, str]) -> None:
    """Make model folders, each by the `fit` of a configuration; resume one that was interrupted."""
    if "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        # One of several processes that torchrun or srun launched: a fit that it started would take itself for another.
        fix = "run lightgpt2 fit --config {} first, in one process"
        what = "is not there yet, and is not made where several processes train"
        raise UserError([Problem(f"needs.{path}", what, fix.format(config)) for path, config in absent.items()])
    for path, config in absent.items():
        resume = ["--ckpt_path", "last"] if Run(Path(config).stem).last.exists() else []
        options = ["--config", config, *resume]
        print(f"{path} is needed and not there: making it with lightgpt2 fit {' '.join(options)}", flush=True)
        started = time.monotonic()
        code, stopped = fit(options)
        if stopped:
            raise Interrupted(f"{config} was interrupted; the same command goes on with it")
        if code or not Path(path).exists():
            raise UserError(f"needs.{path}: lightgpt2 fit {' '.join(options)} did not make it; see its message above")
        print(f"{path} made in {time.monotonic() - started:.0f} s", flush=True)


def fit(options: list[str], held: int | None = None) -> tuple[int, bool]:
    """Run `lightgpt2 fit` in another process and session: its exit code, and True if one was asked to stop.

    A signal that asks this process to stop is passed on, once each: whether it comes from the terminal, which does not reach
    the other session, or from a supervisor. The first lets the fit save; a second stops it at once. The fit keeps the lock
    `held` too, so that it is not left behind by a killed pipeline for another one to run into.
    """
    process: subprocess.Popen[bytes] | None = None
    asked, unsent = list[int](), deque[int]()

    def pass_on(*signums: int) -> None:
        unsent.extend(signums)
        with suppress(IndexError):  # none is left, be it that a signal came in between and its call has sent them
            while process:
                process.send_signal(unsent.popleft())

    def stop(signum: int, _: Any) -> None:
        asked.append(signum)
        pass_on(signum)

    def pause(*_: Any) -> None:  # on Ctrl-Z, until the shell's fg or bg
        pass_on(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        pass_on(signal.SIGCONT)

    handlers = {signal.SIGQUIT: stop, signal.SIGTSTP: pause}
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    before |= signals.on_request(stop)
    try:
        command = [sys.executable, "-m", "lightgpt2", "fit", *options]
        kept = () if held is None else (held,)
        process = subprocess.Popen(command, pass_fds=kept, env=os.environ | _ENVIRONMENT, start_new_session=True)
        pass_on()
        code = process.wait()
    finally:
        signals.restore(before)
    return code, bool(asked) or code == 130 or -code in _STOP


def check_stages(configs: dict[str, Settings]) -> list[str]:
    """What `fit` would say of configurations by name, as far as it can while their models are not there."""
    if not configs:
        return []
    # In another process: what it imports takes seconds, and would be kept for as long as all stages take. In a
    # new session: a Ctrl-C is this process's business.
    done = subprocess.run(
        [sys.executable, "-m", _CHECKER],
        input=yaml.safe_dump(configs), stdout=subprocess.PIPE, text=True, check=True, env=os.environ | _ENVIRONMENT,
        start_new_session=True,
    )  # fmt: skip
    return list(yaml.safe_load(done.stdout))
