"""The completion of a text that is being typed: the rest of its last word, and the words after it."""

import codecs
import heapq
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightgpt2.errors import Problem, UserError, refuse, tell
from lightgpt2.models.vocabulary import is_unicode
from lightgpt2.runtime.language_model import LanguageModel
from lightgpt2.runtime.paths import Cancelled, Leaf, Paths
from lightgpt2.runtime.reader import Ids
from lightgpt2.runtime.spellings import in_word

__all__ = ["Cancelled", "Completer", "Completion", "complete"]

_SHARE = 0.05  # of the probability found, below which spellings of the partial word are dropped
_PASSES = 12  # forward passes for the spellings of a partial word, at most
_SPELLED = 32  # bytes that are spelled in all ways, at most
_WORD = 48  # bytes of a part, at most
_MOST = {"words": (0, 50), "beams": (1, 32)}
_ROOM = 64  # positions that are left for what is spelled and completed, if the context has four times as many

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Completion:
    """What a text may go on with.

    Attributes:
        text: What to append; empty if there is nothing to show.
        words: Its parts: the rest of the partial word (empty if the text ends between words), then further words, with what is
            before them.
        probability: Of `text` and the end of a word behind it, given the text so far: the sum over its spellings, without those
            that take further forward passes.
    """

    text: str
    words: tuple[str, ...]
    probability: float


def complete(model: LanguageModel | str | Path, text: str, **options: Any) -> Completion:
    """Complete a text that may end inside a word.

    ```python
    lightgpt2.complete("checkpoints/teacher/model", "The assert stat").text  # "ement is used"
    ```

    Args:
        model: What `lightgpt2.load` gives, or takes: then it is loaded for this text alone.
        text: The text so far.
        **options: As for `Completer.complete`, and `partial` as for `Completer`.

    Raises:
        UserError: The text is empty, an option is out of range, or the model does not continue texts.
    """
    return Completer(_loaded(model), _loaded(options.pop("partial", None))).complete(text, **options)


def _loaded(model: Any) -> Any:
    if isinstance(model, str | Path):
        from lightgpt2.runtime.loading import load

        return load(model, key="model")
    return model


class Completer:
    """Completes a text while it is typed: a text that extends or edits the last one pays for what changed only.

    Args:
        model: A model that continues texts.
        partial: Another one, for texts that end inside a word; `model` then adds the further words.

    Raises:
        UserError: One is no model that continues texts, or has tokens that spell nothing by themselves.
    """

    def __init__(self, model: LanguageModel, partial: LanguageModel | None = None) -> None:
        for key, each in (("model", model), ("partial", partial)):
            if each is not None and not isinstance(each, LanguageModel):
                kind = type(each).__name__
                raise UserError([Problem(key, f"must be a model that continues texts, got a {kind}", "give another")])
        self._whole = _Words(model)
        self._partial = self._whole if partial is None else _Words(partial)

    def complete(
        self,
        text: str,
        *,
        words: int = 3,
        beams: int = 1,
        constrained: bool = True,
        stop: Stop | None = None,
    ) -> Completion:
        """The most likely completion of a text.

        Of a text that is longer than the model's context the last part is used. A completion ends before a line does.

        Args:
            text: The text so far. It may end inside a word.
            words: The most further words behind the partial one.
            beams: Beginnings of a word that are followed side by side; 1 is greedy.
            constrained: False to continue the text behind its last token, wherever in a word that ends: for comparisons.
            stop: Asked before each forward pass; if it answers true, the completion is given up.

        Raises:
            UserError: The text is empty, or an option is out of range.
            Cancelled: `stop` has answered true.
        """
        given = {"words": words, "beams": beams}
        limits = ((name, *_MOST[name], given[name]) for name in given)
        problems = [
            Problem(name, f"must be from {low} to {high}, got {value}", "correct it")
            for name, low, high, value in limits
            if not low <= value <= high
        ]
        if not isinstance(text, str) or not text or not is_unicode(text):
            problems.append(Problem("text", f"must be some text, got {text!a:.60}", "give what was typed so far"))
        refuse(problems)
        if not in_word(text[-1]):
            return self._whole.complete(text, "", False, words, beams, constrained, stop)
        if self._partial is self._whole:
            return self._whole.complete(text, "", True, words, beams, constrained, stop)
        first = self._partial.complete(text, "", True, 0, beams, constrained, stop)
        if not words:
            return first
        more = self._whole.complete(text, first.text, False, words, beams, constrained, stop)
        parts = (*first.words, *more.words[1:])
        return Completion("".join(parts), parts, first.probability * more.probability)


@dataclass(frozen=True, order=True)
class _Beam:
    """A beginning of a completion."""

    cost: float  # minus its probability
    ids: Ids
    text: bytes  # behind the text so far
    done: int = 0  # bytes of it that belong to parts before the one that is looked for

    def part(self) -> str | None:
        """What there is of the part, whole characters; None if the bytes are no text."""
        try:
            return codecs.getincrementaldecoder("utf-8")().decode(self.text[self.done :])
        except UnicodeDecodeError:
            return None


class _Words:
    """Completes texts word by word with one model."""

    def __init__(self, model: LanguageModel) -> None:
        self._model, self._reader = model, model.reader
        self._paths = Paths(self._reader, _SHARE, _PASSES)
        self._told = False

    def complete(
        self, text: str, typed: str, inside: bool, words: int, beams: int, constrained: bool, stop: Stop | None
    ) -> Completion:
        """As `Completer.complete`; `typed` is a word's end that belongs to the text, `inside` says that it may go on."""
        text = self._last_part(text + typed)
        ended = bool(typed) or (not inside and in_word(text[-1]))
        start: Ids = ()
        rest, leaves, mass = b"", list[Leaf](), 0.0
        # What no tokens spell, as a character that a character model does not know, is left to the tokenizer.
        for spelled in (_rest(text), _letters(text), "") if constrained else ("",):
            start, rest = self._split(text, spelled)
            leaves, mass = self._paths.spell(start, rest, ended, stop)
            if leaves:
                break
        search = _Search(self._paths, beams, stop)
        open_ = [_Beam(-1.0, start, b"")]
        if rest or ended:
            open_ = [beam for leaf in leaves for beam in search.tokens(leaf)]
        parts, reached = [""], 0
        for number in range(0 if inside else 1, words + 1):
            found = search.word(open_, number == 0)
            if found is None:
                break
            beam, part = found
            if number:
                parts.append(part)
            else:
                parts[0] = part
            reached = beam.done + len(part.encode())
            open_ = [*search.behind(beam, reached)]
        whole = "".join(parts)
        if not mass or not (inside or whole):
            return Completion(whole, tuple(parts), float(not whole))
        likely = self._paths.spell(start, rest + whole.encode(), True, read=False)[1]
        return Completion(whole, tuple(parts), min(1.0, likely / mass))

    def _split(self, text: str, rest: str) -> tuple[Ids, bytes]:
        """The tokens of a text up to its end `rest`, and the bytes of that."""
        context = text[: len(text) - len(rest)]
        ids = tuple(self._model.tokenizer.encode(context).ids)
        if not ids:
            ids = (self._model.first,)
        space = b" " if not context and self._reader.spellings.adds_space and not rest.startswith(" ") else b""
        return ids, space + rest.encode()

    def _last_part(self, text: str) -> str:
        """The text, or what of its end fits the context. It is cut in steps, so that what is typed next changes little."""
        context = self._model.engine.context
        room = context - min(_ROOM, context // 4)
        at = max(0, -(-(len(text) - 8 * room) // room) * room)  # more characters than any tokenizer has in a token
        while len(text) - at > room and len(self._model.tokenizer.encode(text[at:]).ids) > room:
            at += max(1, room // 4)
        if at and not self._told:
            self._told = True
            tell(f"lightgpt2: the text is longer than {context} tokens; its last part is used", sys.stderr)
        return text[at:]


def _rest(text: str) -> str:
    """What of a text is spelled in all ways: the end without spaces, and the spaces before it."""
    found = re.search(r"(\s*)(\S*)\Z", text[-_SPELLED:])
    assert found
    spaces, rest = found.groups()
    rest = (spaces if len(spaces) <= 3 else spaces[-1:]) + rest
    if len(rest) == _SPELLED or len(rest.encode()) > _SPELLED:  # no space there
        rest = _letters(text) or rest[-1:]
    while len(rest.encode()) > _SPELLED:
        rest = rest[1:]
    return rest


def _letters(text: str) -> str:
    """The characters of a word that a text ends with."""
    tail = text[-_SPELLED:]
    return next((tail[at:] for at in range(len(tail)) if all(map(in_word, tail[at:]))), "")


class _Search:
    """Looks for the most likely next part of a completion, best first."""

    def __init__(self, paths: Paths, beams: int, stop: Stop | None) -> None:
        self._paths, self._beams, self._stop = paths, beams, stop
        self._spellings = paths.reader.spellings

    def tokens(self, leaf: Leaf, text: bytes = b"", done: int = 0) -> Iterator[_Beam]:
        """The most likely tokens of a leaf."""
        chances = leaf.node.spelled[leaf.places]
        if self._beams >= len(chances):
            best = np.arange(len(chances))
        elif self._beams == 1:
            best = np.array([chances.argmax()])
        else:
            best = np.argpartition(chances, -self._beams)[-self._beams :]
        for at in best:
            place = leaf.places.start + at if isinstance(leaf.places, slice) else leaf.places[at]
            added = self._spellings.bytes[place][leaf.passed :]
            ids = (*leaf.ids, int(self._spellings.ids[place]))
            yield _Beam(-leaf.weight * float(chances[at]), ids, text + added, done)

    def behind(self, beam: _Beam, done: int) -> Iterator[_Beam]:
        """The beginnings of the next part behind a part that ends at byte `done` of a beam."""
        if len(beam.text) > done:  # its last token has some of it
            yield _Beam(beam.cost, beam.ids, beam.text, done)
            return
        node = self._paths.reader.known(beam.ids)
        if node is not None:
            yield from self.tokens(Leaf(beam.ids, -beam.cost, node, self._spellings.outside, 0), beam.text, done)

    def word(self, open_: list[_Beam], partial: bool) -> tuple[_Beam, str] | None:
        """The most likely part, with its beam; None if none comes before the end of the line.

        Args:
            open_: Its beginnings.
            partial: True for the rest of a word, which may be empty.
        """
        best: tuple[float, _Beam, str] | None = None
        open_ = heapq.nsmallest(self._beams, open_)
        while open_ and (best is None or open_[0].cost < best[0]):
            beam = heapq.heappop(open_)
            part = beam.part()
            if part is None:
                continue
            end = _end(part, partial)
            if end is not None:
                best = beam.cost, beam, part[:end]
                continue
            if "\n" in part:
                best = beam.cost, beam, ""
                continue
            if len(beam.text) - beam.done > _WORD or len(beam.ids) >= self._paths.reader.engine.context:
                continue
            if self._stop and self._paths.reader.known(beam.ids) is None and self._stop():
                raise Cancelled
            node = self._paths.reader.after(beam.ids)
            begun = partial or any(map(in_word, part))
            whole = beam.text[beam.done :] == part.encode()
            if begun and whole and (best is None or beam.cost * node.ends < best[0]):
                best = beam.cost * node.ends, beam, part
            elif not begun and (best is None or beam.cost * node.special < best[0]):
                best = beam.cost * node.special, beam, ""
            places = self._spellings.inside if begun else slice(0, None)
            children = self.tokens(Leaf(beam.ids, -beam.cost, node, places, 0), beam.text, beam.done)
            open_ = heapq.nsmallest(self._beams, [*open_, *children])
        return None if best is None or not (best[2] or partial) else (best[1], best[2])


def _end(part: str, partial: bool) -> int | None:
    """Where the part's word ends; None if it may go on."""
    begun = partial
    for at, character in enumerate(part):
        if in_word(character):
            begun = True
        elif begun:
            return at
        elif character == "\n":
            return None
    return None
