"""Files and folders that exist whole or not at all, whatever interrupts the writing."""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightgpt2.errors import FULL, UserError, full_disk

_CHECKSUMS = "checksums.json"
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.\w+\.(tmp|old)", re.DOTALL)


class _FullError(UserError):
    """There is no room for what was to be written."""


def exists(name: str) -> bool:
    """True if a file or folder of this name is there; False also for a name that none can have."""
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, of an unknown user, with a NUL
        return False


def is_file(path: Path) -> bool:
    """True if a file is there; False also for a path that none can have."""
    return exists(str(path)) and path.is_file()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_full(error: BaseException | None) -> bool:
    """True if an error, or one that it was raised from, says that the disk or the quota is used up."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        # safetensors, torch's zip writer and numpy's `tofile` report the operating system's error as text only.
        if any(text in str(error) for text in (*map(os.strerror, FULL), "unexpected pos", " requested and ")):
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
def written(target: Path) -> Iterator[None]:
    """Say in one line that a file or folder cannot be written, where the disk is found full inside."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, UserError) and not isinstance(error, _FullError):
            raise  # it says itself what is wrong, even if that is another disk that is full
        if _is_full(error):
            raise _FullError([full_disk(target)]) from error
        raise


def _lock(path: Path, wait: bool = False) -> int | None:
    """A descriptor that holds the lock of a file or folder, for as long as this process lives; None if it is not to be had."""
    held = None
    with suppress(OSError):  # another process holds it, or the file system has no locks, or it is a link
        held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        fcntl.flock(held, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return held
    _unlock(held)
    return None


def _unlock(held: int | None) -> None:
    if held is not None:
        os.close(held)


def clear_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes have left in a folder that is written by this module alone; `name`: of one target.

    What a living process writes is locked, and stays. A folder that was being replaced is there again.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        left = _LEFTOVER.fullmatch(path.name)
        if not left or name not in (None, left["name"]) or (held := _lock(path)) is None:
            continue
        target = folder / left["name"]
        with suppress(OSError):  # another user's
            if path.suffix == ".old" and not target.exists():  # killed between the two renames
                path.replace(target)
            else:
                remove(path)
        _unlock(held)


@contextmanager
def _temporary(target: Path, create: Callable[[Path], None]) -> Iterator[Path]:
    """A path beside `target` to write to, locked; removed again if anything goes wrong."""
    with written(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(target.parent, target.name)
        temporary, held = _beside(target, "tmp"), None
        try:
            while not temporary.exists():  # again if another process took it for a leftover before it was locked
                create(temporary)
                _unlock(held)
                held = _lock(temporary, wait=True)
            yield temporary
        except BaseException:
            with suppress(OSError):  # a file system that refuses it, which the error says
                remove(temporary)
            raise
        finally:
            _unlock(held)


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.{suffix}")


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary path to write to, which becomes `target` in one step; the old one stays if anything goes wrong."""
    if target.is_dir():
        raise UserError(f"{target}: must be a file, got a folder; remove it")
    with _temporary(target, Path.touch) as temporary:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `target`; the old one stays if anything goes wrong."""
    with _temporary(target, Path.mkdir) as temporary:
        yield temporary
        for path in temporary.glob("*.safetensors"):  # which only their owner may read
            path.chmod(temporary.stat().st_mode & 0o666)
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        old = _beside(target, "old")
        held = _lock(target)
        try:
            if target.exists():  # a non-empty folder cannot be replaced in one step; the gap is two renames long
                target.replace(old)
            temporary.replace(target)
            _sync(target.parent)
        finally:
            _unlock(held)
            if target.exists():
                remove(
                    old
                )  # at once: where one folder is written inside another's place, its lock is held by this process
            clear_leftovers(target.parent, target.name)  # `old` comes back if its place is empty


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A temporary folder inside another, which is gone afterwards."""
    with _temporary(parent / name, Path.mkdir) as temporary:
        yield temporary
        remove(temporary)


def write_json(target: Path, value: Any) -> None:
    """Write JSON atomically."""
    with atomic_file(target) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path) -> str:
    """As `sha256_file`, but a large file is read once as long as its time, size and inode stay what they are."""
    stat = path.stat()
    return _digest_of(path.absolute(), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache
def _digest_of(path: Path, *stamp: int) -> str:
    return sha256_file(path)


def write_checksums(folder: Path) -> None:
    """Write the checksums of a folder's files, those whose names have a suffix, beside them."""
    write_json(folder / _CHECKSUMS, {path.name: digest(path) for path in sorted(folder.glob("[!.]*.*"))})


def is_whole(folder: Path) -> bool:
    """True if the files that a folder was left with are there, each as it was."""
    try:
        checksums = json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8"))
        return all(digest(folder / name) == checksum for name, checksum in checksums.items())
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def folder_megabytes(folder: Path) -> float:
    """The size of the weight files of a model folder in 10^6 bytes."""
    return sum(path.stat().st_size for path in weight_files(folder)) / 1e6


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads the weights of a folder from: whole downloads have them in other forms, too."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (whole := folder / name).is_file():
            return [whole]
        if (index := folder / f"{name}.index.json").is_file():
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return [folder / shard for shard in sorted({*shards.values()})]
    return [*folder.glob("*.safetensors")] or [*folder.glob("pytorch_model*.bin")]
