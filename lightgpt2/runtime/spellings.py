"""What the tokens of a vocabulary spell, as bytes in alphabetical order: those that begin with a text lie side by side."""

import json
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lightgpt2.errors import Problem, UserError
from lightgpt2.runtime.engines import Ints

_BYTE = re.compile(r"<0x([0-9A-F]{2})>\Z")
_APOSTROPHES = "'\N{RIGHT SINGLE QUOTATION MARK}"
_MIXED = re.compile(rb"[\w'\x80-\xff](?:[^\w'\x80-\xff]|[\xc2-\xff])")  # quick to look for: most tokens are one word
_PUNCTUATION = b"\xe2\x80"  # begins most characters of Unicode's general punctuation


def in_word(character: str) -> bool:
    """True for a character that words have: a letter or digit, a mark on one, an underscore or an apostrophe."""
    return (
        character.isalnum()
        or character in _APOSTROPHES
        or character == "_"
        or unicodedata.category(character)[0] == "M"
    )


class Spellings:
    """The tokens that spell something, in the order of their bytes. Special tokens and the unknown one spell nothing.

    Args:
        tokenizer: Byte-level, SentencePiece (with byte fallback or without), or of characters.

    Attributes:
        ids: The tokens `[N]`.
        bytes: What each of them spells.
        outside: Places of the tokens that begin with a character that is in no word.
        inside: Places of all others.
        adds_space: True if the tokenizer puts a space before the first word of a text.

    Raises:
        UserError: What its tokens spell depends on their neighbours, as in WordPiece.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        about = json.loads(tokenizer.to_str())
        added = tokenizer.get_added_tokens_decoder()
        silent = {index for index, token in added.items() if token.special} | _unknown(about["model"], tokenizer)
        steps = _steps(about["decoder"])
        vocabulary = tokenizer.get_vocab()
        spelled = sorted((_spelled(t, steps), index) for t, index in vocabulary.items() if index not in silent)
        spelled = [(text, index) for text, index in spelled if text]
        self.bytes = [text for text, _ in spelled]
        self.ids: Ints = np.array([index for _, index in spelled], np.int64)
        outside = np.array([_is_outside(text) for text in self.bytes], bool)
        self.outside: Ints = np.flatnonzero(outside)
        self.inside: Ints = np.flatnonzero(~outside)
        self._ending = [
            place
            for place, text in enumerate(self.bytes)
            if _MIXED.search(text) and any(map(_is_outside, _after_letters(text)))
        ]
        of = {index: text for text, index in spelled}
        self.adds_space = b"".join(of.get(index, b"") for index in tokenizer.encode("a").ids) == b" a"

    def range(self, prefix: bytes) -> tuple[int, int]:
        """First and last place, exclusive, of the tokens that begin with a text, or are it."""
        return bisect_left(self.bytes, prefix), bisect_left(self.bytes, _successor(prefix)) if prefix else len(
            self.bytes
        )

    def equal(self, text: bytes) -> tuple[int, int]:
        """First and last place, exclusive, of the tokens that spell exactly this."""
        return bisect_left(self.bytes, text), bisect_right(self.bytes, text)

    def ending(self, word: bytes) -> list[int]:
        """Places of the tokens that spell a word's end and, behind it, what is no longer in the word."""
        first, last = self.range(word)
        places = self._ending[bisect_left(self._ending, first) : bisect_left(self._ending, last)]
        return [place for place in places if _is_outside(self.bytes[place][len(word) :])]


def _successor(prefix: bytes) -> bytes:
    """The first text behind all those that begin with this one."""
    short = prefix.rstrip(b"\xff")
    return short[:-1] + bytes([short[-1] + 1]) if short else b"\xff" * 1000


def _after_letters(text: bytes) -> list[bytes]:
    """The ends of a text that lie behind a character of a word."""
    return [text[at:] for at in range(1, len(text)) if not _is_outside(text[at - 1 :])]


def _is_outside(text: bytes) -> bool:
    """True if bytes begin with a character that is in no word; of one that is cut, its first bytes decide."""
    if not text or 0x80 <= text[0] < 0xC0:
        return False
    length = next(n for n, first in ((1, 0x80), (2, 0xE0), (3, 0xF0), (4, 0x100)) if text[0] < first)
    if len(text) < length:
        return text[:2] == _PUNCTUATION
    character = text[:length].decode("utf-8", "ignore")
    return not (character and in_word(character))


def _unknown(model: Mapping[str, Any], tokenizer: Tokenizer) -> set[int]:
    index = model["unk_id"] if "unk_id" in model else tokenizer.token_to_id(model.get("unk_token") or "")
    return set() if index is None else {index}


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a decoder that change the text of a token by itself."""
    kind = decoder["type"] if decoder else "none"
    if decoder and kind == "Sequence":
        return [step for each in decoder["decoders"] for step in _steps(each)]
    if (decoder and kind in ("ByteLevel", "Metaspace", "ByteFallback")) or (
        decoder and kind == "Replace" and "String" in decoder["pattern"]
    ):
        return [decoder]
    if kind in ("Fuse", "Strip"):  # of the whole text
        return []
    what = f"what the tokens of this tokenizer spell depends on their neighbours (decoder: {kind})"
    raise UserError([Problem("model", what, "give a model with byte-level tokens, SentencePiece's or characters")])


def _byte_of_character() -> dict[str, int]:
    """The characters that byte-level tokenizers write bytes as: printable ones as they are, the others from U+0100 on."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTE_OF = _byte_of_character()


def _spelled(token: str, steps: list[Mapping[str, Any]]) -> bytes:
    for step in steps:
        kind = step["type"]
        if kind == "ByteLevel" and all(character in _BYTE_OF for character in token):
            return bytes(_BYTE_OF[character] for character in token)
        if kind == "ByteFallback" and (found := _BYTE.match(token)):
            return bytes([int(found[1], 16)])
        if kind == "Replace":
            token = token.replace(step["pattern"]["String"], step["content"])
        if kind == "Metaspace":
            token = token.replace(step["replacement"], " ")
    return token.encode("utf-8", "surrogatepass")
