"""Documents from built-in corpora, local files and folders, and hub datasets, as streams."""

import hashlib
import importlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from lightgpt2.data.documents import Columns, Document, DocumentColumns, RowColumns, documents, plain_text
from lightgpt2.data.files import CARD, by_split, card_splits, find, stated_licence
from lightgpt2.data.readers import READERS, cut, kind, read, reason, rows
from lightgpt2.data.remarks import Remarks
from lightgpt2.data.requirements import LARGEST_SIZE, requirements
from lightgpt2.data.splits import SPLITS, Split
from lightgpt2.data.tables import without_none
from lightgpt2.errors import Problem, UserError, refuse

_LICENCES = {
    "pydoc": "PSF-2.0",
    "requirements": "Apache-2.0",
    "wikitext": "CC-BY-SA-3.0, GFDL",
}  # of the built-in corpora
BUILT_IN = (*_LICENCES,)
_READING = 6  # the version of the reading and of what is cached, in fingerprints
_PYDOC_HEADING = re.compile(r"\n(?=[^\n]+\n[*=\-~^]{3,}\n)")
_PYDOC_UNDERLINE = re.compile(r"\n([*=\-~^])\1{2,}\n")
_BLANK_LINES, _NOWHERE = r"\n\s*\n", "(?!)"
_WIKI_ARTICLE = r"\n(?= = [^=\n]+ = \s*\n)"


@dataclass(frozen=True)
class Corpus:
    """A source of documents.

    Args:
        source: A built-in corpus (`pydoc`; `requirements`, or `requirements:SIZE`; `wikitext`), a file or folder, a hub id
            (`name` or `name:config`), or a function that yields documents (`python:MODULE.FUNCTION`).
        text_field: Field of the text in files that are no text files, and in hub datasets.
        separator: Regular expression at which text files are cut into documents. By default several files of a folder
            in which no name says a split are a document each, and others are cut at blank lines.
        streaming: Read a hub dataset as it arrives, without a copy of it on disk.
        name: What metrics and remarks call the source. The default is the last part of `source`.
        weight: Its share of the training tokens of an epoch, relative to the other sources.
    """

    source: str = "pydoc"
    text_field: str = "text"
    separator: str | None = None
    streaming: bool = False
    name: str = ""
    weight: float = 1.0

    @property
    def label(self) -> str:
        """The name."""
        return self.name or Path(self.source.rstrip("/")).name.partition(".")[0] or self.source

    def fingerprint(self) -> str:
        """The digest of everything that decides which documents come out; local files are not read whole."""
        parts: list[Any] = [_READING, self.source, self.text_field, self.separator or _BLANK_LINES]
        if (made := self._made()) is not None:
            parts.append(hashlib.sha256(json.dumps([*made]).encode()).hexdigest())
        else:
            files = self._split_files(Remarks()) if self._is_local() else {}  # a dataset card may say their splits
            parts += [(str(p.absolute()), split, p.stat().st_size, p.stat().st_mtime_ns) for p, split in files.items()]
            parts += ["whole"] if self._whole(files) else []
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def problems(self) -> list[Problem]:
        """The mistakes that show before anything is read."""
        problems = []
        try:
            if self.separator is not None and re.compile(self.separator).match(""):
                what = f"{self.separator!r} fits between any two characters"
                problems.append(Problem("data.separator", what, "give (?!) to keep files whole, or another"))
        except re.error as error:
            what = f"{self.separator!r} is not a regular expression ({error})"
            problems.append(Problem("data.separator", what, "correct it"))
        try:
            if self._made() is None and self._is_local():
                self._files(Remarks())
        except UserError as error:
            problems += error.problems
        return problems

    def remarks(self) -> list[str]:
        """What a person should know of the files: those that are not read, and those that are held out."""
        found = Remarks()
        if self._made() is None and self._is_local():
            self._split_files(found)
        return found.lines()

    def splits(self) -> set[Split]:
        """The splits that the source itself names; none if it is one pool of documents."""
        if self.source.partition(":")[0] == "requirements":
            return set(SPLITS)
        if (made := self._made()) is not None:
            return {split for split, _ in made if split}
        return {split for split, _ in self._tables(Remarks()) if split}

    def licence(self) -> str | None:
        """The licence of a built-in corpus, or the one in a dataset card: a folder's, or in the hub's local cache."""
        name = self.source.partition(":")[0]
        if self._is_local():
            path = Path(self.source).expanduser()
            return stated_licence((path if path.is_dir() else path.parent) / CARD)
        if name in (*BUILT_IN, "python"):
            return _LICENCES.get(name)
        from huggingface_hub import try_to_load_from_cache  # here, since a fingerprint does without

        card = try_to_load_from_cache(name, CARD, repo_type="dataset")
        return stated_licence(Path(card)) if isinstance(card, str) else None

    def size(self) -> int | None:
        """The bytes of the files, as they lie on disk; 0 for a built-in corpus, and None where it is not known."""
        if self.source.partition(":")[0] in ("pydoc", "requirements"):
            return 0
        return sum(file.stat().st_size for file in self._files(Remarks())) if self._is_local() else None

    def documents(
        self, remarks: Remarks | None = None, held_out: bool | None = None
    ) -> Iterator[tuple[Split | None, Document]]:
        """Documents in the source's order, each with the split that the source puts it in, if any; what is held out first.

        Args:
            remarks: Gets what is left out of files and tables.
            held_out: Whether to give only those that the source holds out, or only the others.

        Raises:
            UserError: The source is missing, unreadable, or not text.
        """
        if (made := self._made()) is not None:
            yield from (pair for pair in made if held_out in (None, pair[0] in ("valid", "test")))
            return
        for split, found in self._tables(Remarks() if remarks is None else remarks, quiet=held_out is False):
            if held_out in (None, split in ("valid", "test")):
                yield from ((split, document) for document in found)

    def rows(
        self, columns: RowColumns, remarks: Remarks
    ) -> Iterator[tuple[Split | None, str, Iterator[Mapping[str, Any]]]]:
        """The rows, not yet read, of each table, with its name and the split that this says; what is held out first.

        Raises:
            UserError: The source is missing, unreadable, or holds no table.
        """
        kind_of_source = self.source.partition(":")[0]
        if kind_of_source == "requirements":
            yield from self._made_rows(columns)
        elif kind_of_source in ("pydoc", "wikitext", "python"):
            raise UserError(
                f"data.source: {self.source} has no {columns.holds}; give a table that has some, or requirements"
            )
        elif self._is_local():
            files = self._split_files(remarks)
            tables = {file: split for file, split in files.items() if READERS[kind(file)] is not None}
            for file in files.keys() - tables.keys() if tables else ():
                remarks.add(f"text files, which have no {columns.holds}: not read", str(file))
            for file, split in (tables or files).items():
                yield split, str(file), rows(file, columns, remarks)
        else:
            found = self._hub()
            for name, split in by_split(found, remarks).items():
                where = f"{self.source} ({name})"
                yield split, where, self._hub_rows(found[name], where, columns)

    def _made_rows(self, columns: RowColumns) -> Iterator[tuple[Split, str, Iterator[Mapping[str, Any]]]]:
        self._made()  # refuses another size
        size = self.source.partition(":")[2]
        made = [*columns.requirements(int(size) if size else None)]
        for each in reversed(SPLITS):
            if made and not columns.of(made[0][1]):
                raise columns.missing("requirements", made[0][1])
            yield each, self.source, iter([row for split, row in made if split == each])

    def class_names(self, column: str) -> list[str]:
        """The names that a hub dataset gives the numbers in a column; empty if it gives none."""
        if self._made() is not None or self._is_local():
            return []
        features = next(iter(self._hub().values())).features or {}
        return [*(getattr(features.get(column), "names", None) or [])]

    def _hub_rows(self, table: Any, where: str, columns: Columns) -> Iterator[Mapping[str, Any]]:
        names = [*(table.column_names or next(iter(table), {}))]  # a stream may not know them
        if not (chosen := columns.of(names)):
            raise columns.missing(where, names)
        return _guarded(map(without_none, table.select_columns(chosen)), self.source)

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

    def _tables(self, remarks: Remarks, quiet: bool = False) -> Iterator[tuple[Split | None, Iterable[Document]]]:
        """The documents, not yet read, of each file or each split of a hub dataset, with the split that its name says."""
        if self._is_local():
            files = self._split_files(Remarks())
            whole = self._whole(files)
            for file, split in files.items():
                separator = _NOWHERE if file in whole else self.separator or _BLANK_LINES
                yield split, read(file, self.text_field, separator, remarks)
            return
        tables = self._hub()
        for name, split in by_split(tables, Remarks() if quiet else remarks).items():
            yield split, self._rows(tables[name], f"{self.source} ({name})", remarks)

    def _rows(self, table: Any, where: str, remarks: Remarks) -> Iterator[Document]:
        rows = self._hub_rows(table, where, DocumentColumns(self.text_field))
        if self.source.partition(":")[0] == "wikitext":  # one row a line; a document is an article
            return cut((row[self.text_field] or "" for row in rows), _WIKI_ARTICLE)
        return documents(rows, self.text_field, where, remarks)

    def _is_local(self) -> bool:
        path = Path(self.source).expanduser()
        return self.source not in BUILT_IN and (
            path.exists() or self.source.startswith((".", "/", "~")) or bool(kind(path))
        )

    def _files(self, remarks: Remarks) -> list[Path]:
        path = Path(self.source).expanduser()
        if not path.exists():
            raise UserError(f"data.source: {self.source} does not exist; give a file, a folder or a hub id")
        try:
            files = find(path, remarks) if path.is_dir() else [path]
        except OSError as error:
            raise UserError(f"data.source: {error.filename} cannot be read ({error.strerror}); correct it") from error
        if not files:
            others = "".join(f"; {line}" for line in remarks.lines())
            raise UserError(f"data.source: {self.source} holds no {', '.join(READERS)} file{others}")
        return files

    def _split_files(self, remarks: Remarks) -> dict[Path, Split | None]:
        """The files that are read; in a folder with the split that each names."""
        files, top = self._files(remarks), Path(self.source).expanduser()
        if files == [top]:
            return {top: None}
        named = {str(file.relative_to(top)): file for file in files}
        return {named[name]: split for name, split in by_split(named, remarks, card_splits(top, named)).items()}

    def _whole(self, files: Mapping[Path, Split | None]) -> set[Path]:
        """The text files that are a document each: by default several in a folder in which no name says a split."""
        texts = {file for file in files if kind(file) and READERS[kind(file)] is None}
        pool = self.separator is None and len(texts) > 1 and not any(files.values())
        return texts if pool else set()

    def _hub(self) -> dict[str, Any]:
        """The tables of a hub dataset by the name of their split."""
        from datasets import load_dataset  # here, since it takes seconds and a fingerprint does without

        name, _, config = self.source.partition(":")
        if name == "wikitext":
            name, config = "Salesforce/wikitext", config or "wikitext-2-raw-v1"
        try:
            return load_dataset(name, config or None, streaming=self.streaming)
        except Exception as error:  # datasets lets through what each of its many backends raises
            raise UserError(
                f"data.source: {self.source!r} could not be loaded from the hub or its local cache ({reason(error)}); check "
                "the name and the network, or give local files: --data.source path/to/file.txt"
            ) from error


def corpora(
    source: str | Sequence[str | Mapping[str, Any]] = Corpus.source,
    text_field: str = Corpus.text_field,
    separator: str | None = Corpus.separator,
    streaming: bool = Corpus.streaming,
) -> list[Corpus]:
    """The sources that `data.source` and the settings beside it say.

    Raises:
        UserError: One of a list is not of the form that `Corpus` takes.
    """
    if isinstance(source, str):
        return [Corpus(source, text_field, separator, streaming)]
    types, problems = get_type_hints(Corpus), list[Problem]()
    for number, each in enumerate(source):
        given: Mapping[str, Any] = {"source": each} if isinstance(each, str) else each
        wrong = {name: ("no such key", f"give some of {', '.join(types)}") for name in given if name not in types}
        if "source" not in given:
            wrong["source"] = ("required, but not given", "name a source")
        for name in types.keys() & given.keys():
            value, kinds = given[name], (int, float) if name == "weight" else types[name]
            if not isinstance(value, kinds) or isinstance(value, bool) > (kinds is bool):
                wrong[name] = (f"must be {getattr(types[name], '__name__', types[name])}, got {value!r}", "correct it")
            elif name == "weight" and not 0 < value < math.inf:
                wrong[name] = (f"must be above 0, got {value}", "correct it")
        problems += [Problem(f"data.source.{number}.{name}", *said) for name, said in wrong.items()]
    refuse(problems)
    return [
        Corpus(each, text_field, separator, streaming) if isinstance(each, str) else Corpus(**each) for each in source
    ]


def licences(of: Sequence[Corpus]) -> dict[str, str]:
    """The licences of sources, for a ledger; empty if no source has a known one."""
    found = [corpus.licence() for corpus in of]
    return {"licence": " + ".join(each or "unknown" for each in found)} if any(found) else {}


def _guarded(rows: Iterator[Any], source: str) -> Iterator[Any]:
    """Rows of the hub, whose libraries raise anything where the network ends or a file is damaged."""
    try:
        yield from rows
    except UserError:
        raise
    except Exception as error:
        what = f"{source!r} could not be read to its end ({reason(error)})"
        raise UserError(f"data.source: {what}; run it again, which goes on from there") from error


def _called(path: str) -> Iterator[tuple[Split | None, str]]:
    """Documents of a function, which yields texts, or pairs of a split and a text; what is held out first."""
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
        found = [(None, each) if isinstance(each, str) else each for each in function()]
        for split, text in found:
            text.encode()
            if split not in (None, *SPLITS):
                raise ValueError(f"a split must be one of {', '.join(SPLITS)}, got {split!r}")
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"data.source: python:{path} cannot be read ({error}); give python:MODULE.FUNCTION") from error
    yield from sorted(found, key=lambda pair: pair[0] in (None, "train"))


def _pydoc() -> list[str]:
    """The sections of CPython's language reference, without their underlines."""
    from pydoc_data.topics import topics

    sections = (part for name in sorted(topics) for part in _PYDOC_HEADING.split("\n" + topics[name]))
    return [text for section in sections if (text := _PYDOC_UNDERLINE.sub("\n", section).strip())]


@cache  # the stages of a recipe share a text
def unreadable(corpus: Corpus) -> list[Problem]:
    """What is wrong with the documents of a corpus, all of which are read."""
    try:
        # Not any(), which would stop at the first.
        if sum(bool(plain_text(document).strip()) for _, document in corpus.documents()):
            return []
    except UserError as error:
        return error.problems
    return [Problem("data.source", f"{corpus.source} holds no text", "give a corpus with at least a few documents")]
