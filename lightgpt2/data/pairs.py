"""Texts with the texts that a model makes of them: rows of tables with a source and a target, or with a conversation."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from textwrap import shorten
from typing import Any, ClassVar

from lightgpt2.data.corpora import Corpus
from lightgpt2.data.documents import Conversation, documents, fields, is_answer, plain_text
from lightgpt2.data.remarks import Remarks
from lightgpt2.data.requirements import summaries
from lightgpt2.data.splits import Split
from lightgpt2.errors import UserError
from lightgpt2.models.vocabulary import is_unicode

# The columns of a source and its target, by the names that public data sets give them; the first that are there.
_PAIRS = (
    ("article", "highlights"), ("article", "summary"), ("article", "abstract"), ("document", "summary"),
    ("dialogue", "summary"), ("text", "summary"), ("source", "target"), ("text", "target"),
)  # fmt: skip
_CHAT = "messages"


@dataclass(frozen=True)
class Pair:
    """A text, and what a model should make of it."""

    source: str
    target: str
    conversation: Conversation | None = None  # that the row holds, with the target as the one answer that is learnt

    @property
    def key(self) -> str:
        return self.source


@dataclass(frozen=True)
class PairColumns:
    """The columns of a source and its target, by their usual names unless they are given; else those of a conversation."""

    source_field: str | None
    target_field: str | None

    holds: ClassVar[str] = "summaries"

    def pair(self, names: Iterable[str]) -> tuple[str, str] | None:
        """The columns of source and target; None if there are none."""
        known = {*names}
        for source, target in _PAIRS:
            found = self.source_field or source, self.target_field or target
            if {*found} <= known:
                return found
        return None

    def of(self, names: Iterable[str]) -> list[str]:
        known = [*names]
        if found := self.pair(known):
            return [*found]
        return [] if self.source_field or self.target_field else fields(known, _CHAT)

    def missing(self, where: str, names: Iterable[str]) -> UserError:
        known = [*map(str, names)]
        wanted = {"source_field": self.source_field, "target_field": self.target_field}
        key, field = next(((k, f"field {f}") for k, f in wanted.items() if f and f not in known), ("", ""))
        if not key:
            usual = " or ".join(f"{a} and {b}" for a, b in (("article", "highlights"), ("text", "summary")))
            key, field = ("target_field", "field of a target beside it") if self.source_field else (
                "source_field", f"fields of a source and its target ({usual})")  # fmt: skip
        listed = shorten(", ".join(known), 120, placeholder=" ...")
        return UserError(f"data.{key}: {where} has no {field}; name one of {listed}")

    @staticmethod
    def requirements(size: int | None) -> Iterator[tuple[Split, dict[str, Any]]]:
        for split, text, summary in summaries(size) if size else summaries():
            yield split, {"text": text, "summary": summary}


def read_pairs(corpus: Corpus, columns: PairColumns, remarks: Remarks) -> Iterator[tuple[Split | None, Pair]]:
    """The pairs of a source, each with the split that its file or table is; what lacks one of the two is left out.

    Raises:
        UserError: The source cannot be read, or a row holds something else.
    """
    for split, where, rows in corpus.rows(columns, remarks):
        first = next(rows, None)
        if first is None:
            continue
        whole = chain([first], rows)
        is_plain = columns.pair(first) or columns.source_field or columns.target_field
        found = _plain(whole, columns, where, remarks) if is_plain else _chats(whole, where, remarks)
        yield from ((split, pair) for pair in found)


def _plain(rows: Iterable[Mapping[str, Any]], columns: PairColumns, where: str, remarks: Remarks) -> Iterator[Pair]:
    for number, row in enumerate(rows, 1):
        names = columns.pair(row) or ("", "")  # rows of JSON may each have other fields
        values = [row.get(name) for name in names]
        for key, name, value in zip(("source_field", "target_field"), names, values, strict=True):
            if not isinstance(value, str | None):
                what = f"{name!r} of {where} holds {type(value).__name__}, not text, in row {number}"
                raise UserError(f"data.{key}: {what}; name another field, or correct it")
        source, target = (value or "" for value in values)
        if not source.strip():
            remarks.add("rows without a source, left out", where)
        elif not target.strip():
            remarks.add("rows without a target, left out", where)
        elif not (is_unicode(source) and is_unicode(target)):
            remarks.add("rows that are not valid Unicode, left out", where)
        else:
            yield Pair(source, target)


def _chats(rows: Iterable[Mapping[str, Any]], where: str, remarks: Remarks) -> Iterator[Pair]:
    """Of each conversation what comes before its last answer, and that."""
    for found in documents(rows, _CHAT, where, remarks):
        assert isinstance(found, Conversation), "columns without a text hold conversations"
        last = max(place for place, turn in enumerate(found.messages) if is_answer(turn))
        before = [{**turn, "weight": 0} if is_answer(turn) else turn for turn in found.messages[:last]]
        target = found.messages[last].get("content")
        if not before or not isinstance(target, str) or not target.strip():
            remarks.add("conversations without a question or a text as their answer, left out", where)
            continue
        asked = Conversation(tuple(before), found.is_pair, found.tools)
        kept = Conversation((*before, found.messages[last]), found.is_pair, found.tools)
        yield Pair(plain_text(asked), target, kept)
