"""The data of language modeling: a corpus, tokenized once, as training and scoring windows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from transformers import PreTrainedTokenizerFast

from lightgpt2.data import store
from lightgpt2.data.base import TaskData
from lightgpt2.data.batches import StepSampler, WindowDataset, WindowLoader, epoch_shares, evaluation_order
from lightgpt2.data.corpora import Corpus, corpora, licences, unreadable
from lightgpt2.data.preparation import Preparation, document_separator
from lightgpt2.data.splits import Split
from lightgpt2.data.tokenizer import CHARACTERS, check_trims, trimmed
from lightgpt2.data.windows import Windows, document_windows, packed_windows, prompt_windows
from lightgpt2.errors import Problem, UserError, tell
from lightgpt2.models.files import exists
from lightgpt2.models.sources import verify
from lightgpt2.models.tokenizers import load_tokenizer
from lightgpt2.models.vocabulary import needed_rows

_SMALLEST_VOCABULARY = 257  # the bytes and the end-of-text token
_SMALLEST_ALPHABET = 4
_SHOWN = 32  # tokens by which a document is known


class LanguageModelingData(TaskData):
    """Text and conversations for a causal language model.

    Documents never share a split with an equal document, training order is a function of (seed, epoch), and the corpus is
    tokenized once into files under `checkpoints/.data/`. Rows of tables hold a text, or a conversation of which the answers are
    learnt: `messages`, `prompt` and `completion`, or `instruction`, `input` and `output`.

    Args:
        source: A built-in corpus (`pydoc`, the language reference inside CPython; `requirements` or `requirements:SIZE`,
            sentences of a grammar; `wikitext`), a hub dataset id (`name` or `name:config`), or the path of a text, Markdown,
            JSON, JSONL, CSV, TSV, Parquet or Arrow file, or of a folder of them, which keeps the splits that its files and
            folders name. Several sources are a list of these, or of `{source, name, weight, text_field, separator, streaming}`.
        text_field: Field that holds the text, for all but text files.
        separator: Regular expression that cuts text files into documents. By default several files of a folder in
            which no name says a split are a document each, and others are cut at blank lines.
        streaming: Read hub datasets as they arrive, without a copy on disk; with `token_budget`, no more than that needs.
        token_budget: Training tokens of one epoch, shared among the sources by their weights. The default is all the text of a
            single source; of several, as much as the weights allow without repeating any.
        near_duplicates: Leave out documents whose similarity to one before is at least this: the share of sequences of five
            words that they have in common, estimated by MinHash. The default is to leave out equal ones only.
        sequence_length: Tokens the model sees at once.
        stride: Tokens between the beginnings of scoring windows. The default is half of `sequence_length`.
        batch_size: Training windows of one micro-batch on one device.
        eval_batch_size: Scoring windows of one batch. It does not change any figure.
        mode: `packed` tiles the stream of documents with windows without pads; `padded` gives each window one document. In
            both the end of a document is learnt, as the tokenizer's end-of-text token.
        cross_document_attention: Whether documents in one packed window see those before them.
        loss_on: What of conversations is learnt and scored: the `answers` or `all`.
        chat_template: Jinja file of the chat template; it is saved with the tokenizer. The default is the tokenizer's.
        valid_fraction: Share of documents for validation, where the source names no such split.
        test_fraction: Share of documents for testing, where the source names no such split.
        tokenizer: Hub id or folder of the tokenizer; `characters` for one token for each character of the training split. The
            default is the model's.
        vocab_size: Train a byte-level BPE tokenizer of this many tokens on the training split instead. With `characters` the
            most tokens: the commonest characters.
        predict_split: The split that `predict` reads.
        processes: Processes that tokenize. The default is one for each core, and one for less than 16 MB of files.
        seed: Seed of the training order. The default is the run's seed.
    """

    def __init__(
        self,
        source: str | list[str | dict[str, Any]] = Corpus.source,
        text_field: str = Corpus.text_field,
        separator: str | None = Corpus.separator,
        streaming: bool = Corpus.streaming,
        token_budget: PositiveInt | None = None,
        near_duplicates: ClosedUnitInterval | None = None,
        sequence_length: PositiveInt = 128,
        stride: PositiveInt | None = None,
        batch_size: PositiveInt = 8,
        eval_batch_size: PositiveInt = 16,
        mode: Literal["packed", "padded"] = "packed",
        cross_document_attention: bool = True,
        loss_on: Literal["answers", "all"] = "answers",
        chat_template: str | None = None,
        valid_fraction: ClosedUnitInterval = 0.1,
        test_fraction: ClosedUnitInterval = 0.05,
        tokenizer: str | None = None,
        vocab_size: PositiveInt | None = None,
        predict_split: Split = "test",
        processes: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.corpora = corpora(source, text_field, separator, streaming)
        self.mode, self.seed = mode, seed
        self.token_budget, self.near_duplicates, self.processes = token_budget, near_duplicates, processes
        self.cross_document_attention, self.loss_on = cross_document_attention, loss_on
        self.chat_template = chat_template
        self.sequence_length, self.stride = sequence_length, stride or max(1, sequence_length // 2)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.valid_fraction, self.test_fraction = valid_fraction, test_fraction
        self.tokenizer_source, self.vocab_size, self.predict_split = tokenizer, vocab_size, predict_split
        self.source, self.kept_tokens = self._preparation.source, []
        self._splits: dict[str, store.TokenSplit] = {}

    def unreadable(self, fetch: bool = True) -> list[Problem]:
        at_hand = [corpus for corpus in self.corpora if fetch or exists(corpus.source)]
        return [problem for corpus in at_hand for problem in unreadable(corpus)]

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
        if self._learns_alphabet and self.vocab_size and self.vocab_size < (least := _SMALLEST_ALPHABET):
            what = f"{self.vocab_size} cannot hold two characters, the unknown one and the end"
            found.append(f"data.vocab_size: {what}; give at least {least}")
        elif not self._learns_alphabet and self.vocab_size and self.vocab_size < (least := _SMALLEST_VOCABULARY):
            found.append(f"data.vocab_size: {self.vocab_size} cannot hold every byte; give at least {least}")
        if self.tokenizer_source and self.vocab_size and not self._learns_alphabet:
            found.append("data.vocab_size: cannot be given together with data.tokenizer; remove one of them")
        if (self.vocab_size or self._learns_alphabet) and any(corpus.streaming for corpus in self.corpora):
            key = "data.tokenizer" if self._learns_alphabet else "data.vocab_size"
            found.append(f"{key}: would read a stream to its end; name a tokenizer with data.tokenizer")
        if not self.corpora:
            found.append("data.source: an empty list has no text; name a source")
        labels = [corpus.label for corpus in self.corpora]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            found.append(f"data.source: {labels.count(twice)} sources are called {twice}; give each a name")
        if not self.cross_document_attention and self.mode != "packed":
            found.append("data.cross_document_attention: a window of mode padded has one document; remove it")
        if self.near_duplicates == 0:
            found.append("data.near_duplicates: 0 would leave out all but one; give for example 0.8")
        if self.chat_template and not Path(self.chat_template).expanduser().is_file():
            found.append(f"data.chat_template: {self.chat_template} is not a file; name a Jinja file")
        return found + [problem for corpus in self.corpora for problem in corpus.problems()]

    def prepare_data(self) -> None:
        """Trains the tokenizer and tokenizes the corpus unless that is done, and says what is left out."""
        meta, _ = store.read(self._preparation.tokenized(self._tokenizer()[0]))
        for corpus in self.corpora:
            for line in corpus.remarks():
                tell(f"{corpus.source}: {line}")
        for line in meta["remarks"]:
            tell(f"{self.source}: {line}")

    def setup(self, stage: str) -> None:
        """Opens the tokenized corpus; a `UserError` if a split that this stage needs is too small."""
        self.tokenizer, self.kept_tokens = self._tokenizer()
        self.meta, self._splits = store.read(self._preparation.tokenized(self.tokenizer))
        needed = {"fit": ["train", "valid"], "validate": ["valid"], "predict": [self.predict_split]}
        self._preparation.check(self.meta, needed.get(stage, [stage]))
        if stage == "fit":
            self._check_steps()
            self._say_cuts()

    def train_dataloader(self) -> WindowLoader:
        sampler = self._step_sampler()
        return WindowLoader(sampler.dataset, sampler)

    def val_dataloader(self) -> WindowLoader:
        return self._loader("valid", self._scoring_windows("valid"), *self._place())

    def test_dataloader(self) -> WindowLoader:
        return self._loader("test", self._scoring_windows("test"), *self._place())

    def predict_dataloader(self) -> WindowLoader:
        """Windows of `predict_split`: scoring windows, or one prompt a document, as the task wants."""
        split, length = self.predict_split, self.connection.prompt_tokens if self.connection else None
        windows = self._scoring_windows(split)
        if length is not None:
            windows = prompt_windows(self._splits[split], length, self.sequence_length)
        return self._loader(split, windows, *self._place())

    @property
    def steps_per_epoch(self) -> int:
        return self._step_sampler().steps_per_epoch

    def scoring_loader(self, split: str) -> WindowLoader:
        return self._loader(split, self._scoring_windows(split), 0, 1)

    def beginning(self, split: str, example: int) -> str:
        data = self._splits[split]
        start = int(data.offsets[example])
        shown = data.tokens[start : min(int(data.ends[example]), start + _SHOWN)].tolist()
        return str(self.tokenizer.decode(shown, skip_special_tokens=True))

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
        chosen = starts[np.arange(count) * len(starts) // count]
        return [torch.from_numpy(split.tokens[s : s + self.sequence_length].astype("int64"))[None] for s in chosen]

    def describe(self) -> dict[str, Any]:
        read = {"source": self.source, "sha256": self.meta["sha256"], "splits": self.meta["splits"]}
        cut = {"sequence_length": self.sequence_length, "stride": self.stride, "mode": self.mode}
        return {**read, **licences(self.corpora), **cut}

    def batching(self) -> dict[str, Any]:
        weights = {corpus.label: corpus.weight for corpus in self.corpora} if len(self.corpora) > 1 else {}
        return {
            "documents": {name: split["documents"] for name, split in self.meta["splits"].items()},
            "weights of the sources": weights,
            "data.token_budget": self.token_budget,
            "data.loss_on": self.loss_on,
            "data.cross_document_attention": self.cross_document_attention,
            "sha256 of the data": self.meta["sha256"],
            "data.sequence_length": int(self.sequence_length),
            "data.mode": self.mode,
            "data.seed": int(self.seed),
            "data.batch_size": int(self.batch_size),
        }

    @property
    def _preparation(self) -> Preparation:
        fractions = self.valid_fraction, self.test_fraction
        return Preparation(self.corpora, *fractions, self.near_duplicates, self.token_budget, self.processes)

    @property
    def _learns_alphabet(self) -> bool:
        return self.tokenizer_source == CHARACTERS

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
        dataset = self._dataset("train", windows, apart=not self.cross_document_attention)
        cut = (self.batch_size, trainer.accumulate_grad_batches, *self._place())
        is_mixed = len(self.corpora) > 1 or self.token_budget is not None
        weights = [corpus.weight for corpus in self.corpora]
        shares = epoch_shares(windows, weights, self.token_budget) if is_mixed else None
        return StepSampler(dataset, *cut, self.seed, lambda: trainer.global_step, shares)

    def _scoring_windows(self, split: str) -> Windows:
        return document_windows(self._splits[split], self.sequence_length, self.stride)

    def _loader(self, split: str, windows: Windows, rank: int, world: int) -> WindowLoader:
        return WindowLoader(self._dataset(split, windows), evaluation_order(windows, self.eval_batch_size, rank, world))

    def _dataset(self, split: str, windows: Windows, apart: bool = False) -> WindowDataset:
        names = [corpus.label for corpus in self.corpora] if len(self.corpora) > 1 else []
        separator, answers_only = document_separator(self.tokenizer), self.loss_on == "answers"
        return WindowDataset(self._splits[split], windows, separator, answers_only, apart, names)

    def _check_steps(self) -> None:
        """Refuses an epoch without a whole optimizer step, or that ends before its first validation."""
        sampler, trainer = self._step_sampler(), self.trainer
        assert trainer is not None
        if len(sampler) == 0:
            tokens = self.meta["splits"]["train"]["tokens"]
            raise UserError(
                f"data.sequence_length: {self.source} has {tokens} training tokens, which is {sampler.epoch_windows} windows "
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

    def _say_cuts(self) -> None:
        """Says how many conversations are cut, so that an answer may be learned without its question."""
        split = self._splits["train"]
        if split.answers is not None and self.mode == "padded":
            sizes = split.ends - split.offsets[:-1]
            if cut := int((sizes > self.sequence_length).sum()):
                what = f"{cut} of {len(sizes)} training documents are longer than data.sequence_length ({self.sequence_length})"
                tell(f"{self.source}: {what}, and are cut")

    def _tokenizer(self) -> tuple[PreTrainedTokenizerFast, list[int]]:
        """The tokenizer; if it is cut down to what the training split needs, also the old id of each token."""
        whole = self._load_tokenizer()
        if self.connection is None or not self.connection.trims_vocabulary:
            return whole, []
        check_trims(whole)
        tokens = store.read(self._preparation.tokenized(whole))[1]["train"].tokens
        used = np.zeros(needed_rows(whole), dtype=bool)
        for start in range(0, len(tokens), 1 << 20):  # as an index it takes 8 bytes a token
            used[tokens[start : start + (1 << 20)]] = True
        return trimmed(whole, np.flatnonzero(used).tolist())

    def _load_tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = self._plain_tokenizer()
        if self.chat_template:
            tokenizer.chat_template = self._read_template(Path(self.chat_template).expanduser())
        return tokenizer

    def _read_template(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise UserError(
                f"data.chat_template: {path} cannot be read ({error}); give a Jinja file in UTF-8"
            ) from error

    def _plain_tokenizer(self) -> PreTrainedTokenizerFast:
        if self._learns_alphabet:
            return load_tokenizer(str(self._preparation.alphabet(self.vocab_size)), "data.tokenizer")
        if self.vocab_size:
            return load_tokenizer(str(self._preparation.trained_tokenizer(self.vocab_size)), "data.vocab_size")
        if self.tokenizer_source:
            verify(self.tokenizer_source, "data.tokenizer")
            return load_tokenizer(self.tokenizer_source, "data.tokenizer")
        assert self.connection is not None, "connect() hands over the model's tokenizer"
        source, key = self.connection.tokenizer, self.connection.key
        if isinstance(source, dict):
            what = f"{key} is a configuration and brings no tokenizer"
            raise UserError(f"data.tokenizer: {what}; name one, or give data.vocab_size to train one")
        return load_tokenizer(source, key, self.connection.trust_remote_code)
