"""Runs the command in a terminal, as if somebody sat there: `python -m tests.faults.terminal STEPS ARGS`.

STEPS is a JSON list of pairs: `shows` and `has` wait for a pattern on the terminal and for a file, `types` sends text, `asks` a
signal, and `ends` waits for the end. Behind the last one the terminal is closed. What it has shown is printed.
"""

import json
import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path

from lightgpt2.__main__ import main

_SECONDS = 60  # for a step


class Terminal:
    """A command and what it has shown; `seen` is how much of that the steps have gone past."""

    def __init__(self) -> None:
        self.shown, self.seen, self.ended = "", 0, False
        self.child, self._side = pty.fork()

    def do(self, step: str, value: str) -> bool:
        """Take a step; True if it is done."""
        if step == "types":
            time.sleep(0.2)  # readline sees a Ctrl-C with the next key only, if it comes before it waits for keys
            os.write(self._side, value.encode())
        elif step == "asks":
            os.kill(self.child, signal.Signals[value])
        elif step == "shows":
            found = re.compile(value, re.DOTALL).search(self.shown, self.seen)
            self.seen = found.end() if found else self.seen
            return bool(found)
        return step in ("types", "asks") or (self.ended if step == "ends" else Path(value).exists())

    def read(self) -> None:
        """Take what the command shows in the next moment: it would wait for a reader else."""
        if not self.ended and select.select([self._side], [], [], 0.02)[0]:
            try:
                self.shown += os.read(self._side, 1 << 16).decode(errors="replace")
            except OSError:
                self.ended = True

    def close(self) -> int:
        """The exit code."""
        os.close(self._side)
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])


if __name__ == "__main__":
    steps = json.loads(sys.argv.pop(1))
    terminal = Terminal()
    if terminal.child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        main()
        sys.exit()
    for step in steps:
        deadline = time.monotonic() + _SECONDS
        while not terminal.do(*step):
            terminal.read()
            if time.monotonic() > deadline:
                os.kill(terminal.child, signal.SIGKILL)
                sys.exit(f"waited in vain: {step}\n{terminal.shown}")
    print(terminal.shown)
    sys.exit(terminal.close())
