"""Documents from built-in corpora, local files and folders, and hub datasets, as streams."""

import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightgpt2.data.requirements import LARGEST_SIZE, requirements
from lightgpt2.data.splits import SPLITS, Split
from lightgpt2.errors import Problem, UserError

READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
BUILT_IN = ("pydoc", "requirements", "wikitext")
_SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train",
    "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test",
}  # fmt: skip
_PYDOC_HEADING = re.compile(r"\n(?=[^\n]+\n[*=\-~^]{3,}\n)")
_PYDOC_UNDERLINE = re.compile(r"\n([*=\-~^])\1{2,}\n")
_WIKI_ARTICLE = r"\n(?= = [^=\n]+ = \s*\n)"
_BLOCK = 1 << 20  # characters that are cut into documents at once


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

    def problems(self) -> list[Problem]:
        """The mistakes that show before anything is read."""
        problems = []
        try:
            re.compile(self.separator)
        except re.error as error:
            what = f"{self.separator!r} is not a regular expression ({error})"
            problems.append(Problem("data.separator", what, "correct it"))
        try:
            if self._made() is None and self._is_local():
                self._files()
        except UserError as error:
            problems += error.problems
        return problems

    def splits(self) -> set[Split]:
        """The splits that the source itself names; none if it is one pool of documents."""
        if self.source.partition(":")[0] == "requirements":
            return set(SPLITS)
        if (made := self._made()) is not None:
            return {split for split, _ in made if split}
        names = {_SPLIT_NAMES[name] for name, _ in self._tables() if name in _SPLIT_NAMES}
        return names if "train" in names else set()

    def documents(self) -> Iterator[tuple[Split | None, str]]:
        """Documents in the source's order, each with the split that the source puts it in, if any.

        Raises:
            UserError: The source is missing, unreadable, or not text.
        """
        if (made := self._made()) is not None:
            yield from made
            return
        named = self.splits()
        for name, texts in self._tables():
            split = _SPLIT_NAMES.get(name) if named else None
            yield from ((split, text) for text in texts)

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

    def _tables(self) -> Iterator[tuple[str, Iterable[str]]]:
        """The names of the files, or of the splits of a hub dataset, each with its documents, not yet read."""
        if self._is_local():
            for file in self._files():
                yield file.stem.lower(), self._read(file)
            return
        for name, table in self._hub().items():
            rows = self._column(table, self.source)
            # wikitext has one row a line; a document is an article
            yield name, _cut(rows, _WIKI_ARTICLE) if self.source.partition(":")[0] == "wikitext" else rows

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
        if file.suffix not in READERS:
            raise UserError(f"data.source: {file} is not one of {', '.join(READERS)}; convert it or rename it")
        if file.stat().st_size == 0:
            return
        text = file.suffix == ".txt"
        yield from _cut(_lines(file), self.separator) if text else self._column(_rows(file), str(file))

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

    def _hub(self) -> dict[str, Iterable[dict[str, Any]]]:
        """The tables of a hub dataset by the name of their split."""
        from datasets import load_dataset  # here, since it takes seconds and a fingerprint does without

        name, _, config = self.source.partition(":")
        if name == "wikitext":
            name, config = "Salesforce/wikitext", config or "wikitext-2-raw-v1"
        try:
            return load_dataset(name, config or None)
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


def _lines(file: Path) -> Iterator[str]:
    """Read a text file line by line: it may be larger than memory."""
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):  # noqa: B007 - the message below needs it
                if b"\0" in line:
                    raise UserError(f"data.source: {file} is binary, not text; convert it to UTF-8 text")
                yield line.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"data.source: {file} is not valid UTF-8 ({error.reason} in line {number}); convert it, for example with "
            "iconv -t utf-8"
        ) from error
    except OSError as error:
        raise UserError(f"data.source: {file} cannot be read ({error.strerror})") from error


def _cut(lines: Iterable[str], separator: str) -> Iterator[str]:
    """Cut a stream of text into documents; only a block and the last, unfinished document are kept in memory."""
    pattern = re.compile(separator)
    block: list[str] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line)
        if size >= _BLOCK:
            *complete, last = pattern.split("".join(block))
            if last.strip():  # else the separator may go on in the next line
                yield from complete
                block, size = [last], 0
    yield from pattern.split("".join(block))


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    """Stream the rows of a structured file."""
    from datasets import load_dataset

    options = {"sep": "\t"} if file.suffix == ".tsv" else {}
    try:
        yield from load_dataset(READERS[file.suffix], data_files=str(file), split="train", streaming=True, **options)
    except Exception as error:  # pyarrow, pandas and json each raise their own
        what = f"is not a readable {file.suffix[1:]} file ({_reason(error.__cause__ or error)}); correct it"
        raise UserError(f"data.source: {file} {what}") from error
