"""Forks processes that run `python -m MODULE`, from one that has done the imports, which take seconds, once.

A process of its own in all else: arguments, folder, standard streams, exit code, and killed without harm to the others.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
from typing import Any

from transformers import conversion_mapping

IMPORTED = (
    "lightgpt2.cli.verbs", "lightgpt2.cli.trainer", "lightgpt2.methods", "lightgpt2.callbacks", "lightgpt2.tasks",
    "lightgpt2.data.language_modeling",
    "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama", "peft", "datasets",
    "torch.utils.tensorboard", "tensorboard.plugins.hparams.api_pb2", "torch._dynamo",
)  # fmt: skip


def serve() -> dict[str, Any]:
    """Answers each request, a line, with the first process's number, then its wait status; returns it in forked ones only."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for name in IMPORTED:
        importlib.import_module(name)
    conversion_mapping.get_checkpoint_conversion_mapping("gpt2")  # which it keeps, after a fifth of a second
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
                    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
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
    sys.argv[1:] = work["args"]
    runpy.run_module(work["module"], run_name="__main__", alter_sys=True)
