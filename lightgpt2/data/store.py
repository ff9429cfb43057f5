"""Corpora as tokens, in files: one stream of tokens a split, with where its documents and sources lie."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightgpt2.data.splits import SPLITS

META = "meta.json"  # of a finished store
# The types of a split's files beside its tokens, a value for each document, of `answers` for each token. Offsets begin with 0;
# answers are there only in a split with conversations.
TYPES = dict.fromkeys(("offsets", "ends", "sizes", "answered"), np.dtype(np.int64)) | {"answers": np.dtype(bool)}


class Stream:
    """The values in a file, read slice by slice: unlike the pages of a memory map they are no memory of the process."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._path, self._dtype = path, dtype
        self._length = path.stat().st_size // dtype.itemsize

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> NDArray[Any]:
        start, stop, _ = part.indices(self._length)
        return np.fromfile(self._path, self._dtype, max(0, stop - start), offset=start * self._dtype.itemsize)


@dataclass(frozen=True)
class TokenSplit:
    """One split of tokenized corpora."""

    tokens: Stream | NDArray[Any]  # the documents, one behind the other [n_tokens]
    offsets: NDArray[np.int64]  # where each document begins in `tokens`, and the end [n_documents + 1]
    ends: NDArray[np.int64]  # where what is scored of each ends in `tokens`; what follows is only learnt [n_documents]
    sizes: NDArray[np.int64]  # UTF-8 bytes of each text [n_documents]
    answered: NDArray[np.int64]  # the same without what of a conversation is no answer's content [n_documents]
    answers: Stream | NDArray[Any] | None = None  # whether each token is learnt [n_tokens]; None: all are
    parts: Sequence[
        tuple[int, int]
    ] = ()  # sources whose documents follow each other: the source, one past its last document


def tokens_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.bin"


def split_file(folder: Path, split: str, kind: str) -> Path:
    return folder / f"{split}.{kind}.bin"


def read(folder: Path) -> tuple[dict[str, Any], dict[str, TokenSplit]]:
    """The values of `meta.json`, and the splits of a finished store; what is long is read from the files as it is asked for."""
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    found: dict[str, TokenSplit] = {}
    for split in SPLITS:
        columns: Any = {}
        for kind in ("offsets", "ends", "sizes", "answered"):
            path = split_file(folder, split, kind)
            # numpy cannot map an empty file
            columns[kind] = np.memmap(path, TYPES[kind], "r") if path.stat().st_size else np.zeros(0, TYPES[kind])
        answers = split_file(folder, split, "answers")
        found[split] = TokenSplit(
            tokens=Stream(tokens_file(folder, split), np.dtype(meta["dtype"])),
            answers=Stream(answers, TYPES["answers"]) if answers.is_file() else None,
            parts=[tuple(part) for part in meta["parts"][split]],
            **columns,
        )
    return meta, found
