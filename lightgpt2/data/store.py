"""A corpus tokenized once, in memory-mapped files: one stream of tokens a split, with where its documents lie."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lightgpt2.data.corpora import Corpus
from lightgpt2.data.remarks import Remarks
from lightgpt2.data.splits import SPLITS, Split, split_of
from lightgpt2.models.files import atomic_folder, sha256_file

META = "meta.json"  # of a finished store
_BATCH = 512  # documents tokenized at once


@dataclass(frozen=True)
class TokenSplit:
    """One split of a tokenized corpus."""

    tokens: NDArray[Any]  # the documents, each preceded by the separator token [n_tokens], memory-mapped
    offsets: NDArray[np.int64]  # where each document begins in `tokens`, and the end [n_documents + 1]
    sizes: NDArray[np.int64]  # UTF-8 bytes of each document's text [n_documents]
    closing: int = 0  # how many tokens end each document: 1 where the end-of-text token is not the separator

    @property
    def ends(self) -> NDArray[np.int64]:
        """Where each document's text ends in `tokens`, `[n_documents]`."""
        return self.offsets[1:] - self.closing


def split_documents(
    corpus: Corpus, valid_fraction: float, test_fraction: float, remarks: Remarks | None = None
) -> Iterator[tuple[Split, str]]:
    """Yield every distinct, non-empty document once, with its split.

    Splits that the source names are kept, and a validation or test split that it lacks is taken from its training split by the
    content's hash; where it names none, the hash decides alone. A document that occurs again is dropped, and one that is also
    held out from the training split. `remarks` gets what is left out.
    """
    remarks = Remarks() if remarks is None else remarks
    seen: set[bytes] = set()
    given = corpus.splits()
    for named, text in corpus.documents(remarks):
        text = text.strip("\n")
        if not text.strip():
            continue
        digest = hashlib.sha256(text.encode()).digest()[:16]
        if digest in seen:
            remarks.add("documents that occur again, left out", named or corpus.source)
            continue
        seen.add(digest)
        hashed = split_of(text, valid_fraction, test_fraction)
        named = named or ("train" if given else None)
        yield (hashed if named in (None, "train") and hashed not in given else named or hashed), text


def build(
    folder: Path,
    documents: Iterable[tuple[Split, str]],
    encode: Callable[[list[str]], list[list[int]]],
    separator: int,
    vocabulary: int,
    end: int | None = None,
    remarks: Remarks | None = None,
) -> None:
    """Tokenize documents into `folder`, atomically, with a progress bar.

    `meta.json` then holds the documents, tokens and bytes of each split, the digest of all tokens, and the remarks. The
    separator token is put before each document, and the end-of-text token behind it if it is another one; a document that has
    no other token is left out. The vocabulary, one more than the largest id, decides between 2 and 4 bytes a token.
    """
    remarks = Remarks() if remarks is None else remarks
    closing = [] if end in (None, separator) else [end]
    dtype = np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32)
    stream = iter(documents)
    lengths: dict[Split, list[int]] = {split: [] for split in SPLITS}
    sizes: dict[Split, list[int]] = {split: [] for split in SPLITS}
    with atomic_folder(folder) as temporary:
        with ExitStack() as stack:
            files = {split: stack.enter_context((temporary / f"{split}.bin").open("wb")) for split in SPLITS}
            bar = stack.enter_context(tqdm(desc="Tokenizing", unit=" documents", leave=False, disable=None))
            while batch := list(islice(stream, _BATCH)):
                for (split, text), ids in zip(batch, encode([text for _, text in batch]), strict=True):
                    if not ids:
                        remarks.add("documents without a token, left out", split)
                        continue
                    files[split].write(np.array([separator, *ids, *closing], dtype=dtype).tobytes())
                    lengths[split].append(len(ids) + 1 + len(closing))
                    sizes[split].append(len(text.encode()))
                bar.update(len(batch))
        counts = {}
        for split in SPLITS:
            np.save(temporary / f"{split}.offsets.npy", np.cumsum([0, *lengths[split]], dtype=np.int64))
            np.save(temporary / f"{split}.sizes.npy", np.array(sizes[split], dtype=np.int64))
            counts[split] = {"documents": len(sizes[split]), "tokens": sum(lengths[split]), "bytes": sum(sizes[split])}
        digest = hashlib.sha256("".join(sha256_file(temporary / f"{s}.bin") for s in SPLITS).encode()).hexdigest()
        about = {"dtype": dtype.name, "closing": len(closing), "sha256": digest, "splits": counts}
        (temporary / META).write_text(json.dumps(about | {"remarks": remarks.lines()}))


def read(folder: Path) -> tuple[dict[str, Any], dict[str, TokenSplit]]:
    """What `meta.json` holds, and the splits of a finished store, memory-mapped."""
    meta = json.loads((folder / META).read_text())
    found: dict[str, TokenSplit] = {}
    for split in SPLITS:
        path, dtype = folder / f"{split}.bin", np.dtype(meta["dtype"])
        # numpy cannot map an empty file
        tokens = np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
        offsets, sizes = np.load(folder / f"{split}.offsets.npy"), np.load(folder / f"{split}.sizes.npy")
        found[split] = TokenSplit(tokens, offsets, sizes, meta.get("closing", 0))
    return meta, found
