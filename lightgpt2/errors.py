"""The one way a person's mistake is reported."""

from collections.abc import Sequence


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
