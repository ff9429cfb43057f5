"""Make a store of corpora: read, split, tokenize and write them, in several processes; one that is stopped goes on."""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from tqdm import tqdm

from lightgpt2.data.documents import Document, content
from lightgpt2.data.encoding import Encoded, Encoder, workers
from lightgpt2.data.remarks import Remarks
from lightgpt2.data.splits import SPLITS, Split
from lightgpt2.data.splitter import Splitter
from lightgpt2.data.store import META, TYPES, split_file, tokens_file
from lightgpt2.errors import tell
from lightgpt2.models.files import is_whole, sha256_file, write_checksums, write_json, written

_PROGRESS = "progress.json"  # of a store that is not finished
_DOCUMENTS, _CHARACTERS = 512, 1 << 20  # the most documents, and about the most characters, that are encoded at once
_SAVED = 1 << 26  # characters after which the progress is saved
_KEPT_DAYS = 7  # for which an unfinished store stays

Batch = list[tuple[Split | None, Document]]  # with the split that the source names


def build(folder: Path, splitter: Splitter, encoder: Encoder, processes: int, limits: Sequence[int | None]) -> None:
    """Tokenize the sources of a splitter into `folder`, with a progress bar.

    Args:
        folder: What is written; beside it lies an unfinished store, with which the next process goes on if this one is stopped.
        splitter: Gives the documents, none of them taken yet.
        encoder: Makes tokens of documents.
        processes: How many of them encode.
        limits: The training tokens from which on no more of a source is read; None: all is.

    Raises:
        UserError: A source cannot be read.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    _remove_old(folder.parent)
    with _owned(partial) as lock:
        if not is_whole(folder):  # else another process has written it meanwhile
            with written(folder):
                writer = _Writer(partial, encoder.dtype)
                _write(writer, splitter, encoder, processes, limits)
                writer.finish(splitter.remarks)
            shutil.rmtree(folder, ignore_errors=True)
            partial.replace(folder)
            (folder / lock.name).unlink()  # last: who waits for it finds the store
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    writer: "_Writer", splitter: Splitter, encoder: Encoder, processes: int, limits: Sequence[int | None]
) -> None:
    """Writes what is not written yet; documents are placed one by one, so that their order alone decides on all of it."""
    with workers(encoder, processes) as encode, progress("Tokenizing", splitter) as advance, writer:
        for number, (source, documents) in enumerate(splitter.passes()):
            for named, document in islice(documents, writer.taken(number)):
                splitter.place(source, named, document)
            batches = _batches(documents) if not writer.is_full(source, limits[source]) else iter(())
            with closing(encode(batches)) as encoded_batches:
                for batch, encoded in encoded_batches:
                    for (named, document), each in zip(batch, encoded, strict=True):
                        writer.add(number, source, splitter.place(source, named, document), each)
                        if is_full := writer.is_full(source, limits[source]):
                            break
                    advance(size := sum(len(content(document)) for _, document in batch))
                    writer.save(size)
                    if is_full:
                        break


def _batches(documents: Iterator[tuple[Split | None, Document]]) -> Iterator[Batch]:
    batch, size = Batch(), 0
    for pair in documents:
        batch.append(pair)
        size += len(content(pair[1]))
        if len(batch) == _DOCUMENTS or size >= _CHARACTERS:
            yield batch
            batch, size = Batch(), 0
    if batch:
        yield batch


@contextmanager
def progress(label: str, splitter: Splitter) -> Iterator[Callable[[int], object]]:
    """A bar with the speed, and with the time left where the sources are files; call it with the characters that were read."""
    sizes = [corpus.size() for corpus in splitter.corpora]
    total = None if None in sizes else sum(filter(None, sizes)) or None
    shown: Any = {"unit": "B", "unit_scale": True, "leave": False, "disable": None}
    with tqdm(desc=label, total=total, **shown) as bar:
        yield lambda size: bar.update(size if total is None else splitter.remarks.bytes_read - bar.n)


@dataclass
class _State:
    """What is written of a store."""

    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    parts: dict[str, list[list[int]]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    chats: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(SPLITS, False))  # whether it has `answers`
    open: dict[str, bool] = field(
        default_factory=lambda: dict.fromkeys(SPLITS, False)
    )  # whether the last document has no end among its tokens, so that the beginning of the next asks for it
    taken: dict[str, int] = field(default_factory=dict)  # documents of each pass over a source, those left out included
    trained: dict[str, int] = field(default_factory=dict)  # training tokens of each source
    remarks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class _Writer:
    """Appends documents to the files of a store, and remembers how far it is."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self._folder, self._dtype, self._unsaved = folder, np.dtype(dtype), 0
        path = folder / _PROGRESS
        self._state = _State(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else _State()
        self._remarks = Remarks(self._state.remarks)
        self._files: dict[tuple[str, str], IO[bytes]] = {}

    def __enter__(self) -> Self:
        """Opens the files, without what was written after the progress was saved."""
        state = self._state
        for split in SPLITS:
            count, tokens = state.documents[split], state.tokens[split]
            self._open(split, "tokens", tokens)
            for kind, values in (("offsets", count + 1), ("ends", count), ("sizes", count), ("answered", count)):
                self._open(split, kind, values)
            if state.chats[split]:
                self._open(split, "answers", tokens)
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def _open(self, split: str, kind: str, values: int) -> None:
        path = tokens_file(self._folder, split) if kind == "tokens" else split_file(self._folder, split, kind)
        size = (self._dtype if kind == "tokens" else TYPES[kind]).itemsize * values
        path.touch()
        os.truncate(path, size)  # makes the first offset, which is 0, where nothing was written
        self._files[split, kind] = path.open("ab")

    def taken(self, number: int) -> int:
        """How many documents of a pass are done."""
        return self._state.taken.get(str(number), 0)

    def is_full(self, source: int, limit: int | None) -> bool:
        return limit is not None and self._state.trained.get(str(source), 0) >= limit

    def add(self, number: int, source: int, split: Split | None, document: Encoded | str) -> None:
        """Writes a document that has a split and tokens."""
        state = self._state
        state.taken[str(number)] = self.taken(number) + 1
        if split is None:
            return
        if isinstance(document, str):
            return self._remarks.add(f"conversations left out, since {document}", split)
        if not (count := len(document.tokens)):
            return self._remarks.add("documents without a token, left out", split)
        if document.answers is not None and not state.chats[split]:
            self._open(split, "answers", 0)
            for _ in range(state.tokens[split]):  # of the texts before
                self._files[split, "answers"].write(b"\1")
            state.chats[split] = True
        if state.chats[split]:
            learnt = np.ones(count, dtype=bool) if document.answers is None else document.answers
            self._files[split, "answers"].write(bytes([state.open[split]]) + learnt[1:].tobytes())
        state.open[split] = document.closed == 0
        self._files[split, "tokens"].write(document.tokens.tobytes())
        state.documents[split] += 1
        state.tokens[split] += count
        state.bytes[split] += document.size
        end = state.tokens[split]
        row = {"offsets": end, "ends": end - document.closed, "sizes": document.size, "answered": document.answered}
        for kind, value in row.items():
            self._files[split, kind].write(value.to_bytes(8, sys.byteorder))
        if not (parts := state.parts[split]) or parts[-1][0] != source:
            parts.append([source, 0])
        parts[-1][1] = state.documents[split]
        if split == "train":
            state.trained[str(source)] = state.trained.get(str(source), 0) + count

    def save(self, characters: int) -> None:
        """Saves the progress if enough was written since it was last."""
        self._unsaved += characters
        if self._unsaved >= _SAVED:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            self._state.remarks = self._remarks.counts
            write_json(self._folder / _PROGRESS, asdict(self._state))
            self._unsaved = 0

    def finish(self, read: Remarks) -> None:
        """Writes `meta.json` and the checksums."""
        state = self._state
        files = [tokens_file(self._folder, split) for split in SPLITS]
        files += [split_file(self._folder, split, "answers") for split in SPLITS if state.chats[split]]
        digest = hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()
        counts = {
            s: {"documents": state.documents[s], "tokens": state.tokens[s], "bytes": state.bytes[s]} for s in SPLITS
        }
        about = {"dtype": self._dtype.name, "sha256": digest, "splits": counts, "parts": state.parts}
        write_json(self._folder / META, about | {"remarks": read.lines() + self._remarks.lines()})
        (self._folder / _PROGRESS).unlink(missing_ok=True)
        write_checksums(self._folder)


@contextmanager
def _owned(partial: Path) -> Iterator[Path]:
    """Holds a folder, by a lock in it, against other processes that make the same store; waits for one that does."""
    while True:
        partial.mkdir(parents=True, exist_ok=True)
        path = partial / "lock"
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell("waiting for another process that tokenizes the same text")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if path.is_file() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                yield path
                return


def _remove_old(folder: Path) -> None:
    """Removes unfinished stores that nobody has gone on with for a week."""
    for partial in folder.glob(".*.partial"):
        with suppress(FileNotFoundError):  # another process has finished it
            if time.time() - partial.stat().st_mtime > _KEPT_DAYS * 24 * 3600:
                shutil.rmtree(partial, ignore_errors=True)
