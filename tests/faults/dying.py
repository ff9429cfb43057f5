"""Runs the command with a fault at one of its operations on files: `python -m tests.faults.dying FAULT N ARGS`."""

import errno
import itertools
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightgpt2.__main__ import main

_CREATES = ("open", "os.mkdir", "os.rename")
_REMOVES = ("os.remove", "os.rmdir")


def inject(fault: str, number: int) -> "Iterator[int]":
    """Arranges for a fault in this process, in whatever it changes below its working folder; counts its operations.

    Args:
        fault: A signal, to the process itself and before the operation; an error, that this operation and the later ones meet
            (ENOSPC: but removals); or FSIZE.
        number: Of the operation, from 1 on; 0 is none. With FSIZE the bytes beyond which no file can grow.
    """
    folder, counter = Path.cwd(), itertools.count()
    touched = _CREATES if fault == "ENOSPC" else (*_CREATES, *_REMOVES)

    def at(event: str, args: tuple[Any, ...]) -> None:
        if event not in touched or not isinstance(args[0], str | Path) or (event == "open" and not _writes(args[2])):
            return
        if not Path(args[0]).absolute().is_relative_to(folder):
            return
        seen = next(counter) + 1
        if hasattr(signal, fault) and seen == number:
            os.kill(os.getpid(), getattr(signal, fault))
        elif hasattr(errno, fault) and 0 < number <= seen:
            code = getattr(errno, fault)
            raise OSError(code, os.strerror(code), str(args[0]))

    if fault == "FSIZE":
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
    else:
        sys.addaudithook(at)
    return counter


def _writes(flags: Any) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


if __name__ == "__main__":
    wanted, number = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:3]
    operations = inject(wanted, number)
    main()
    if wanted == "COUNT":
        Path("operations").write_text(str(next(operations)))
