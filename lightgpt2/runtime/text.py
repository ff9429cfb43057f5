"""Tokens into text while they come: whole characters only, and nothing of a stop string."""

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

_CONTEXT = 8  # tokens of the prompt: some decoders drop a space at the start of what they are given
_BROKEN = "\ufffd"  # what an incomplete character is decoded to


class Decoder:
    """Text of the tokens of one sequence, as they are added.

    Only the tokens since the last whole character are decoded, with a few before them: the work does not grow with the text.

    Args:
        tokenizer: The tokenizer; special tokens make no text.
        prompt: Tokens that come before, whose text is left out.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt[-_CONTEXT:])
        self._told = len(self._tokens)
        self._before = tokenizer.decode(self._tokens)

    def add(self, tokens: Sequence[int]) -> str:
        """The text that is complete now and was not before."""
        self._tokens += tokens
        text = self._tokenizer.decode(self._tokens)
        piece = text[len(self._before) :]
        if not piece or piece.endswith(_BROKEN):
            return ""
        self._tokens = self._tokens[self._told :]
        self._told = len(self._tokens)
        self._before = self._tokenizer.decode(self._tokens)
        return piece

    def rest(self) -> str:
        """What is left at the end: replacement characters for bytes that are no whole character."""
        return self._tokenizer.decode(self._tokens)[len(self._before) :]


class Writer:
    """The text of one sequence, up to a stop string.

    Args:
        tokenizer: The tokenizer.
        prompt: Tokens that come before.
        stop: Texts that end it, and are no part of it.
        tell: Called with each new piece; the pieces make up the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        stop: Sequence[str] = (),
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._decoder = Decoder(tokenizer, prompt)
        self._stop, self._tell = tuple(stop), tell
        self._pieces: list[str] = []
        self._held = ""  # may be the start of a stop string
        self._waiting: list[int] = []
        self.stopped = False

    def add(self, token: int) -> None:
        """Adds a token; after that `stopped` says whether a stop string is complete."""
        if self._stop or self._tell:
            self._write(self._decoder.add([token]))
        else:
            self._waiting.append(token)

    def finish(self) -> str:
        """Tells what was held back, and returns the whole text."""
        if not self.stopped:
            self._write(self._decoder.add(self._waiting) + self._decoder.rest())
            if not self.stopped:
                self._give(self._held)
        return "".join(self._pieces)

    def _write(self, piece: str) -> None:
        self._held += piece
        found = [place for text in self._stop if (place := self._held.find(text)) >= 0]
        self.stopped = bool(found)
        sure = min(found) if found else len(self._held) - self._begun()
        self._give(self._held[:sure])
        self._held = self._held[sure:]

    def _begun(self) -> int:
        """Length of the longest end of the held text that a stop string starts with."""
        most = max(map(len, self._stop), default=1) - 1
        lengths = range(min(most, len(self._held)), 0, -1)
        return next((n for n in lengths if any(text.startswith(self._held[-n:]) for text in self._stop)), 0)

    def _give(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            if self._tell:
                self._tell(text)
