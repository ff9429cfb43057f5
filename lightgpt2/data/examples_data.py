"""What the data modules share whose examples are rows of tables: reading, tokenizers, loaders."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from lightgpt2.data.base import TaskData
from lightgpt2.data.batches import StepSampler, WindowLoader, evaluation_order
from lightgpt2.data.corpora import Corpus
from lightgpt2.data.preparation import is_cached
from lightgpt2.data.remarks import Remarks
from lightgpt2.data.splits import Split
from lightgpt2.data.tokenizer import check_trims, trimmed
from lightgpt2.errors import Problem, UserError, tell
from lightgpt2.models.files import exists
from lightgpt2.models.quality import FEW
from lightgpt2.models.tokenizers import load_tokenizer

CACHE = Path("checkpoints/.data")
_BUCKET = 50  # steps whose examples are sorted by length together


class ExamplesData(TaskData):
    """Examples of tables, as batches of equal length.

    The whole source is read into memory. Examples that a held-out split has are left out of the training split. Training order
    is a function of (seed, epoch); examples of similar length share a batch.
    """

    unit: ClassVar[str] = "texts"  # what the examples are, for messages

    def __init__(
        self, source: str, batch_size: int, eval_batch_size: int, valid_fraction: float, test_fraction: float,
        tokenizer: str | None, vocab_size: int | None, predict_split: Split, seed: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.source, self.corpus, self.seed = source, Corpus(source), seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.valid_fraction, self.test_fraction = valid_fraction, test_fraction
        self.tokenizer_source, self.vocab_size, self.predict_split = tokenizer, vocab_size, predict_split
        self.kept_tokens = []
        self._splits: dict[Split, Any] = {}
        self._examples: dict[Split, list[Any]] = {}

    # -- what each of them says ----------------------------------------------------------------------------------------

    @abstractmethod
    def _read(self, remarks: Remarks) -> None:
        """Reads the examples of all splits into `_examples`; a `UserError` if the source does not hold what it should."""

    @abstractmethod
    def _tokenized(self, split: Split, examples: Sequence[Any]) -> Any:
        """The tokens of a split."""

    @abstractmethod
    def _dataset(self, split: Split, training: bool = False) -> Any:
        """Batches of a tokenized split, for a `WindowLoader`."""

    @abstractmethod
    def _inputs(self, split: Split) -> Sequence[NDArray[Any]]:
        """The tokens of each input of a tokenized split."""

    @abstractmethod
    def _texts(self, example: Any) -> list[str]:
        """All texts of an example, as the tokenizer gets them."""

    @abstractmethod
    def _train(self, texts: Iterable[str], vocab_size: int, folder: Path) -> None:
        """Trains a tokenizer and writes it to a folder."""

    # -- what is the same ----------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        found: list[str] = [*self.corpus.problems()]
        if self.valid_fraction + self.test_fraction >= 1:
            found.append("data.valid_fraction: with data.test_fraction it leaves no training data; give less than 1")
        if self.tokenizer_source and self.vocab_size:
            found.append("data.vocab_size: cannot be given together with data.tokenizer; remove one of them")
        return found

    def unreadable(self, fetch: bool = True) -> list[Problem]:
        if fetch or exists(self.source):
            try:
                self._read(Remarks())
            except UserError as error:
                return error.problems
        return []

    def prepare_data(self) -> None:
        """Trains the tokenizer unless that is done, and says what is left out."""
        remarks = Remarks()
        self._read(remarks)
        for line in remarks.lines():
            tell(f"{self.source}: {line}")
        if self.vocab_size and not is_cached(folder := self._trained_tokenizer()):
            self._train(self._training_texts(), self.vocab_size, folder)

    def setup(self, stage: str) -> None:
        """Tokenizes the splits; a `UserError` if one that this stage needs is too small."""
        if not self._examples:
            self._read(Remarks())
        self.tokenizer, self.kept_tokens = self._load_tokenizer()
        needed = {"fit": ["train", "valid"], "validate": ["valid"], "test": ["test"], "predict": [self.predict_split]}
        for split in needed[stage]:
            if not self._examples[cast(Split, split)]:
                what = f"{self.source} has no {split} {self.unit}; give more, or set data.{split}_fraction"
                raise UserError(f"data.source: {what}")
        for each, examples in self._examples.items():
            if each not in self._splits:
                self._splits[each] = self._tokenized(each, examples)
        if stage == "fit":
            self._check_fit()

    def train_dataloader(self) -> WindowLoader:
        sampler = self._step_sampler()
        return WindowLoader(sampler.dataset, sampler)

    def val_dataloader(self) -> WindowLoader:
        return self._loader("valid", *self._place())

    def test_dataloader(self) -> WindowLoader:
        return self._loader("test", *self._place())

    def predict_dataloader(self) -> WindowLoader:
        return self._loader(cast(Split, self.predict_split), *self._place())

    def scoring_loader(self, split: str) -> WindowLoader:
        return self._loader(cast(Split, split), 0, 1)

    @property
    def steps_per_epoch(self) -> int:
        return self._step_sampler().steps_per_epoch

    def calibration(self, count: int, key: str = "calibration") -> list[torch.Tensor]:
        inputs = self._inputs("train")
        if count > len(inputs):
            what = f"the training split has {len(inputs)} {self.unit}, fewer than {count}"
            raise UserError(f"{key}: {what}; give at most that, or more text")
        chosen = np.arange(count) * len(inputs) // count
        return [torch.from_numpy(inputs[int(row)].astype(np.int64))[None] for row in chosen]

    def _check_fit(self) -> None:
        sampler, count = self._step_sampler(), len(self._examples["valid"])
        if len(sampler) == 0:
            each = f"{sampler.epoch_windows} training {self.unit} and one step takes {sampler.step_windows}"
            what = f"{self.source} has {each}; give a smaller data.batch_size, or more text"
            raise UserError(f"data.batch_size: {what}")
        if count < FEW:
            tell(f"{self.source}: {count} validation {self.unit}; an interval over so few says little")

    def _place(self) -> tuple[int, int]:
        assert self.trainer is not None
        return self.trainer.global_rank, self.trainer.world_size

    def _step_sampler(self) -> StepSampler:
        trainer = self.trainer
        assert trainer is not None
        dataset = self._dataset("train", training=True)
        cut = (self.batch_size, trainer.accumulate_grad_batches, *self._place())
        return StepSampler(dataset, *cut, self.seed, lambda: trainer.global_step, bucket=_BUCKET)

    def _loader(self, split: Split, rank: int, world: int) -> WindowLoader:
        dataset = self._dataset(split)
        return WindowLoader(dataset, evaluation_order(dataset.windows, self.eval_batch_size, rank, world))

    def _training_texts(self) -> Iterable[str]:
        return (text for example in self._examples["train"] for text in self._texts(example))

    def _load_tokenizer(self) -> tuple[PreTrainedTokenizerFast, list[int]]:
        """The tokenizer; if it is cut down to what the training split needs, also the old id of each token."""
        tokenizer = self._plain_tokenizer()
        if tokenizer.pad_token is None:  # a decoder's, whose pads are masked
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        if self.connection is None or not self.connection.trims_vocabulary:
            return tokenizer, []
        check_trims(tokenizer)
        encoded = tokenizer([*self._training_texts()], verbose=False)["input_ids"]
        return trimmed(tokenizer, {id_ for ids in encoded for id_ in ids})

    def _plain_tokenizer(self) -> PreTrainedTokenizerFast:
        if self.vocab_size:
            return load_tokenizer(str(self._trained_tokenizer()), "data.vocab_size", separates=False)
        if self.tokenizer_source:
            return load_tokenizer(self.tokenizer_source, "data.tokenizer", separates=False)
        assert self.connection is not None, "connect() hands over the model's tokenizer"
        source, key = self.connection.tokenizer, self.connection.key
        if isinstance(source, dict):
            what = f"{key} is a configuration and brings no tokenizer"
            raise UserError(f"data.tokenizer: {what}; name one, or give data.vocab_size to train one")
        return load_tokenizer(source, key, self.connection.trust_remote_code, separates=False)

    def _trained_tokenizer(self) -> Path:
        parts = [self.corpus.fingerprint(), str(self.valid_fraction), str(self.test_fraction), str(self.vocab_size)]
        digest = hashlib.sha256(json.dumps([type(self).__name__, *parts]).encode()).hexdigest()
        return CACHE / f"tokenizer-{digest[:16]}"
