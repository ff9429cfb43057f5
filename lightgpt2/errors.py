"""The one way a person's mistake is reported."""

import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, TextIO

from lightgpt2.signals import INTERRUPTED

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk or the quota is used up
# What a file system answers where it does not let something be read or written.
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


class Problem(str):
    """A mistake that a person can mend; as text it is one line, `key: what; fix`.

    Args:
        key: The config key, the option or the file.
        what: What is wrong with it: "must be at most 8, got 9".
        fix: What to do about it.
    """

    key: str
    what: str
    fix: str

    def __new__(cls, key: str, what: str, fix: str = "") -> Self:
        made = super().__new__(cls, ": ".join(filter(None, [key, "; ".join(filter(None, [what, fix]))])))
        made.key, made.what, made.fix = key, what, fix
        return made

    def __getnewargs__(self) -> Any:
        """The arguments to make it again from, in another process."""
        return self.key, self.what, self.fix

    def under(self, prefix: str) -> "Problem":
        """The same problem with its key inside another: `lr` under `model.optimizer` is `model.optimizer.lr`."""
        return self._at(f"{prefix}.{self.key}" if self.key else prefix)

    def renamed(self, names: Mapping[str, str]) -> "Problem":
        """The same problem with the beginning of its key renamed: `{"start.model": "teacher"}`; the longest that fits wins."""
        fits = [old for old in names if f"{self.key}.".startswith(f"{old}.")]
        if not fits:
            return self
        old = max(fits, key=len)
        return self._at(f"{names[old]}{self.key[len(old) :]}".lstrip("."))

    def _at(self, key: str) -> "Problem":
        """The same problem with another key, also where a fix names it as an option."""
        named = f"--{self.key} "
        return Problem(key, *(text.replace(named, f"--{key} ") if self.key else text for text in (self.what, self.fix)))


def _read(text: str) -> Problem:
    key, colon, rest = text.partition(": ")
    return Problem(key, rest) if colon else Problem("", text)


class UserError(Exception):
    """Something that a person can mend; the CLI prints it without a traceback and exits with 2.

    Args:
        problems: One or more problems; a plain string is split at its first colon.
    """

    problems: list[Problem]

    def __init__(self, problems: str | Iterable[str]) -> None:
        texts = [problems] if isinstance(problems, str) else problems
        self.problems = [text if isinstance(text, Problem) else _read(text) for text in texts]
        super().__init__("\n".join(self.problems))


def cut(text: str, most: int = 80) -> str:
    """A text of a person's, as short as a message needs it."""
    return text if len(text) < most else f"{text[: most - 3]}..."


def full_disk(path: object) -> Problem:
    """What is said where something cannot be written for lack of room."""
    fix = "Free some space and run it again, a training with --ckpt_path last"
    return Problem(str(path), "the disk is full", f"what was saved before is untouched. {fix}")


class Interrupted(UserError):  # noqa: N818 - not an error
    """Training stopped at the person's request, after saving; the CLI exits with 130."""


def refuse(problems: Iterable[str]) -> None:
    """Raise problems as one `UserError`, if there are any."""
    if found := [*problems]:
        raise UserError(found)


def tell(text: str, stream: TextIO | None = None) -> None:
    """Print a line, in the first of a machine's processes that train together; control characters as Python writes them."""
    # Lightning and torchrun set the first variable, srun the second.
    if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
        shown = (char if char.isprintable() else ascii(char)[1:-1] for char in text)
        print("".join(shown), file=stream, flush=True)


@contextmanager
def exit_with_message() -> Iterator[None]:
    """End the process with the message of a `UserError`, and nothing else, where one is raised inside."""
    try:
        yield
    except UserError as error:
        for problem in error.problems:
            tell(f"lightgpt2: {'' if isinstance(error, Interrupted) else 'error: '}{problem}", sys.stderr)
        sys.exit(130 if isinstance(error, Interrupted) else 2)
    except OSError as error:
        if error.errno in FULL:
            problem = full_disk(error.filename or "")
        elif error.errno in _REFUSED and error.filename:
            problem = Problem(str(error.filename), str(error.strerror), "allow it, or give another place")
        else:
            raise
        tell(f"lightgpt2: error: {problem}", sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning makes an exit of a Ctrl-C that falls outside the training steps.
        if not isinstance(stop.__context__ if isinstance(stop, SystemExit) else stop, KeyboardInterrupt):
            raise
        tell(f"lightgpt2: {INTERRUPTED}", sys.stderr)
        sys.exit(130)
