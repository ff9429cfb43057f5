"""The signals that ask a process to stop: Ctrl-C, SIGTERM, and the SIGHUP of a terminal that is closed."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = "interrupted between steps; what was saved is untouched"


def on_request(stop: Callable[[int, FrameType | None], Any]) -> dict[signal.Signals, Any]:
    """Call `stop` at each of the signals, but those that are ignored, as SIGHUP is under nohup; the handlers before."""

    def call(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP:
            _leave_terminal()
        stop(signum, frame)

    heeded = [each for each in ASKING if signal.getsignal(each) is not signal.SIG_IGN]
    return {each: signal.signal(each, call) for each in heeded}


def restore(handlers: Mapping[signal.Signals, Any]) -> None:
    """Put back handlers that were there before."""
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def interrupt(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, whatever the signal; a second signal ends the process silently.

    During an import the process ends at once, because an exception there would leave a module half loaded. In some
    callbacks Python would even print a traceback and continue. No file is damaged, because files are written atomically.
    """
    for each in ASKING:
        signal.signal(each, signal.SIG_DFL)
    while frame:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                print(f"lightgpt2: {INTERRUPTED}", file=sys.stderr, flush=True)
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave_terminal() -> None:
    """Print to nowhere what was to go to a terminal that is gone: an error of the writing would stop what saves."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
