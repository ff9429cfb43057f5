"""The one way a person's mistake is reported."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO


class UserError(Exception):
    """Something the person at the keyboard can mend; the CLI prints it without a traceback and exits with 2.

    Args:
        problems: One line each: the config key (or the file), what is wrong with it, and the fix.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class Interrupted(UserError):  # noqa: N818 - not an error
    """Training stopped at the person's request, after saving; the CLI exits with 130."""


def tell(text: str, stream: TextIO | None = None) -> None:
    """Prints a line, in the first of the processes that Lightning launches."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(text, file=stream, flush=True)


@contextmanager
def exit_with_message() -> Iterator[None]:
    """Ends the process with the message of a `UserError`, and nothing else, where one is raised inside."""
    try:
        yield
    except UserError as error:
        for problem in error.problems:
            tell(f"lightgpt2: {'' if isinstance(error, Interrupted) else 'error: '}{problem}", sys.stderr)
        sys.exit(130 if isinstance(error, Interrupted) else 2)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning makes an exit of a Ctrl-C that falls outside the training steps.
        if not isinstance(stop.__context__ if isinstance(stop, SystemExit) else stop, KeyboardInterrupt):
            raise
        tell("lightgpt2: interrupted between steps; what was saved is untouched", sys.stderr)
        sys.exit(130)
