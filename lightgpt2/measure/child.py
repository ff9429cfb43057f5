"""Processes that measure on request, by lines of JSON on standard input and output. A worker imports only what it measures."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lightgpt2.errors import UserError

_ROOT = Path(__file__).parents[2]
_PATIENCE = 10.0
_Arm = TypeVar("_Arm")


class ArmFailed(Exception):  # noqa: N818 - it says what became of an arm
    """An arm could not be measured; the text says why."""


class Child:
    """A fresh Python process that measures one arm; it runs a module whose `main` calls `serve`.

    It is in its own session: a Ctrl-C at the terminal reaches the parent alone, which then ends its children. A child
    whose parent was killed ends by itself when it finds the pipe closed.
    """

    def __init__(self, module: str) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - see close
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, encoding="utf-8", start_new_session=True,
        )  # fmt: skip

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to one of the requests that the child serves; `ArmFailed` if it reports an error, or has died."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, which shows in what it does not answer
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
        try:
            reply: dict[str, dict[str, Any]] = json.loads(self.process.stdout.readline())
        except ValueError as error:  # no line, or half of one
            raise ArmFailed(self._death()) from error
        if "error" in reply:
            raise ArmFailed(reply["error"])
        return reply["ok"]

    def _death(self) -> str:
        code = self.process.wait(_PATIENCE)
        if code == -signal.SIGKILL:
            return "killed (SIGKILL), as the system does when memory runs out"
        if code < 0:
            return f"killed ({signal.Signals(-code).name})"
        self._errors.seek(0)
        said = [line.strip() for line in self._errors if line.strip()]
        return f"ended with exit code {code}" + (f": {said[-1][:300]}" if said else "")

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # a request that it never read
                    stream.close()


class Children(contextlib.ExitStack):
    """A `Child` for each arm, started with its first request; one that fails is ended, and the others go on if they can."""

    def __init__(self, module: str, required: Container[str] = ()) -> None:
        super().__init__()
        self._module, self._required = module, required
        self._children: dict[str, Child] = {}
        self.errors: dict[str, str] = {}  # why arms failed, by their names

    def ask(self, name: str, do: str, **request: Any) -> dict[str, Any]:
        """The answer of an arm's child; empty once it has failed."""
        if name in self.errors:
            return {}
        if name not in self._children:
            self._children[name] = Child(self._module)
            self.callback(self._children[name].close)
        try:
            return self._children[name].ask(do, **request)
        except ArmFailed as failure:
            if name in self._required:
                raise ArmFailed(f"{name}: {failure}") from failure
            self.errors[name] = str(failure)
            self._children[name].close()  # the others may have its memory
            return {}


def turns(arms: Sequence[_Arm], rounds: int) -> Iterator[_Arm]:
    """The order in which arms are measured: every second round backwards, so that none always follows the same other one."""
    for number in range(rounds):
        yield from arms[:: 1 if number % 2 == 0 else -1]


class Channel:
    """A child's end: the parent's requests come on standard input. What is printed goes to standard error from now on."""

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def receive(self) -> dict[str, Any]:
        """The next request; the process ends when there is no parent any more."""
        line = sys.stdin.readline()
        return json.loads(line) if line else sys.exit()

    def reply(self, **reply: Any) -> None:
        """Answer with `ok`, what JSON can hold, or with an `error`."""
        try:
            self._replies.write(json.dumps(reply) + "\n")
            self._replies.flush()
        except BrokenPipeError:
            sys.exit()


def serve(answers: Mapping[str, Callable[..., Any]]) -> None:
    """Answer the parent's requests: each names one of the functions, and has its arguments."""
    channel = Channel()
    while True:
        request = channel.receive()
        try:
            reply = {"ok": answers[request.pop("do")](**request)}
        except Exception as error:
            reply = {"error": _reason(error)}
        channel.reply(**reply)


def _reason(error: Exception) -> str:
    if isinstance(error, UserError):
        return "; ".join(error.problems)
    kind, text = type(error).__name__, " ".join(str(error).split())
    # torch has no class for a CPU that is out of memory.
    if kind in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in text:
        return "ran out of memory"
    return f"{kind}: {text[:300]}"
