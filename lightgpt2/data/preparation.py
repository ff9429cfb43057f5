"""Corpora as tokens and as a trained tokenizer: each is made once and kept under `checkpoints/.data/`."""

import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from lightgpt2.data.corpora import Corpus
from lightgpt2.data.documents import plain_text
from lightgpt2.data.encoding import Encoder
from lightgpt2.data.splitter import Splitter
from lightgpt2.data.tokenizer import CHARACTERS, train_characters, train_tokenizer
from lightgpt2.data.tokenizing import build, progress
from lightgpt2.errors import UserError, tell
from lightgpt2.models.chat import chat_template
from lightgpt2.models.files import is_whole
from lightgpt2.models.tokenizers import separator_id
from lightgpt2.models.vocabulary import needed_rows

_CACHE = Path("checkpoints/.data")
_SMALL = 1 << 24  # bytes of files for which other processes are not worth their start


@dataclass(frozen=True)
class Preparation:
    """Tokenizes corpora and trains their tokenizer; the arguments are those of `LanguageModelingData`."""

    corpora: Sequence[Corpus]
    valid_fraction: float
    test_fraction: float
    near_duplicates: float | None
    token_budget: int | None
    processes: int | None

    @property
    def source(self) -> str:
        """The corpora, as messages and the ledger name them."""
        return " + ".join(corpus.source for corpus in self.corpora)

    def trained_tokenizer(self, vocab_size: int) -> Path:
        """The folder of a tokenizer of the training split, which is trained unless that is done."""
        return self._trained("tokenizer", train_tokenizer, vocab_size)

    def alphabet(self, vocab_size: int | None) -> Path:
        """The folder of a tokenizer of the training split's characters, likewise; at most `vocab_size` tokens."""
        return self._trained(CHARACTERS, train_characters, vocab_size)

    def _trained(self, kind: str, train: Callable[[Iterator[str], Any, Path], None], vocab_size: int | None) -> Path:
        folder = self._cached(kind, json.dumps([vocab_size, self.near_duplicates]))
        if not is_cached(folder):
            splitter = self._splitter()
            with progress("Training the tokenizer", splitter) as advance:
                train(_training_texts(splitter, advance), vocab_size, folder)
        return folder

    def tokenized(self, tokenizer: PreTrainedTokenizerFast) -> Path:
        """The folder with the tokens of the corpora, which are written unless that is done."""
        dtype = "uint16" if needed_rows(tokenizer) <= 2**16 else "uint32"
        backend, end = tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id
        template = chat_template(tokenizer)
        undated = template and dataclasses.replace(template, is_dated=False)
        encoder = Encoder(backend, document_separator(tokenizer), end, dtype, undated)
        limits = self._limits()
        folder = self._cached("tokens", json.dumps([dataclasses.asdict(encoder), limits, self.near_duplicates]))
        if not is_cached(folder):
            sizes = [corpus.size() for corpus in self.corpora]
            small = None not in sizes and sum(filter(None, sizes)) < _SMALL
            processes = self.processes or (1 if small else len(os.sched_getaffinity(0)))
            build(folder, self._splitter(), encoder, processes, limits)
        return folder

    def check(self, meta: Mapping[str, Any], splits: Sequence[str]) -> None:
        """Raise a `UserError` if a corpus has no text, or a split that is needed has none.

        Args:
            meta: What the store says of itself.
            splits: The splits that are needed.
        """
        counts = meta["splits"]
        documents = sum(split["documents"] for split in counts.values())
        if documents == 0:
            what = "; ".join([f"{self.source} holds no text", *meta["remarks"]])
            raise UserError(f"data.source: {what}; give a corpus with at least a few documents")
        filled = {number for parts in meta["parts"].values() for number, _ in parts}
        if empty := [corpus.source for number, corpus in enumerate(self.corpora) if number not in filled]:
            raise UserError(f"data.source: {', '.join(empty)} holds no text beside the other sources; remove it")
        for split in splits:
            if counts[split]["documents"] == 0:
                raise UserError(self._empty(split, documents))

    def _empty(self, split: str, documents: int) -> str:
        source, named = self.source, set[str]().union(*(corpus.splits() for corpus in self.corpora))
        made = source.partition(":")[0] == "requirements"
        if named and not made and "train" not in named:
            what = f"{source} has no training text: all of it is named {' or '.join(sorted(named))}"
            return f"data.source: {what}; name what is to be trained on train, or give the file itself"
        if split in named and not made:
            return f"data.source: the {split} split of {source} has no text of at least one token; give it some"
        key = "data.source" if made or split == "train" else f"data.{split}_fraction"
        fix = "another fraction, or cut text files into smaller documents with data.separator"
        what = f"the {documents} documents of {source} leave none for the {split} split"
        return f"{key}: {what}; give {'more of them' if made else f'more documents, {fix}'}"

    def _limits(self) -> list[int | None]:
        """The training tokens that are read of each source: of a stream no more than an epoch takes."""
        shares = [corpus.weight / sum(each.weight for each in self.corpora) for corpus in self.corpora]
        budget = self.token_budget
        return [
            math.ceil(budget * share) if budget and corpus.streaming else None
            for corpus, share in zip(self.corpora, shares, strict=True)
        ]

    def _splitter(self) -> Splitter:
        return Splitter(self.corpora, self.valid_fraction, self.test_fraction, self.near_duplicates)

    def _cached(self, kind: str, *parts: str) -> Path:
        """The folder of what the corpora, the fractions and these parts determine."""
        sources = [corpus.fingerprint() for corpus in self.corpora]
        text = "\n".join([*sources, str(self.valid_fraction), str(self.test_fraction), *parts])
        return _CACHE / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def is_cached(folder: Path) -> bool:
    """True if a folder of the cache is there; of a damaged one it is said that it will be made again."""
    if not (found := is_whole(folder)) and folder.exists():
        tell(
            f"{folder} is not what was written (a checksum differs, or a file is missing): making it again", sys.stderr
        )
    return found


def document_separator(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token put before every document, by a tokenizer that `load_tokenizer` has checked to have one."""
    found = separator_id(tokenizer)
    assert found is not None
    return found


def _training_texts(splitter: Splitter, advance: Callable[[int], object]) -> Iterator[str]:
    for split, document in splitter.documents():
        text = plain_text(document)
        advance(len(text))
        if split == "train":
            yield text
