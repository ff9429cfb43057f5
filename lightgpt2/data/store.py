"""A corpus tokenized once, in memory-mapped files: one stream of tokens a split, with where its documents lie."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lightgpt2.data.corpora import SPLITS, Corpus, Split, split_of
from lightgpt2.errors import UserError
from lightgpt2.models.files import atomic_folder, sha256_file

_META = "meta.json"
_BATCH = 512  # documents tokenized at once

Encode = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class TokenSplit:
    """One split of a tokenized corpus."""

    tokens: NDArray[Any]  # the documents, each preceded by the separator token [n_tokens], memory-mapped
    offsets: NDArray[np.int64]  # where each document begins in `tokens`, and the end [n_documents + 1]
    sizes: NDArray[np.int64]  # UTF-8 bytes of each document's text [n_documents]


def split_documents(corpus: Corpus, valid_fraction: float, test_fraction: float) -> Iterator[tuple[Split, str]]:
    """Yield every distinct, non-empty document once, with its split.

    Splits that the source names are kept, and a validation or test split that it lacks is taken from its training split by the
    content's hash; where it names none, the hash decides alone. A document that occurs again is dropped.
    """
    seen: set[bytes] = set()
    given = corpus.splits()
    for named, text in corpus.documents():
        text = text.strip("\n")
        if not text.strip():
            continue
        digest = hashlib.sha256(text.encode()).digest()[:16]
        if digest in seen:
            continue
        seen.add(digest)
        hashed = split_of(text, valid_fraction, test_fraction)
        yield (hashed if named in (None, "train") and hashed not in given else named or hashed), text


def build(
    folder: Path, documents: Iterable[tuple[Split, str]], encode: Encode, separator: int, vocabulary: int
) -> dict[str, Any]:
    """Tokenize documents into `folder`, atomically, with a progress bar.

    Args:
        folder: Target.
        documents: Split and text of each document.
        encode: Texts to token lists, without special tokens.
        separator: Token put before each document.
        vocabulary: Number of tokens; decides between 2 and 4 bytes a token.

    Returns:
        What `meta.json` then holds: for each split its documents, tokens and bytes, and the digest of all tokens.
    """
    dtype = np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32)
    stream = iter(documents)
    with atomic_folder(folder) as temporary:
        lengths: dict[Split, list[int]] = {split: [] for split in SPLITS}
        sizes: dict[Split, list[int]] = {split: [] for split in SPLITS}
        with ExitStack() as stack:
            files = {split: stack.enter_context((temporary / f"{split}.bin").open("wb")) for split in SPLITS}
            bar = stack.enter_context(tqdm(desc="Tokenizing", unit=" documents", leave=False, disable=None))
            while batch := list(islice(stream, _BATCH)):
                for (split, text), ids in zip(batch, encode([text for _, text in batch]), strict=True):
                    files[split].write(np.array([separator, *ids], dtype=dtype).tobytes())
                    lengths[split].append(len(ids) + 1)
                    sizes[split].append(len(text.encode()))
                bar.update(len(batch))
        for split in SPLITS:
            np.save(temporary / f"{split}.offsets.npy", np.cumsum([0, *lengths[split]], dtype=np.int64))
            np.save(temporary / f"{split}.sizes.npy", np.array(sizes[split], dtype=np.int64))
        counts = {
            split: {"documents": len(sizes[split]), "tokens": sum(lengths[split]), "bytes": sum(sizes[split])}
            for split in SPLITS
        }
        digest = hashlib.sha256("".join(sha256_file(temporary / f"{s}.bin") for s in SPLITS).encode()).hexdigest()
        meta = {"dtype": dtype.name, "sha256": digest, "splits": counts}
        (temporary / _META).write_text(json.dumps(meta))
    return meta


def read_meta(folder: Path) -> dict[str, Any] | None:
    """The `meta.json` of a finished store; None if there is no store."""
    path = folder / _META
    return json.loads(path.read_text()) if path.is_file() else None


def open_split(folder: Path, split: Split) -> TokenSplit:
    """Memory-map one split of a finished store."""
    meta = read_meta(folder)
    if meta is None:
        raise UserError(f"{folder} holds no tokenized corpus; remove it and run again")
    path, dtype = folder / f"{split}.bin", np.dtype(meta["dtype"])
    # numpy cannot map an empty file
    tokens = np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
    return TokenSplit(tokens, np.load(folder / f"{split}.offsets.npy"), np.load(folder / f"{split}.sizes.npy"))


def fingerprint(parts: Sequence[str]) -> str:
    """The name of the store that these parts determine."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
