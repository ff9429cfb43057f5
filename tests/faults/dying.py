"""Runs the command with a fault at one of its operations on files: `python -m tests.faults.dying FAULT N ARGS`.

The fault is a signal to the process itself, before its N-th operation; the name of an error, which that operation and every later
one meets; or FSIZE, where no file can grow beyond N bytes. `COUNT 0` writes how many operations there are to `operations`.
"""

import errno
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from lightgpt2.__main__ import main

_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "os.chmod")


def _path(event: str, args: tuple[Any, ...]) -> str | None:
    """The path below the working folder that an operation is about to change; None for one that changes nothing there."""
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if not (writes or event in _CHANGES) or not isinstance(args[0], str | Path):
        return None
    path = Path(os.path.abspath(args[0]))
    return str(path) if path.is_relative_to(_FOLDER) else None


def _at(event: str, args: tuple[Any, ...]) -> None:
    global _seen
    if (path := _path(event, args)) is None:
        return
    _seen += 1
    if hasattr(signal, _fault) and _seen == _number:
        os.kill(os.getpid(), getattr(signal, _fault))
    elif hasattr(errno, _fault) and _seen >= _number:
        code = getattr(errno, _fault)
        raise OSError(code, os.strerror(code), path)


if __name__ == "__main__":
    _FOLDER, _fault, _number, _seen = Path.cwd(), sys.argv[1], int(sys.argv[2]), 0
    del sys.argv[1:3]
    if _fault == "FSIZE":
        resource.setrlimit(resource.RLIMIT_FSIZE, (_number, _number))
    else:
        sys.addaudithook(_at)
    try:
        main()
    finally:
        if _fault == "COUNT":
            Path("operations").write_text(str(_seen))
