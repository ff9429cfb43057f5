"""A conversation on the terminal: a line is a message, and the answer is shown while it is written."""

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from io import TextIOWrapper
from types import FrameType
from typing import Any

from lightgpt2 import signals
from lightgpt2.errors import UserError, tell
from lightgpt2.models.chat import Message
from lightgpt2.runtime.language_model import LanguageModel

_FREE = 4  # an answer has at least this part of the context, as long as there are older messages to leave out


def converse(model: LanguageModel, options: Mapping[str, Any], system: Sequence[Message] = ()) -> None:
    """Answer the lines of standard input until it ends; an interrupt during an answer stops that answer only.

    Args:
        model: The model.
        options: As for `LanguageModel.generate`.
        system: What stands before the conversation, and is never left out.

    Raises:
        UserError: The model has no chat template, or that does not allow the system message.
    """
    model.room([*system, _by("user", "?")])
    turns: list[Message] = []
    handlers = signals.on_request(_stop)
    try:
        for line in _lines():
            try:
                asked = _fitting(model, system, [*turns, _by("user", line)])
                turns = [*asked, _by("assistant", _answer(model, [*system, *asked], options))]
            except UserError as error:
                tell(f"lightgpt2: {'; '.join(problem.what for problem in error.problems)}", sys.stderr)
    finally:
        signals.restore(handlers)


def _stop(signum: int, _: FrameType | None) -> None:
    """Interrupts an answer at each Ctrl-C; what else asks the process to stop ends the conversation."""
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    print(file=sys.stderr)
    tell("lightgpt2: asked to stop; the conversation is over", sys.stderr)
    sys.exit(130)


def _answer(model: LanguageModel, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
    """An answer, which is shown while it is written, as far as that goes."""
    pieces: list[str] = []

    def show(_: int, piece: str) -> None:
        pieces.append(piece)
        print(piece, end="", flush=True)

    with suppress(KeyboardInterrupt):
        [*model.texts([messages], options, show)]
    print(flush=True)
    return "".join(pieces)


def _by(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _lines() -> Iterator[str]:
    """The lines of standard input that are not blank, with a prompt on a terminal."""
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        tell("Ctrl-C stops an answer, Ctrl-D ends the conversation.", sys.stderr)
        with suppress(ImportError):  # not on every system
            import readline  # noqa: F401 - it lets `input` edit the line
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # refused as a message, and the next line is read
    with suppress(EOFError):
        while True:
            try:
                line = input("> " if on_terminal else "")
            except KeyboardInterrupt:  # which came after the answer's end
                if not on_terminal:
                    raise
                line = ""
                print(flush=True)
            if line.strip():
                yield line
    if on_terminal:
        print(flush=True)


def _fitting(model: LanguageModel, system: Sequence[Message], turns: list[Message]) -> list[Message]:
    """The last turns, from a user's on, that leave room for an answer."""
    most, kept = model.engine.context, turns
    while (room := model.room([*system, *kept])) < most // _FREE and len(kept) > 1:
        kept = kept[2:]
    if room > 0 and (left_out := len(turns) - len(kept)):
        tell(
            f"lightgpt2: the first {left_out} messages are left out, for which {most} positions are too few", sys.stderr
        )
    return kept
