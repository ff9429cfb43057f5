"""A worker process, seen from the one that started it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_PATIENCE = 10.0


class ArmFailed(Exception):  # noqa: N818 - it says what became of an arm
    """An arm could not be measured; the text says why."""


class Child:
    """A fresh Python process that measures one arm.

    It is in a session of its own: a Ctrl-C at the terminal reaches the parent alone, which then ends its children. A child
    whose parent was killed ends by itself when it finds the pipe closed.

    Args:
        module: What it runs: a module that answers lines of JSON on its standard output.
    """

    def __init__(self, module: str = "lightgpt2.measure.worker") -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - see close
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            encoding="utf-8",
            start_new_session=True,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for what comes back.

        Args:
            do: `load`, `round` or `profile`.
            request: What belongs to it.

        Raises:
            ArmFailed: The child reports an error, or has died.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, which shows in what it does not answer
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
        try:
            reply: dict[str, Any] = json.loads(self.process.stdout.readline())
        except ValueError as error:  # nothing, or half a line
            raise ArmFailed(self._death()) from error
        if "error" in reply:
            raise ArmFailed(reply["error"])
        result: dict[str, Any] = reply["ok"]
        return result

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
        """Ends the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # a request that it never read
                    stream.close()
