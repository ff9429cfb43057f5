"""The data of language modeling: a corpus, tokenized once, as training and scoring windows."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from transformers import PreTrainedTokenizerFast

from lightgpt2.data import store
from lightgpt2.data.base import TaskData
from lightgpt2.data.corpora import SPLITS, Corpus, Split
from lightgpt2.data.tokenizer import check_byte_level, train_tokenizer, trimmed
from lightgpt2.data.windows import (
    EvaluationSampler,
    StepSampler,
    WindowDataset,
    WindowLoader,
    Windows,
    document_windows,
    packed_windows,
    prompt_windows,
)
from lightgpt2.errors import UserError
from lightgpt2.models.loading import load_tokenizer, separator_id

CACHE = Path("checkpoints/.data")

SMALLEST_VOCABULARY = 257  # the bytes and the end-of-text token


class LanguageModelingData(TaskData):
    """Text for a causal language model.

    Documents never share a split with an equal document, training order is a function of (seed, epoch), and the corpus is
    tokenized once into memory-mapped files under `checkpoints/.data/`.

    Args:
        source: A built-in corpus (`pydoc`, the language reference inside CPython; `requirements` or `requirements:SIZE`,
            sentences of a grammar; `wikitext`), a hub dataset id (`name` or `name:config`), or the path of a text, JSONL, CSV,
            TSV or Parquet file or a folder of them. A folder with a file named `train.*` keeps the splits its files name.
        text_field: Field that holds the text, for all but text files.
        separator: Regular expression that cuts text files into documents. The default is blank lines.
        sequence_length: Tokens the model sees at once.
        stride: Tokens between the beginnings of scoring windows. The default is half of `sequence_length`.
        batch_size: Training windows of one micro-batch on one device.
        eval_batch_size: Scoring windows of one batch. It does not change any figure.
        mode: `packed` tiles the stream of documents with windows without pads; `padded` gives each window one document.
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
        """The models that have fewer positions than a window, one line each."""
        length, owners = self.sequence_length, {count: key for key, count in positions.items()}
        what = "data.sequence_length: {} is longer than the {} positions of {}; give at most that"
        return [what.format(length, count, key) for count, key in owners.items() if length > count]

    def problems(self) -> list[str]:
        """The mistakes in the settings, one line each."""
        found = []
        if self.sequence_length < 2:
            found.append("data.sequence_length: 1 leaves nothing to predict; give at least 2")
        elif self.stride >= self.sequence_length:
            found.append(
                f"data.stride: {self.stride} skips tokens with windows of {self.sequence_length}; "
                f"give at most {self.sequence_length - 1}"
            )
        if self.valid_fraction + self.test_fraction >= 1:
            found.append("data.valid_fraction: with data.test_fraction it leaves no training data; give less than 1")
        if self.vocab_size and self.vocab_size < (least := SMALLEST_VOCABULARY):
            found.append(f"data.vocab_size: {self.vocab_size} cannot hold every byte; give at least {least}")
        if self.tokenizer_source and self.vocab_size:
            found.append("data.vocab_size: cannot be given together with data.tokenizer; remove one of them")
        try:
            self.corpus.check()
        except UserError as error:
            found += error.problems
        return found

    def prepare_data(self) -> None:
        """Trains the tokenizer and tokenizes the corpus unless that is done; one process a machine runs this."""
        if self.vocab_size and not self._trained_tokenizer().is_dir():
            texts = [text for split, text in self._documents() if split == "train"]
            train_tokenizer(texts, self.vocab_size, self._trained_tokenizer())
        tokenizer = self._load_tokenizer()
        if self._trims():
            check_byte_level(tokenizer)
            self._tokenize(tokenizer)
            tokenizer, _ = trimmed(tokenizer, self._used(tokenizer))
        self._tokenize(tokenizer)

    def setup(self, stage: str) -> None:
        """Opens the tokenized corpus; a `UserError` if a split that this stage needs is too small."""
        self.tokenizer = self._load_tokenizer()
        if self._trims():
            self.tokenizer, self.kept_tokens = trimmed(self.tokenizer, self._used(self.tokenizer))
        folder = self._store(self.tokenizer)
        self.meta = store.read_meta(folder) or {}
        self._splits = {split: store.open_split(folder, split) for split in SPLITS}
        self._check_splits(stage)

    def train_dataloader(self) -> WindowLoader:
        """Micro-batches of whole optimizer steps, from the trainer's position on."""
        sampler = self._step_sampler()
        return WindowLoader(self._dataset("train", self._train_windows()), sampler, sampler.step)

    def val_dataloader(self) -> WindowLoader:
        """Scoring windows of the validation split, this process's share."""
        return self._loader("valid", self._scoring_windows("valid"), *self._place())

    def test_dataloader(self) -> WindowLoader:
        """Scoring windows of the test split, this process's share."""
        return self._loader("test", self._scoring_windows("test"), *self._place())

    def predict_dataloader(self) -> WindowLoader:
        """Windows of `predict_split`: scoring windows, or one prompt a document, as the task wants."""
        split, length = self.predict_split, self.connection.prompt_tokens if self.connection else None
        prompts = None if length is None else prompt_windows(self._splits[split], length)
        return self._loader(split, prompts or self._scoring_windows(split), *self._place())

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch under the attached trainer."""
        return self._step_sampler().steps_per_epoch

    def scoring_loader(self, split: str) -> WindowLoader:
        """All scoring windows of a split, whatever the number of processes."""
        return self._loader(split, self._scoring_windows(split), 0, 1)

    def passages(self, split: str, count: int, length: int, more: int) -> list[tuple[list[int], list[int]]]:
        """The beginnings of the first documents that are longer than `length` tokens, separator included; see `TaskData`."""
        data = self._splits[split]
        bounds = zip(data.offsets[:-1], data.offsets[1:], strict=True)
        chosen = [(s, s + length, min(e, s + length + more)) for s, e in bounds if e - s > length][:count]
        return [(data.tokens[s:m].tolist(), data.tokens[m:e].tolist()) for s, m, e in chosen]

    def calibration(self, count: int, key: str = "calibration") -> list[torch.Tensor]:
        """Token ids of training windows, evenly spaced, `[1, sequence_length]` each; a `UserError` if there are fewer."""
        split = self._splits["train"]
        starts = packed_windows(split, self.sequence_length).starts
        if count > len(starts):
            what = f"the training split has {len(starts)} windows of {self.sequence_length} tokens, fewer than {count}"
            raise UserError(f"{key}: {what}; give at most that, or more text")
        chosen = (starts[i * len(starts) // count] for i in range(count))
        return [torch.from_numpy(split.tokens[s : s + self.sequence_length].astype("int64"))[None] for s in chosen]

    def describe(self) -> dict[str, Any]:
        """The ledger's record of the data."""
        read = {"source": self.corpus.source, "sha256": self.meta["sha256"], "splits": self.meta["splits"]}
        return {**read, "sequence_length": self.sequence_length, "stride": self.stride, "mode": self.mode}

    def batching(self) -> dict[str, Any]:
        """The splits, the windows, and how many of them make a micro-batch."""
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

    def _train_windows(self) -> Windows:
        split = self._splits["train"]
        if self.mode == "packed":
            return packed_windows(split, self.sequence_length)
        return document_windows(split, self.sequence_length + 1, self.sequence_length)

    def _step_sampler(self) -> StepSampler:
        trainer, windows = self.trainer, self._train_windows()
        assert trainer is not None
        accumulate, place = trainer.accumulate_grad_batches, self._place()
        return StepSampler(windows, self.batch_size, accumulate, *place, self.seed, lambda: trainer.global_step)

    def _scoring_windows(self, split: str) -> Windows:
        return document_windows(self._splits[split], self.sequence_length, self.stride)

    def _loader(self, split: str, windows: Windows, rank: int, world: int) -> WindowLoader:
        sampler = EvaluationSampler(windows, self.eval_batch_size, rank, world)
        return WindowLoader(self._dataset(split, windows), sampler)

    def _dataset(self, split: str, windows: Windows) -> WindowDataset:
        pad = separator_id(self.tokenizer)
        assert pad is not None
        return WindowDataset(self._splits[split], windows, pad)

    def _check_splits(self, stage: str) -> None:
        source, counts = self.corpus.source, self.meta["splits"]
        documents = sum(split["documents"] for split in counts.values())
        needed = {"fit": ["train", "valid"], "validate": ["valid"], "predict": [self.predict_split]}
        if documents == 0:
            raise UserError(f"data.source: {source} holds no text; give a corpus with at least a few documents")
        for split in needed.get(stage, [stage]):
            if counts[split]["documents"] == 0:
                made = source.partition(":")[0] == "requirements"
                key = "data.source" if made or split == "train" else f"data.{split}_fraction"
                fix = "another fraction, or cut text files into smaller documents with data.separator"
                what = f"the {documents} documents of {source} leave none for the {split} split"
                raise UserError(f"{key}: {what}; give {'more of them' if made else f'more documents, {fix}'}")
        if stage != "fit":
            return
        sampler, trainer = self._step_sampler(), self.trainer
        assert trainer is not None
        if len(sampler) == 0:
            step = sampler.batch * sampler.accumulate * sampler.world
            raise UserError(
                f"data.sequence_length: {source} has {counts['train']['tokens']} training tokens, which is "
                f"{len(sampler.supervised)} windows of {self.sequence_length}, and one optimizer step takes {step}; give more "
                "text, shorter windows or a smaller data.batch_size"
            )
        every, within_epoch = trainer.val_check_interval, trainer.check_val_every_n_epoch is not None
        if within_epoch and isinstance(every, int) and every > len(sampler):
            raise UserError(
                f"trainer.val_check_interval: {every} is more than the {len(sampler)} batches of an epoch; give at most "
                "that, or set trainer.check_val_every_n_epoch to null to count across epochs"
            )

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

    def _trims(self) -> bool:
        return self.connection is not None and self.connection.trims_vocabulary

    def _used(self, tokenizer: PreTrainedTokenizerFast) -> list[int]:
        """The ids of the tokens that the training split consists of."""
        used = np.zeros(len(tokenizer), dtype=bool)
        tokens = store.open_split(self._store(tokenizer), "train").tokens
        for start in range(0, len(tokens), 1 << 20):  # as an index it takes 8 bytes a token
            used[tokens[start : start + (1 << 20)]] = True
        return np.flatnonzero(used).tolist()

    def _tokenize(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Writes the tokens of the corpus unless that is done."""
        folder = self._store(tokenizer)
        if store.read_meta(folder) is None:
            separator = separator_id(tokenizer)
            assert separator is not None  # load_tokenizer has checked it
            store.build(
                folder,
                self._documents(),
                lambda texts: tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"],
                separator,
                len(tokenizer),
            )

    def _corpus_key(self) -> list[str]:
        return [self.corpus.fingerprint(), str(self.valid_fraction), str(self.test_fraction)]

    def _trained_tokenizer(self) -> Path:
        return CACHE / f"tokenizer-{store.fingerprint([*self._corpus_key(), str(self.vocab_size)])}"

    def _store(self, tokenizer: PreTrainedTokenizerFast) -> Path:
        parts = [*self._corpus_key(), tokenizer.backend_tokenizer.to_str(), str(separator_id(tokenizer))]
        return CACHE / f"tokens-{store.fingerprint(parts)}"

    def _documents(self) -> Iterator[tuple[Split, str]]:
        return store.split_documents(self.corpus, self.valid_fraction, self.test_fraction)
