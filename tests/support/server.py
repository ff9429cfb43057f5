"""Forks processes that run `python -m lightgpt2`, from one that has done the imports, which take seconds, once.

A process of its own in all else: arguments, folder, standard streams, exit code, and killed without harm to the others.
"""

import importlib
import json
import os
import runpy
import sys
import threading
from typing import Any

IMPORTED = (
    "lightgpt2.cli.trainer", "lightgpt2.methods", "lightgpt2.callbacks", "lightgpt2.data", "lightgpt2.tasks",
    "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama", "peft", "datasets",
    "torch.utils.tensorboard", "torch._dynamo",
)  # fmt: skip


def serve() -> dict[str, Any]:
    """Answers each request, a line, with a process's number, then its wait status; returns it in the forked process only."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for name in IMPORTED:
        importlib.import_module(name)
    assert threading.active_count() == 1, "what is forked must have no other thread"
    assert "onnxruntime" not in sys.modules, "it has threads that Python does not know of"
    for line in requests:
        child = os.fork()
        if child == 0:
            requests.close()
            answers.close()
            request: dict[str, Any] = json.loads(line)
            return request
        print(child, file=answers, flush=True)
        print(os.waitpid(child, 0)[1], file=answers, flush=True)
    sys.exit()


if __name__ == "__main__":
    work = serve()
    os.chdir(work["folder"])
    for stream, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(work[stream], os.O_WRONLY | os.O_APPEND), descriptor)
    sys.argv[1:] = work["args"]
    runpy.run_module("lightgpt2", run_name="__main__", alter_sys=True)
