"""Runs the command in a terminal that is closed once a file is there: `python -m tests.faults.terminal FILE ARGS`."""

import contextlib
import os
import pty
import signal
import sys
import time
from pathlib import Path

from lightgpt2.__main__ import main

if __name__ == "__main__":
    awaited = Path(sys.argv.pop(1))
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        main()
        sys.exit()
    os.set_blocking(terminal, False)
    while not awaited.exists():
        time.sleep(0.01)
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 1 << 16)  # or the command waits for a reader
    os.close(terminal)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
