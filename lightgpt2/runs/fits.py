"""Calls of `lightgpt2 fit`, each in a process of its own: for a recipe's stages, and for what a configuration needs."""

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

from lightgpt2.errors import Interrupted, UserError
from lightgpt2.runs.run import Run
from lightgpt2.runs.settings import Settings, flat

_CHECKER = "lightgpt2.cli.rehearsal"  # reads configurations from its standard input, writes their mistakes, in YAML
_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def missing(needs: dict[str, str], model: dict[str, Any]) -> dict[str, str]:
    """The model folders that are not there yet, with the configurations whose `fit` makes them.

    Args:
        needs: For each folder its configuration.
        model: The stage's model settings; a folder that they do not mention (any more) is not needed.
    """
    given = flat(model, lists=True).values()
    mentioned = [each for value in given for each in (value if isinstance(value, list) else [value])]
    return {path: config for path, config in needs.items() if path in mentioned and not Path(path).exists()}


def make_missing(absent: dict[str, str]) -> None:
    """Make model folders by the `fit` of a configuration each; resume one that was interrupted.

    Raises:
        UserError: The fit failed, or did not make the folder.
        Interrupted: It was interrupted.
    """
    if "LOCAL_RANK" in os.environ:  # a process that Lightning launched beside the first, which has done this
        return
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
    """Run `lightgpt2 fit` in a process and a session of its own.

    A signal that asks this process to stop is passed on, once each: whether it comes from the terminal, which does not reach
    the other session, or from a supervisor. The first lets the fit save; a second stops it at once.

    Args:
        options: Its options.
        held: A lock that it keeps too, so that it is not left behind by a killed pipeline for another one to run into.

    Returns:
        Its exit code, and whether it or this process was asked to stop.
    """
    process: subprocess.Popen[bytes] | None = None
    asked, unsent = list[int](), deque[int]()

    def pass_on() -> None:
        with suppress(IndexError):  # none is left, be it that a signal came in between and its call has sent them
            while process:
                process.send_signal(unsent.popleft())

    def stop(signum: int, _: Any) -> None:
        asked.append(signum)
        unsent.append(signum)
        pass_on()

    def pause(*_: Any) -> None:  # on Ctrl-Z, until the shell's fg or bg
        unsent.append(signal.SIGSTOP)
        pass_on()
        os.kill(os.getpid(), signal.SIGSTOP)
        unsent.append(signal.SIGCONT)
        pass_on()

    handlers = {**dict.fromkeys(_STOP, stop), signal.SIGTSTP: pause}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
        del handlers[signal.SIGHUP]
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        command = [sys.executable, "-m", "lightgpt2", "fit", *options]
        process = subprocess.Popen(command, pass_fds=() if held is None else (held,), start_new_session=True)
        pass_on()
        code = process.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return code, bool(asked) or code == 130 or -code in _STOP


def check_stages(configs: dict[str, Settings]) -> list[str]:
    """What `fit` would say of configurations, as far as it can while their models are not there.

    Each line begins with what `configs` calls the configuration.
    """
    if not configs:
        return []
    # In a process of its own: what it imports takes seconds, and would be kept for as long as all stages take. In a
    # session of its own: a Ctrl-C is this process's business.
    done = subprocess.run(
        [sys.executable, "-m", _CHECKER],
        input=yaml.safe_dump(configs), stdout=subprocess.PIPE, text=True, check=True, start_new_session=True,
    )  # fmt: skip
    return list(yaml.safe_load(done.stdout))


provide = make_missing  # until the command line uses the new name
