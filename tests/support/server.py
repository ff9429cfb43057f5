"""Forks processes that run `python -m MODULE`, from one that has done the imports, which take seconds, once.

A process of its own in all else: arguments, folder, standard streams, exit code, and killed without harm to the others. So are
the fits and the checks that the command starts itself.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from transformers import conversion_mapping

from lightgpt2.cli.check_stages import check_stages

IMPORTED = (
    "lightgpt2.cli.verbs", "lightgpt2.cli.trainer", "lightgpt2.methods", "lightgpt2.callbacks", "lightgpt2.tasks",
    "lightgpt2.data.language_modeling",
    "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama", "peft", "datasets",
    "torch.utils.tensorboard", "tensorboard.plugins.hparams.api_pb2", "torch._dynamo",
)  # fmt: skip


class Forking(subprocess.Popen[Any]):
    """Starts a process as `Popen` does; a fit or a check goes on in the forked process, without a new Python."""

    def __init__(self, args: Any, *, env: Mapping[str, str] | None = None, pass_fds: Any = (), **how: Any) -> None:
        match args:
            case [sys.executable, "-m", ("lightgpt2" | "lightgpt2.cli.check_stages") as module, *rest]:
                assert threading.active_count() == 1, "what is forked must have no other thread"
                sys.stdout.flush()
                how["preexec_fn"] = partial(_go_on, module, rest, env or os.environ, pass_fds)
        super().__init__(args, env=env, pass_fds=pass_fds, **how)


def _go_on(module: str, args: Sequence[str], env: Mapping[str, str], kept: Collection[int]) -> None:
    """Runs a module and ends the process, where another one would start Python."""
    code: Any = 1
    try:
        for descriptor in {*map(int, os.listdir("/proc/self/fd"))} - {0, 1, 2, *kept}:  # noqa: PTH208
            with suppress(OSError):
                os.close(descriptor)
        for signum in signal.valid_signals():
            if callable(signal.getsignal(signum)):
                signal.signal(signum, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        atexit._clear()
        gc.enable()
        os.environ.clear()
        os.environ |= env
        _run(module, args)
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code or 0)


def _run(module: str, args: Sequence[str]) -> None:
    sys.argv[1:] = args
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def serve() -> dict[str, Any]:
    """Answers each request, a line, with the first process's number, then its wait status; returns it in forked ones only."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for name in IMPORTED:
        importlib.import_module(name)
    conversion_mapping.get_checkpoint_conversion_mapping("gpt2")  # which it keeps, after a fifth of a second
    before = {**os.environ}
    check_stages({"distill": yaml.safe_load(Path("configs/distill.yaml").read_text())})  # what sources say is kept, too
    os.environ.clear()
    os.environ |= before  # without a seed
    del sys.modules[check_stages.__module__]  # runpy would remark on it
    gc.freeze()  # what was imported stays: to look for garbage in it takes a third of a second, and copies its pages
    os.fsync = lambda descriptor: None  # no test cuts the power
    assert threading.active_count() == 1, "what is forked must have no other thread"
    assert "onnxruntime" not in sys.modules, "it has threads that Python does not know of"
    for line in requests:
        request: dict[str, Any] = json.loads(line)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        children: list[int] = []
        for rank in range(request["processes"]):
            children.append(os.fork())
            if children[-1] == 0:
                requests.close()
                answers.close()
                if request["processes"] > 1:  # so Lightning takes the process for one of several, and starts none
                    nodes = {"RANK": str(rank), "GROUP_RANK": str(rank), "WORLD_SIZE": str(request["processes"])}
                    launched = nodes | {"LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}  # as torchrun says it
                    os.environ |= launched if request["nodes"] else {"LOCAL_RANK": str(rank)}
                    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                return request
        print(children[0], file=answers, flush=True)
        status = os.waitpid(children[0], 0)[1]
        for other in children[1:]:
            if status:  # it may wait for the first
                os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)
        print(status, file=answers, flush=True)
    sys.exit()


if __name__ == "__main__":
    work = serve()
    os.chdir(work["folder"])
    os.environ |= work["env"]
    sys.path[:0] = work["env"].get("PYTHONPATH", "").split(os.pathsep)
    for stream, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(work[stream], os.O_WRONLY | os.O_APPEND), descriptor)
    if work["module"] == "lightgpt2":  # others disturb their own process, and no child of it
        subprocess.Popen = Forking  # type: ignore[misc]
    _run(work["module"], work["args"])
