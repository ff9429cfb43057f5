"""Tokens into text while they come: whole characters only, and no part of a stop text."""

import re
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

_BROKEN = "\ufffd"  # what an incomplete character is decoded to
_LONGEST = 4  # bytes of a character
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token of byte fallback


def _alike(one: str, other: str) -> int:
    """Length of the beginning that two texts have in common."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class Writer:
    """The text of one sequence behind the tokens of its prompt, up to a stop text. Special tokens have no text.

    It is what the tokenizer decodes of the whole sequence, behind the whole characters of the prompt. Only the tokens since the
    last whole character are decoded, with those of the piece before them, as some decoders drop a space at the start: the work
    does not grow with the text. Tokens of byte fallback wait for the last of their row, as one wrong byte spoils all of it.
    What it ends with if it is one of `stop_strings` stays, with all of the token that completes it.
    `on_text` is called with each new piece; together they are the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        stop: Sequence[str] = (),
        on_text: Callable[[str], None] | None = None,
        stop_strings: Sequence[str] = (),
    ) -> None:
        self._tokenizer, self._tokens = tokenizer, list(prompt)
        self._stop, self._stop_strings, self._on_text = tuple(stop), tuple(stop_strings), on_text
        self._text = ""
        self._shown = 0  # length of what was handed out: the rest may be the start of a stop text
        self._in_bytes = False  # whether the last token that has text is a byte
        self.stopped = False
        self._settle()

    def add(self, token: int) -> None:
        """Add a token; after that `stopped` says whether a stop text is complete."""
        self._tokens.append(token)
        if not self._stop and not self._stop_strings and not self._on_text:  # all is decoded at the end
            return
        if _BYTE.fullmatch(self._tokenizer.id_to_token(token) or ""):
            self._in_bytes = True
        elif self._tokenizer.decode([token]):
            self._in_bytes = False
        piece = "" if self._in_bytes else self._rest()
        if piece and not piece.endswith(_BROKEN):
            self._tokens = self._tokens[self._done :]
            self._settle()
            self._write(piece)

    def finish(self) -> str:
        """Hand out what was held back, and return the whole text; bytes of incomplete characters are replaced."""
        if not self.stopped:
            self._write(self._rest())
            self._show(len(self._text))
        return self._text

    def _settle(self) -> None:
        """Take what there is for written, but for a character at its end that is cut in two."""
        self._done, self._before = len(self._tokens), self._tokenizer.decode(self._tokens)
        shorter = (self._tokenizer.decode(self._tokens[: self._done - cut]) for cut in range(_LONGEST))
        self._whole = next((text for text in shorter if not text.endswith(_BROKEN)), self._before)

    def _rest(self) -> str:
        """The text that was not written yet."""
        text = self._tokenizer.decode(self._tokens)
        if self._before == self._whole and not text.startswith(self._before):
            # Bytes that make no character, and spoil those of the prompt.
            return self._tokenizer.decode(self._tokens[self._done :])
        return text[max(_alike(text, old) for old in (self._before, self._whole)) :]

    def _write(self, piece: str) -> None:
        self._text += piece
        recent = self._text[-len(piece) - max(map(len, self._stop_strings), default=0) :] if piece else ""
        self.stopped = any(text in recent for text in self._stop_strings)
        if found := [place for text in self._stop if (place := self._text.find(text, self._shown)) >= 0]:
            self.stopped, self._text = True, self._text[: min(found)]
        self._show(len(self._text) - (0 if self.stopped else self._begun()))

    def _begun(self) -> int:
        """Length of the longest end of the held text that a stop text starts with."""
        most = max(map(len, self._stop), default=1) - 1
        lengths = range(min(most, len(self._text) - self._shown), 0, -1)
        return next((n for n in lengths if any(text.startswith(self._text[-n:]) for text in self._stop)), 0)

    def _show(self, end: int) -> None:
        if self._on_text and end > self._shown:
            self._on_text(self._text[self._shown : end])
        self._shown = end
