"""Labelled texts: rows of tables that hold a text, perhaps a second one, and the name or number of a class."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, ClassVar, Protocol, TypeVar

from lightgpt2.data.corpora import Corpus
from lightgpt2.data.remarks import Remarks
from lightgpt2.data.requirements import requirements
from lightgpt2.data.splits import Split, split_of
from lightgpt2.errors import UserError
from lightgpt2.models.vocabulary import is_unicode

# The columns that hold a text, or a pair of them, by the names that public data sets give them; the first that are there.
_TEXTS = (
    ("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("question", "sentence"), ("text",), ("sentence",), ("content",), ("review",),
)  # fmt: skip
_HIDDEN = (None, "", -1, "-1")  # labels that say there is none: those of hidden test splits
Label = str | int


class Keyed(Protocol):
    """An example of any task."""

    @property
    def key(self) -> str:
        """The text that makes it the same as another, and that decides on its split where nothing else does."""


E = TypeVar("E", bound=Keyed)


@dataclass(frozen=True)
class Example:
    """A text, or two that belong together, and its class as the file says it."""

    text: str
    pair: str | None
    label: Label

    @property
    def key(self) -> str:
        return f"{self.text.strip()}\n{(self.pair or '').strip()}"


@dataclass(frozen=True)
class ExampleColumns:
    """The columns of a labelled text; those of texts are found by their usual names unless one is given."""

    text_field: str | None
    pair_field: str | None
    label_field: str

    holds: ClassVar[str] = "labels"

    def texts(self, names: Iterable[str]) -> tuple[str, ...]:
        """The columns of the texts; empty if there are none."""
        known = {*names}
        given = tuple(filter(None, (self.text_field, self.pair_field)))
        if self.text_field:
            return given if {*given} <= known else ()
        return next((found for found in _TEXTS if {*found} <= known), ())

    def of(self, names: Iterable[str]) -> list[str]:
        known = [*names]
        texts = self.texts(known)
        return [*texts, self.label_field] if texts and self.label_field in known else []

    def missing(self, where: str, names: Iterable[str]) -> UserError:
        known = [*map(str, names)]
        wanted = {"text_field": self.text_field, "pair_field": self.pair_field, "label_field": self.label_field}
        key, field = next(
            ((key, field) for key, field in wanted.items() if field and field not in known), ("text_field", "")
        )
        if not self.text_field and not self.texts(known):
            key, field = "text_field", "text or sentence"
        listed = shorten(", ".join(known), 120, placeholder=" ...")
        return UserError(f"data.{key}: {where} has no field {field}; name one of {listed}")

    @staticmethod
    def requirements(size: int | None) -> Iterator[tuple[Split, dict[str, Any]]]:
        """The requirements as rows: the class that a sentence begins with is its label."""
        for split, sentence in requirements(size) if size else requirements():
            label, _, text = sentence.removeprefix("[").partition("] ")
            yield split, {"text": text, "label": label}


def read_examples(corpus: Corpus, columns: ExampleColumns, remarks: Remarks) -> Iterator[tuple[Split | None, Example]]:
    """The labelled texts of a source, each with the split that its file or table is; what lacks text or label is left out.

    Raises:
        UserError: The source cannot be read, or a row holds something else.
    """
    counts: dict[int, str] = {}  # of texts, and where rows with as many are
    for split, where, rows in corpus.rows(columns, remarks):
        for number, row in enumerate(rows, 1):
            names, label_name = columns.texts(row), columns.label_field  # rows of JSON may each have other fields
            texts = [row.get(name) for name in names]
            label = _label(row.get(label_name))
            wrong = next((n for n, value in zip(names, texts, strict=True) if not isinstance(value, str | None)), None)
            if wrong is not None:
                what = f"{wrong!r} of {where} holds {type(row[wrong]).__name__}, not text, in row {number}"
                raise UserError(f"data.text_field: {what}; name another field, or correct it")
            if label is not None and not isinstance(label, str | int):
                what = f"{label_name!r} of {where} holds {type(label).__name__}, no name or number, in row {number}"
                raise UserError(f"data.label_field: {what}; name another field, or correct it")
            if label in _HIDDEN:
                remarks.add("rows without a label, left out", where)
            elif not texts or not all((text or "").strip() for text in texts):
                remarks.add("rows without text, left out", where)
            elif not all(is_unicode(text or "") for text in (*texts, str(label))):
                remarks.add("rows that are not valid Unicode, left out", where)
            else:
                assert label is not None
                counts.setdefault(len(texts), f"row {number} of {where}")
                if len(counts) > 1:
                    what = f"{counts[2]} has two texts and {counts[1]} one"
                    fix = "name data.text_field, and data.pair_field if there are two, or give each row both"
                    raise UserError(f"data.text_field: {what}; {fix}")
                yield split, Example(texts[0] or "", texts[1] if len(texts) > 1 else None, label)


def _label(value: Any) -> Any:
    """A label as a name or a whole number; anything else as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.strip() if isinstance(value, str) else value


def split_examples(
    examples: Iterable[tuple[Split | None, E]], valid_fraction: float, test_fraction: float, remarks: Remarks
) -> dict[Split, list[E]]:
    """The examples of each split; those whose key a held-out split has are left out of the others.

    Splits that are named are kept. One that is not is taken from the training split by the hash of the key.
    """
    found = [*examples]
    given = {split for split, _ in found if split}
    splits: dict[Split, list[E]] = {"test": [], "valid": [], "train": []}
    for named, example in found:
        hashed = split_of(example.key, valid_fraction, test_fraction)
        named = named or ("train" if given else None)
        splits[hashed if named in (None, "train") and hashed not in given else named or hashed].append(example)
    seen = set[str]()
    for split, those in splits.items():
        kept = [each for each in those if each.key not in seen]
        for _ in range(len(those) - len(kept)):
            remarks.add("examples that a held-out split has too, left out", split)
        splits[split] = kept
        seen |= {each.key for each in kept}
    return splits


@dataclass(frozen=True)
class Classes:
    """The classes: their names in the order of their numbers."""

    names: list[str]
    numbers: Mapping[Label, int]  # of what files say

    @classmethod
    def of(cls, splits: Mapping[Split, Sequence[Example]], known: Sequence[str], given: Sequence[str]) -> "Classes":
        """The classes of labelled texts.

        Args:
            splits: The examples.
            known: Names that a model or a data set has, in the order of their numbers; empty if there are none.
            given: Names that the configuration gives the numbers; empty if it does not.

        Raises:
            UserError: The labels are no classes, or not those that are known.
        """
        labels = Counter(example.label for those in splits.values() for example in those)
        names = [*(given or known)]
        as_numbers = {label: _number(label) for label in labels}
        numbered = all(number is not None for number in as_numbers.values())
        values = {number for number in as_numbers.values() if number is not None}
        if names and {str(label) for label in labels} <= {*names}:
            return cls(names, {label: names.index(str(label)) for label in labels})
        if names and numbered and min(values, default=0) >= 0 and max(values, default=0) < len(names):
            return cls(names, {label: number or 0 for label, number in as_numbers.items()})
        if names:
            unknown = sorted({str(label) for label in labels} - {*names})
            what = f"the data has classes {_few(unknown)} and the model or data.class_names has {_few(names)}"
            raise UserError(f"data.label_field: {what}; use labels with these names, or numbers below {len(names)}")
        if numbered and values == {*range(len(values))}:
            return cls([f"LABEL_{i}" for i in range(len(values))], {k: v or 0 for k, v in as_numbers.items()})
        ordered = sorted(
            {str(label) for label in labels}, key=lambda name: (_number(name) or 0, name) if numbered else name
        )
        return cls(ordered, {label: ordered.index(str(label)) for label in labels})


def _number(label: Label) -> int | None:
    """The number that a label is, if it is one."""
    if isinstance(label, int):
        return label
    return int(label) if label.isdecimal() and label.isascii() else None


def _few(names: Sequence[str]) -> str:
    return shorten(", ".join(names), 100, placeholder=" ...")
