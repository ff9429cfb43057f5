"""Runs the real command, or another module, in processes of their own or in this one."""

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightgpt2.cli import verbs

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
_ERROR = "lightgpt2: error: "


def run_cli(
    folder: Path,
    *args: str,
    timeout: float = 240,
    module: str = "lightgpt2",
    processes: int = 1,
    nodes: bool = False,
    during: Callable[[int], None] | None = None,
    **env: str,
) -> subprocess.CompletedProcess[str]:
    """`lightgpt2 ARGS` in a folder; without a network, on one thread, killed after `timeout` seconds.

    It is forked from a process that has done the imports, as are other modules, and several processes that train together,
    each on a machine of its own if `nodes`; `env` is added to its environment. `during` is called with its number while it
    runs.
    """
    with tempfile.TemporaryDirectory() as name:
        streams = {stream: Path(name, stream) for stream in ("stdout", "stderr")}
        for path in streams.values():
            path.touch()
        server = _server()
        assert server.stdin
        assert server.stdout
        request = {"module": module, "args": args, "folder": str(folder), "processes": processes, "nodes": nodes}
        print(json.dumps(request | streams | {"env": env}, default=str), file=server.stdin, flush=True)
        child = int(server.stdout.readline())
        killer = threading.Timer(timeout, os.kill, (child, signal.SIGKILL))
        killer.start()
        if during:
            during(child)
        status = int(server.stdout.readline())
        killer.cancel()
        printed = [path.read_bytes().decode() for path in streams.values()]  # a carriage return is one
    return subprocess.CompletedProcess(["lightgpt2", *args], os.waitstatus_to_exitcode(status), *printed)


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that forks; one for each process of the tests."""
    pipe, command = subprocess.PIPE, [sys.executable, "-m", "tests.support.server"]
    server = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdin=pipe, stdout=pipe, text=True)
    atexit.register(server.kill)
    return server


def succeed(folder: Path, *args: str, **kwargs: Any) -> str:
    """Runs the command and returns what it printed; fails the test unless it exits with 0."""
    done = run_cli(folder, *args, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_alone(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs a script where this project and its dependencies are not installed, but for torch, transformers and safetensors."""
    start = f"import sys; sys.modules.update(dict.fromkeys({_ABSENT}))\n"  # as if there were none
    command = [sys.executable, "-I", "-c", start + script, *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


_ABSENT = (
    "lightgpt2", "accelerate", "bitsandbytes", "datasets", "gguf", "jsonargparse", "lightning", "markdown", "onnx_ir",
    "onnxruntime", "peft", "tensorboard", "torchmetrics",
)  # fmt: skip


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Runs the command in this process; it must print errors, no more than what of the text is left out, and end with 2.

    Returns the errors' texts.
    """
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        verbs.run(args)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert all(", left out: " in line for line in out.splitlines()), out
    assert "Traceback" not in err
    lines = [line.split("\r")[-1] for line in err.splitlines()]  # a progress bar ends with a carriage return
    return [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """Writes a configuration."""
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def logged(folder: Path, run: str) -> dict[str, dict[int, float]]:
    """Every scalar that a run has in TensorBoard by step, as a reader that honours purged steps sees it."""
    events = EventAccumulator(str(folder / "tb-logs" / run), size_guidance={"scalars": 0})
    events.Reload()
    # By step: two files of one second are read in the order of their names, of which `.10` comes before `.9`.
    steps = {tag: sorted(events.Scalars(tag), key=lambda e: e.step) for tag in events.Tags()["scalars"]}
    return {tag: {e.step: e.value for e in found} for tag, found in steps.items()}


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """`lightgpt2 ARGS` in this process and folder: exit code, standard output, standard error."""
    capsys.readouterr()
    code = 0
    try:
        verbs.run([*args])
    except SystemExit as stop:
        code = int(str(stop.code or 0))
    return code, *capsys.readouterr()
