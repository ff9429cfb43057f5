"""The data of language modeling: a corpus, tokenized once, as training and scoring windows."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from transformers import PreTrainedTokenizerFast

from lightgpt2.data import store
from lightgpt2.data.base import TaskData
from lightgpt2.data.corpora import Corpus
from lightgpt2.data.remarks import Remarks
from lightgpt2.data.splits import Split
from lightgpt2.data.tokenizer import check_byte_level, train_tokenizer, trimmed
from lightgpt2.data.windows import (
    StepSampler,
    WindowDataset,
    WindowLoader,
    Windows,
    document_windows,
    evaluation_order,
    packed_windows,
    prompt_windows,
)
from lightgpt2.errors import UserError, tell
from lightgpt2.models.loading import load_tokenizer, separator_id
from lightgpt2.models.vocabulary import needed_rows

_CACHE = Path("checkpoints/.data")
_SMALLEST_VOCABULARY = 257  # the bytes and the end-of-text token


class LanguageModelingData(TaskData):
    """Text for a causal language model.

    Documents never share a split with an equal document, training order is a function of (seed, epoch), and the corpus is
    tokenized once into memory-mapped files under `checkpoints/.data/`.

    Args:
        source: A built-in corpus (`pydoc`, the language reference inside CPython; `requirements` or `requirements:SIZE`,
            sentences of a grammar; `wikitext`), a hub dataset id (`name` or `name:config`), or the path of a text, Markdown,
            JSON, JSONL, CSV, TSV or Parquet file, or of a folder of them, which keeps the splits that its files and folders
            name.
        text_field: Field that holds the text, for all but text files.
        separator: Regular expression that cuts text files into documents. The default is blank lines.
        sequence_length: Tokens the model sees at once.
        stride: Tokens between the beginnings of scoring windows. The default is half of `sequence_length`.
        batch_size: Training windows of one micro-batch on one device.
        eval_batch_size: Scoring windows of one batch. It does not change any figure.
        mode: `packed` tiles the stream of documents with windows without pads; `padded` gives each window one document. In
            both the end of a document is learnt, as the tokenizer's end-of-text token.
        valid_fraction: Share of documents for validation, where the source names no such split.
        test_fraction: Share of documents for testing, where the source names no such split.
        tokenizer: Hub id or folder of the tokenizer. The default is the model's.
        vocab_size: Train a byte-level BPE tokenizer of this many tokens on the training split instead.
        predict_split: The split that `predict` reads.
        seed: Seed of the training order. The default is the run's seed.
    """

    def __init__(
        self,
        source: str = Corpus.source,
        text_field: str = Corpus.text_field,
        separator: str = Corpus.separator,
        sequence_length: PositiveInt = 128,
        stride: PositiveInt | None = None,
        batch_size: PositiveInt = 8,
        eval_batch_size: PositiveInt = 16,
        mode: Literal["packed", "padded"] = "packed",
        valid_fraction: ClosedUnitInterval = 0.1,
        test_fraction: ClosedUnitInterval = 0.05,
        tokenizer: str | None = None,
        vocab_size: PositiveInt | None = None,
        predict_split: Split = "test",
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.source, self.mode, self.seed = source, mode, seed
        self.corpus = Corpus(source, text_field, separator)
        self.sequence_length, self.stride = sequence_length, stride or max(1, sequence_length // 2)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.valid_fraction, self.test_fraction = valid_fraction, test_fraction
        self.tokenizer_source, self.vocab_size, self.predict_split = tokenizer, vocab_size, predict_split
        self.kept_tokens = []
        self._splits: dict[str, store.TokenSplit] = {}

    def fits(self, positions: Mapping[str, int]) -> list[str]:
        length, owners = self.sequence_length, {count: key for key, count in positions.items()}
        what = "data.sequence_length: {} is longer than the {} positions of {}; give at most that"
        return [what.format(length, count, key) for count, key in owners.items() if length > count]

    def problems(self) -> list[str]:
        found = []
        if self.sequence_length < 2:
            found.append("data.sequence_length: 1 leaves nothing to predict; give at least 2")
        elif self.stride >= self.sequence_length:
            what = f"{self.stride} skips tokens with windows of {self.sequence_length}"
            found.append(f"data.stride: {what}; give at most {self.sequence_length - 1}")
        if self.valid_fraction + self.test_fraction >= 1:
            found.append("data.valid_fraction: with data.test_fraction it leaves no training data; give less than 1")
        if self.vocab_size and self.vocab_size < (least := _SMALLEST_VOCABULARY):
            found.append(f"data.vocab_size: {self.vocab_size} cannot hold every byte; give at least {least}")
        if self.tokenizer_source and self.vocab_size:
            found.append("data.vocab_size: cannot be given together with data.tokenizer; remove one of them")
        return found + self.corpus.problems()

    def prepare_data(self) -> None:
        """Trains the tokenizer and tokenizes the corpus unless that is done, and says what is left out."""
        if self.vocab_size and not self._trained_tokenizer().is_dir():
            documents = store.split_documents(self.corpus, self.valid_fraction, self.test_fraction)
            texts = [text for split, text in documents if split == "train"]
            train_tokenizer(texts, self.vocab_size, self._trained_tokenizer())
        meta, _ = store.read(self._tokenized(self._tokenizer()[0]))
        for line in self.corpus.remarks() + meta["remarks"]:
            tell(f"{self.source}: {line}")

    def setup(self, stage: str) -> None:
        """Opens the tokenized corpus; a `UserError` if a split that this stage needs is too small."""
        self.tokenizer, self.kept_tokens = self._tokenizer()
        self.meta, self._splits = store.read(self._tokenized(self.tokenizer))
        self._check_splits(stage)
        if stage == "fit":
            self._check_steps()

    def train_dataloader(self) -> WindowLoader:
        sampler = self._step_sampler()
        return WindowLoader(self._dataset("train", sampler.windows), sampler)

    def val_dataloader(self) -> WindowLoader:
        return self._loader("valid", self._scoring_windows("valid"), *self._place())

    def test_dataloader(self) -> WindowLoader:
        return self._loader("test", self._scoring_windows("test"), *self._place())

    def predict_dataloader(self) -> WindowLoader:
        """Windows of `predict_split`: scoring windows, or one prompt a document, as the task wants."""
        split, length = self.predict_split, self.connection.prompt_tokens if self.connection else None
        windows = self._scoring_windows(split) if length is None else prompt_windows(self._splits[split], length)
        return self._loader(split, windows, *self._place())

    @property
    def steps_per_epoch(self) -> int:
        return self._step_sampler().steps_per_epoch

    def scoring_loader(self, split: str) -> WindowLoader:
        return self._loader(split, self._scoring_windows(split), 0, 1)

    def passages(self, split: str, count: int, length: int, more: int) -> list[tuple[list[int], list[int]]]:
        data = self._splits[split]
        bounds = zip(data.offsets[:-1], data.ends, strict=True)
        chosen = [(s, s + length, min(e, s + length + more)) for s, e in bounds if e - s > length][:count]
        return [(data.tokens[s:m].tolist(), data.tokens[m:e].tolist()) for s, m, e in chosen]

    def calibration(self, count: int, key: str = "calibration") -> list[torch.Tensor]:
        split = self._splits["train"]
        starts = packed_windows(split, self.sequence_length).starts
        if count > len(starts):
            what = f"the training split has {len(starts)} windows of {self.sequence_length} tokens, fewer than {count}"
            raise UserError(f"{key}: {what}; give at most that, or more text")
        chosen = (starts[i * len(starts) // count] for i in range(count))
        return [torch.from_numpy(split.tokens[s : s + self.sequence_length].astype("int64"))[None] for s in chosen]

    def describe(self) -> dict[str, Any]:
        read = {"source": self.corpus.source, "sha256": self.meta["sha256"], "splits": self.meta["splits"]}
        return {**read, "sequence_length": self.sequence_length, "stride": self.stride, "mode": self.mode}

    def batching(self) -> dict[str, Any]:
        return {
            "documents": {name: split["documents"] for name, split in self.meta["splits"].items()},
            "sha256 of the data": self.meta["sha256"],
            "data.sequence_length": int(self.sequence_length),
            "data.mode": self.mode,
            "data.seed": int(self.seed),
            "data.batch_size": int(self.batch_size),
        }

    def _place(self) -> tuple[int, int]:
        assert self.trainer is not None
        return self.trainer.global_rank, self.trainer.world_size

    def _step_sampler(self) -> StepSampler:
        trainer, split, length = self.trainer, self._splits["train"], self.sequence_length
        assert trainer is not None
        windows = (
            packed_windows(split, length)
            if self.mode == "packed"
            else document_windows(split, length + 1, length, closed=True)
        )
        cut = (self.batch_size, trainer.accumulate_grad_batches, *self._place())
        return StepSampler(windows, *cut, self.seed, lambda: trainer.global_step)

    def _scoring_windows(self, split: str) -> Windows:
        return document_windows(self._splits[split], self.sequence_length, self.stride)

    def _loader(self, split: str, windows: Windows, rank: int, world: int) -> WindowLoader:
        return WindowLoader(self._dataset(split, windows), evaluation_order(windows, self.eval_batch_size, rank, world))

    def _dataset(self, split: str, windows: Windows) -> WindowDataset:
        return WindowDataset(self._splits[split], windows, _separator(self.tokenizer))

    def _check_splits(self, stage: str) -> None:
        source, counts = self.corpus.source, self.meta["splits"]
        documents = sum(split["documents"] for split in counts.values())
        if documents == 0:
            raise UserError(f"data.source: {source} holds no text; give a corpus with at least a few documents")
        needed = {"fit": ["train", "valid"], "validate": ["valid"], "predict": [self.predict_split]}
        for split in needed.get(stage, [stage]):
            if counts[split]["documents"] == 0:
                raise UserError(self._empty(split, documents))

    def _empty(self, split: str, documents: int) -> str:
        source, named = self.corpus.source, self.corpus.splits()
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

    def _check_steps(self) -> None:
        """Refuses an epoch without a whole optimizer step, or that ends before its first validation."""
        sampler, trainer = self._step_sampler(), self.trainer
        assert trainer is not None
        if len(sampler) == 0:
            tokens = self.meta["splits"]["train"]["tokens"]
            raise UserError(
                f"data.sequence_length: {self.source} has {tokens} training tokens, which is {len(sampler.windows)} windows "
                f"of {self.sequence_length}, and one optimizer step takes {sampler.step_windows}; give more text, shorter "
                "windows or a smaller data.batch_size"
            )
        # Lightning has no such attribute where the interval is a time.
        every = getattr(trainer, "val_check_interval", None)
        within_epoch = trainer.check_val_every_n_epoch is not None
        if within_epoch and isinstance(every, int) and every > len(sampler):
            raise UserError(
                f"trainer.val_check_interval: {every} is more than the {len(sampler)} batches of an epoch; give at most "
                "that, or set trainer.check_val_every_n_epoch to null to count across epochs"
            )

    def _tokenizer(self) -> tuple[PreTrainedTokenizerFast, list[int]]:
        """The tokenizer; if it is cut down to what the training split needs, also the old id of each token."""
        whole = self._load_tokenizer()
        if self.connection is None or not self.connection.trims_vocabulary:
            return whole, []
        check_byte_level(whole)
        tokens = store.read(self._tokenized(whole))[1]["train"].tokens
        used = np.zeros(needed_rows(whole), dtype=bool)
        for start in range(0, len(tokens), 1 << 20):  # as an index it takes 8 bytes a token
            used[tokens[start : start + (1 << 20)]] = True
        return trimmed(whole, np.flatnonzero(used).tolist())

    def _load_tokenizer(self) -> PreTrainedTokenizerFast:
        if self.vocab_size:
            return load_tokenizer(str(self._trained_tokenizer()), "data.vocab_size")
        if self.tokenizer_source:
            return load_tokenizer(self.tokenizer_source, "data.tokenizer")
        assert self.connection is not None, "connect() hands over the model's tokenizer"
        source, key = self.connection.tokenizer, self.connection.key
        if isinstance(source, dict):
            what = f"{key} is a configuration and brings no tokenizer"
            raise UserError(f"data.tokenizer: {what}; name one, or give data.vocab_size to train one")
        return load_tokenizer(source, key, self.connection.trust_remote_code)

    def _tokenized(self, tokenizer: PreTrainedTokenizerFast) -> Path:
        """The folder with the tokens of the corpus, which are written unless that is done."""
        separator, end = _separator(tokenizer), tokenizer.eos_token_id
        closing = [] if end in (None, separator) else [str(end)]
        folder = self._cached("tokens", tokenizer.backend_tokenizer.to_str(), str(separator), *closing)
        if not (folder / store.META).is_file():
            remarks = Remarks()
            store.build(
                folder,
                store.split_documents(self.corpus, self.valid_fraction, self.test_fraction, remarks),
                lambda texts: tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"],
                separator,
                needed_rows(tokenizer),
                end,
                remarks,
            )
        return folder

    def _trained_tokenizer(self) -> Path:
        return self._cached("tokenizer", str(self.vocab_size))

    def _cached(self, kind: str, *parts: str) -> Path:
        """The folder of what the corpus, its fractions and these parts determine."""
        text = "\n".join([self.corpus.fingerprint(), str(self.valid_fraction), str(self.test_fraction), *parts])
        return _CACHE / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _separator(tokenizer: PreTrainedTokenizerFast) -> int:
    found = separator_id(tokenizer)
    assert found is not None  # load_tokenizer has checked it
    return found
