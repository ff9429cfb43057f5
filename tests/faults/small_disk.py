"""Runs the command on a disk without room, and again with room: `python -m tests.faults.small_disk BYTES N ARGS MORE`.

The disk holds what the working folder does and has so many BYTES free. MORE are the last N arguments, for the second time. What
the disk holds after each time is in `first` and `second`.
"""

import ctypes
import os
import shutil
import sys
from pathlib import Path

from lightgpt2.__main__ import main

_NEW_USER, _NEW_MOUNTS, _REMOUNT = 0x10000000, 0x00020000, 32  # of <sched.h> and <sys/mount.h>
_LIBC = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: object) -> None:
    if getattr(_LIBC, name)(*args):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def isolate() -> None:
    """Let this process mount disks that nobody else sees, whoever runs it."""
    user, group = os.getuid(), os.getgid()
    _call("unshare", _NEW_USER | _NEW_MOUNTS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(text)


def _mount(disk: Path, size: int, flags: int = 0) -> None:
    _call("mount", b"none", os.fsencode(disk), b"tmpfs", flags, f"size={size}".encode())


def _run(disk: Path, args: list[str]) -> int:
    """The exit code of the command in another process."""
    if (child := os.fork()) == 0:
        os.chdir(disk)
        sys.argv[1:] = args
        main()
        sys.exit()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    size, more, args = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    work = Path.cwd()
    disk = work.parent / "disk"
    disk.mkdir()
    isolate()
    _mount(disk, 2**30)
    shutil.copytree(work, disk, dirs_exist_ok=True)
    state = os.statvfs(disk)
    _mount(disk, state.f_frsize * (state.f_blocks - state.f_bfree) + size, _REMOUNT)
    code = _run(disk, args[: len(args) - more])
    shutil.copytree(disk, work / "first")
    _mount(disk, 2**30, _REMOUNT)
    again = _run(disk, args)
    shutil.copytree(disk, work / "second")
    sys.exit(code if again == 0 else 99)
