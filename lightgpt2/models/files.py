"""Files and folders that exist whole or not at all, whatever interrupts the writing."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightgpt2.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _FullError(UserError):
    """There is no room for what was to be written."""


def exists(name: str) -> bool:
    """True if a file or folder of this name is there; False also for a name that none can have."""
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, of an unknown user, with a NUL
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_full(error: BaseException | None) -> bool:
    """True if an error, or one that it was raised from, says that the disk or the quota is used up."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        # safetensors, torch's zip writer and numpy's `tofile` report the operating system's error as text only.
        if any(text in str(error) for text in (*map(os.strerror, _FULL), "unexpected pos", " requested and ")):
            return True
        error = error.__cause__ or error.__context__
    return False


def remove(path: Path) -> None:
    """Remove a file, folder or link, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to; removed again if anything goes wrong."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    except BaseException as error:
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        if isinstance(error, UserError) and not isinstance(error, _FullError):
            raise  # it says itself what is wrong, even if that is another disk that is full
        if _is_full(error):
            raise _FullError(
                f"{target}: the disk is full; what was saved before is untouched. Free some space and run it again, a "
                "training with --ckpt_path last"
            ) from error
        raise


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary path to write to, which becomes `target` in one step; the old one stays if anything goes wrong."""
    with _temporary(target) as temporary:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `target`; the old one stays if anything goes wrong."""
    with _temporary(target) as temporary:
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had the same number
        temporary.mkdir()
        yield temporary
        for path in temporary.glob("*.safetensors"):  # which only their owner may read
            path.chmod(temporary.stat().st_mode & 0o666)
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        if target.exists():  # a non-empty folder cannot be replaced in one step; the gap is two renames long
            target.replace(old)
        temporary.replace(target)
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)


def restore_folder(target: Path) -> None:
    """Clean up after a process that was killed while `atomic_folder` replaced `target`."""
    for old in target.parent.glob(f".{target.name}.*.old"):
        if target.exists():
            shutil.rmtree(old)
        else:  # killed between the two renames
            old.replace(target)


def write_json(target: Path, value: Any) -> None:
    """Write JSON atomically."""
    with atomic_file(target) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_megabytes(folder: Path) -> float:
    """The size of the weight files of a model folder in 10^6 bytes; of shards, those that the index names."""
    files = [*folder.glob("*.safetensors")] or [*folder.glob("pytorch_model*.bin")]
    if (
        index := folder / "model.safetensors.index.json"
    ).is_file():  # whole downloads have the weights in other forms, too
        files = [folder / name for name in {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}]
    return sum(path.stat().st_size for path in files) / 1e6
