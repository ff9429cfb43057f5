"""What is answered in the place of a result, as OpenAI's clients read it."""

import sys
import traceback
from collections.abc import Mapping
from typing import Any

from lightgpt2.errors import UserError, tell
from lightgpt2.runtime.language_model import TooLong

_NAMES = {"max_new_tokens": "max_tokens"}  # of the runtime's options, as clients call them
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "too_large", 415: "unsupported_media_type"}


class Refusal(Exception):  # noqa: N818 - it may also be the server's own state
    """An answer of status 400 or above.

    Args:
        status: The HTTP status.
        message: One line for a person.
        param: The field that is wrong.
        code: The error code, which programs read; by default the one that belongs to the status.
        headers: Further headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, dict(headers or {})
        self.code = code or _CODES.get(status)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Gone(Refusal):
    """The client has gone: nobody reads the answer."""

    def __init__(self) -> None:
        super().__init__(499, "the client has gone")


def refusal_of(error: UserError, prompt: str = "prompt") -> Refusal:
    """What is answered to a person's mistake; `prompt` is the field that has the prompts."""
    problems = [problem.renamed(_NAMES | {"prompt": prompt}) for problem in error.problems]
    key = problems[0].key
    param = prompt if key.startswith("prompt ") else key or None  # `prompt 2` of several
    too_long = any(isinstance(each, TooLong) for each in error.problems)
    return Refusal(400, "; ".join(problems), param, "context_length_exceeded" if too_long else None)


def mistake(error: Exception) -> Refusal:
    """What is answered to an error that nobody expects. Its place is printed, and not its text, which may be a client's."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    tell(f"lightgpt2: {type(error).__name__} in {place.filename}, line {place.lineno}", sys.stderr)
    return Refusal(500, "the server has made a mistake, and has printed its place")
