"""Processes that measure on request. A worker imports only what it measures."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from lightgpt2.errors import UserError

_ROOT = Path(__file__).parents[2]
_PATIENCE = 10.0
_Arm = TypeVar("_Arm")


class ArmFailed(Exception):  # noqa: N818 - it says what became of an arm
    """An arm could not be measured; the text says why."""


class Child:
    """A fresh Python process that measures one arm; it runs a module that calls `serve`.

    It is in its own session: a Ctrl-C at the terminal reaches the parent alone, which then ends its children. A child
    whose parent was killed ends by itself when it finds the pipe closed. What it prints is kept for its last words.
    """

    def __init__(self, module: str) -> None:
        self._printed = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - see close
        self._pipe, theirs = Pipe()
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            stdout=self._printed, stderr=self._printed, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"},
        )  # fmt: skip
        theirs.close()
        self._ready = False

    def wait(self) -> None:
        """Returns when the child has imported what it needs; `ArmFailed` if it has died."""
        try:
            self._ready = self._ready or self._pipe.recv()
        except (EOFError, OSError) as closed:
            raise ArmFailed(self._death()) from closed

    def ask(self, do: str, **request: Any) -> Any:
        """The answer to one of the requests that the child serves; `ArmFailed` if it reports an error, or has died."""
        self.wait()
        try:
            self._pipe.send((do, request))
            answer, error = self._pipe.recv()
        except (EOFError, OSError) as closed:
            raise ArmFailed(self._death()) from closed
        if error:
            raise ArmFailed(error)
        return answer

    def _death(self) -> str:
        code = self.process.wait(_PATIENCE)
        if code == -signal.SIGKILL:
            return "killed (SIGKILL), as the system does when memory runs out"
        if code < 0:
            return f"killed ({signal.Signals(-code).name})"
        self._printed.seek(0)
        said = [line.strip() for line in self._printed if line.strip()]
        return f"ended with exit code {code}" + (f": {said[-1][:300]}" if said else "")

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self._pipe.close()
        self._printed.close()


class Children(contextlib.ExitStack):
    """A `Child` for each arm; one that fails is ended, and the others go on if they can.

    All start with the first request and import at once; it is sent when all have, and has the machine to itself.
    """

    def __init__(self, module: str, arms: Iterable[str], required: Container[str] = ()) -> None:
        super().__init__()
        self._module, self._arms, self._required = module, [*arms], required
        self._children: dict[str, Child] = {}
        self.errors: dict[str, str] = {}  # why arms failed, by their names

    def ask(self, name: str, do: str, **request: Any) -> Any:
        """The answer of an arm's child; empty once it has failed."""
        if not self._children:
            for each in self._arms:
                self._children[each] = Child(self._module)
                self.callback(self._children[each].close)
            for each, child in self._children.items():
                self._try(each, child.wait)
        return self._try(name, partial(self._children[name].ask, do, **request)) or {}

    def _try(self, name: str, call: Callable[[], Any]) -> Any:
        """What a call to an arm's child returns; None once it has failed."""
        if name in self.errors:
            return None
        try:
            return call()
        except ArmFailed as failure:
            if name in self._required:
                raise ArmFailed(f"{name}: {failure}") from failure
            self.errors[name] = str(failure)
            self._children[name].close()  # the others may have its memory
            return None


def turns(arms: Sequence[_Arm], rounds: int) -> Iterator[_Arm]:
    """The order in which arms are measured: every second round backwards, so that none always follows the same other one."""
    for number in range(rounds):
        yield from arms[:: 1 if number % 2 == 0 else -1]


def parent() -> "Connection[Any, Any]":
    """A child's end of the pipe, once it can serve.

    Requests come as a name and arguments, and are answered by an answer and an error.
    """
    pipe = Connection(int(sys.argv[1]))
    with contextlib.suppress(OSError):  # of a parent that is gone
        pipe.send(True)
    return pipe


def serve(answers: Mapping[str, Callable[..., Any]]) -> None:
    """Answer the parent's requests, each of which names one of the functions, until it is gone."""
    pipe = parent()
    with contextlib.suppress(EOFError, OSError):
        while True:
            do, request = pipe.recv()
            try:
                reply = answers[do](**request), ""
            except Exception as error:
                reply = None, _reason(error)
            pipe.send(reply)


def _reason(error: Exception) -> str:
    if isinstance(error, UserError):
        return "; ".join(error.problems)
    kind, text = type(error).__name__, " ".join(str(error).split())
    # torch has no class for a CPU that is out of memory.
    if kind in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in text:
        return "ran out of memory"
    return f"{kind}: {text[:300]}"
