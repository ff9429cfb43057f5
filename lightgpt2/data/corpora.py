"""Documents from built-in corpora, local files and folders, and hub datasets, as streams."""

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from lightgpt2.data.requirements import LARGEST_SIZE, requirements
from lightgpt2.errors import UserError

Result = TypeVar("Result")
Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train",
    "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test",
}  # fmt: skip
_PYDOC_HEADING = re.compile(r"\n(?=[^\n]+\n[*=\-~^]{3,}\n)")
_PYDOC_UNDERLINE = re.compile(r"\n([*=\-~^])\1{2,}\n")
_WIKI_ARTICLE = r"\n(?= = [^=\n]+ = \s*\n)"
BUILT_IN = ("pydoc", "requirements", "wikitext")


@dataclass(frozen=True)
class Corpus:
    """A named source of documents.

    It is a built-in corpus (`pydoc`; `requirements`, or `requirements:SIZE`; `wikitext`), a file or folder, a hub id (`name` or
    `name:config`), or a function that yields documents (`python:MODULE.FUNCTION`).
    """

    source: str = "pydoc"
    text_field: str = "text"  # the column or field of the text, in JSONL, CSV, Parquet and hub datasets
    separator: str = r"\n\s*\n"  # regular expression at which a text file is cut into documents

    def fingerprint(self) -> str:
        """The digest of everything that decides which documents come out; local files are not read whole."""
        parts: list[Any] = [self.source, self.text_field, self.separator]
        if (made := self._made()) is not None:
            parts.append(hashlib.sha256("".join(text for _, text in made).encode()).hexdigest())
        elif self._is_local():
            parts += [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in self._files()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def check(self) -> None:
        """Raises a `UserError` with all mistakes that show before anything is read."""
        problems = []
        try:
            re.compile(self.separator)
        except re.error as error:
            problems.append(f"data.separator: {self.separator!r} is not a regular expression ({error}); correct it")
        try:
            if self._made() is None and self._is_local():
                self._files()
        except UserError as error:
            problems += error.problems
        if problems:
            raise UserError(problems)

    def splits(self) -> set[Split]:
        """The splits that the source itself names; none if it is one pool of documents."""
        if self._made() is not None:
            return set(SPLITS) if self.source.startswith("requirements") else {s for s, _ in self._made() or () if s}
        if self._is_local():
            names = {_SPLIT_NAMES[f.stem.lower()] for f in self._files() if f.stem.lower() in _SPLIT_NAMES}
        else:
            names = {_SPLIT_NAMES[name] for name in self._hub_splits() if name in _SPLIT_NAMES}
        return names if "train" in names else set()

    def documents(self) -> Iterator[tuple[Split | None, str]]:
        """Documents in the source's order, each with the split that the source puts it in, if any.

        Raises:
            UserError: The source is missing, unreadable, or not text.
        """
        if (made := self._made()) is not None:
            yield from made
        elif self._is_local():
            named = self.splits()
            for file in self._files():
                split = _SPLIT_NAMES.get(file.stem.lower()) if named else None
                yield from ((split, document) for document in self._read(file))
        else:
            yield from self._hub()

    def _made(self) -> Iterator[tuple[Split | None, str]] | None:
        """Documents of a corpus that comes with Python or this package, or of a function; None for other sources."""
        if self.source == "pydoc":
            return ((None, document) for document in _pydoc())
        name, colon, size = self.source.partition(":")
        if name == "python":
            return _called(size)
        if name != "requirements":
            return None
        if colon and not (size.isdecimal() and 1 <= int(size) <= LARGEST_SIZE):
            raise UserError(
                f"data.source: {self.source}: must be {name}:SIZE with 1 to {LARGEST_SIZE} sentences, got {size!r}; give for "
                f"example {name}:8000"
            )
        return requirements(int(size)) if colon else requirements()

    def _is_local(self) -> bool:
        path = Path(self.source).expanduser()
        return self.source not in BUILT_IN and (
            path.exists() or self.source.startswith((".", "/", "~")) or path.suffix in READERS
        )

    def _files(self) -> list[Path]:
        path = Path(self.source).expanduser()
        if not path.exists():
            raise UserError(f"data.source: {self.source} does not exist; give a file, a folder or a hub id")
        files = sorted(p for p in path.rglob("*") if p.suffix in READERS and p.is_file()) if path.is_dir() else [path]
        if not files:
            raise UserError(f"data.source: {self.source} holds no {', '.join(READERS)} file")
        return files

    def _read(self, file: Path) -> Iterator[str]:
        reader = READERS.get(file.suffix)
        if reader is None:
            raise UserError(f"data.source: {file} is not one of {', '.join(READERS)}; convert it or rename it")
        if file.stat().st_size == 0:
            return
        if reader == "text":
            yield from _cut(_text_blocks(file), self.separator)
            return
        options = {"sep": "\t"} if file.suffix == ".tsv" else {}
        yield from self._column(_rows(reader, file, options), str(file))

    def _column(self, rows: Iterable[dict[str, Any]], where: str) -> Iterator[str]:
        for row in rows:
            if self.text_field not in row:
                fields = ", ".join(map(str, row))
                raise UserError(f"data.text_field: {where} has no field {self.text_field!r}; name one of {fields}")
            value = row[self.text_field]
            if value is not None and not isinstance(value, str):
                kind = type(value).__name__
                raise UserError(f"data.text_field: {self.text_field!r} of {where} holds {kind}, not text")
            yield value or ""

    def _hub_name(self) -> tuple[str, str | None]:
        name, _, config = self.source.partition(":")
        if name == "wikitext":
            return "Salesforce/wikitext", config or "wikitext-2-raw-v1"
        return name, config or None

    def _hub_splits(self) -> list[str]:
        from datasets import get_dataset_split_names  # here, since it takes seconds and a fingerprint does without

        return self._reached(lambda: get_dataset_split_names(*self._hub_name()))

    def _hub(self) -> Iterator[tuple[Split | None, str]]:
        from datasets import load_dataset

        named = self.splits()
        for split in self._hub_splits():
            table = self._reached(partial(load_dataset, *self._hub_name(), split=split))
            rows = self._column(table, self.source)
            if self.source.partition(":")[0] == "wikitext":  # one row a line there; a document is an article
                rows = _cut(rows, _WIKI_ARTICLE)
            yield from ((_SPLIT_NAMES.get(split) if named else None, text) for text in rows)

    def _reached(self, load: Callable[[], Result]) -> Result:
        try:
            return load()
        except Exception as error:  # datasets lets through what each of its many backends raises
            raise UserError(
                f"data.source: {self.source!r} could not be loaded from the hub or its local cache ({_reason(error)}); check "
                "the name and the network, or give local files: --data.source path/to/file.txt"
            ) from error


def _reason(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _called(path: str) -> Iterator[tuple[Split | None, str]]:
    """Documents of a function, which yields texts, or pairs of a split and a text."""
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
        for found in function():
            yield (None, found) if isinstance(found, str) else found
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"data.source: python:{path} cannot be read ({error}); give python:MODULE.FUNCTION") from error


def _pydoc() -> list[str]:
    """The sections of CPython's language reference, without their underlines."""
    from pydoc_data.topics import topics

    sections = (part for name in sorted(topics) for part in _PYDOC_HEADING.split("\n" + topics[name]))
    return [text for section in sections if (text := _PYDOC_UNDERLINE.sub("\n", section).strip())]


def _text_blocks(file: Path) -> Iterator[str]:
    """Read a text file in blocks: it may be larger than memory."""
    try:
        with file.open(encoding="utf-8", newline=None) as stream:
            while block := stream.read(1 << 20):
                if "\x00" in block:
                    raise UserError(_BINARY.format(file))
                yield block
    except UnicodeDecodeError as error:
        line = _undecodable_line(file)
        if line is None:
            raise UserError(_BINARY.format(file)) from error
        raise UserError(
            f"data.source: {file} is not valid UTF-8 ({error.reason} in line {line}); convert it, for example with "
            "iconv -t utf-8"
        ) from error
    except OSError as error:
        raise UserError(f"data.source: {file} cannot be read ({error.strerror})") from error


_BINARY = "data.source: {} is binary, not text; convert it to UTF-8 text"


def _undecodable_line(file: Path) -> int | None:
    """The number of the first line that is not UTF-8; None if a null byte comes first, which no text has."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if b"\0" in line:
                break
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return None


def _cut(blocks: Iterable[str], separator: str) -> Iterator[str]:
    """Cut a stream of text into documents; only the last, unfinished one is kept in memory."""
    pattern = re.compile(separator)
    rest: list[str] = []
    for block in blocks:
        rest.append(block)
        # Joining at each of many small blocks would be quadratic in the length of a document.
        if len(rest) >= 256 or len(block) >= 1 << 16:
            *complete, last = pattern.split("".join(rest))
            yield from complete
            rest = [last]
    yield from pattern.split("".join(rest))


def _rows(reader: str, file: Path, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Stream the rows of a structured file."""
    from datasets import load_dataset

    try:
        yield from load_dataset(reader, data_files=str(file), split="train", streaming=True, **options)
    except UserError:
        raise
    except Exception as error:  # pyarrow, pandas and json each raise their own
        what = f"is not a readable {file.suffix[1:]} file ({_reason(error.__cause__ or error)}); correct it"
        raise UserError(f"data.source: {file} {what}") from error


def split_of(text: str, valid_fraction: float, test_fraction: float) -> Split:
    """The split that a document's content alone puts it in, so that equal documents always share one."""
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if place < test_fraction:
        return "test"
    return "valid" if place < test_fraction + valid_fraction else "train"
