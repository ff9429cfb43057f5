"""The data of summarization, and of any other task that makes a text of a text."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from lightgpt2.data.batches import Slice
from lightgpt2.data.corpora import licences
from lightgpt2.data.examples import split_examples
from lightgpt2.data.examples_data import ExamplesData
from lightgpt2.data.generated import GeneratedTargets
from lightgpt2.data.pair_batches import EncodedPairs, PairDataset
from lightgpt2.data.pair_tokens import PLACE, PairEncoder
from lightgpt2.data.pairs import Pair, PairColumns, read_pairs
from lightgpt2.data.remarks import Remarks
from lightgpt2.data.splits import Split
from lightgpt2.data.tokenizer import train_text_to_text
from lightgpt2.errors import UserError, tell
from lightgpt2.models.decoding import Decoding
from lightgpt2.models.saving import positions_of


class TextToTextData(ExamplesData):
    """Texts with what a model should make of them: articles and summaries.

    Sources that a held-out split has are left out of the training split. Training order is a function of (seed, epoch); texts
    of similar length share a batch, and pads are in no loss. An encoder-decoder reads the source in its encoder; a decoder
    reads it as a prompt, and learns what follows alone. Rows may also hold conversations (`messages`, `prompt` and
    `completion`), of which the last answer is learnt. What is scored is compared with the whole target.

    Args:
        source: `requirements` or `requirements:SIZE`, documents of a grammar with a summary of one sentence; a hub dataset id
            (`name` or `name:config`); or a CSV, TSV, JSON, JSONL or Parquet file, or a folder of them, which keeps the splits
            that its files and folders name.
        source_field: Field of the source. The default is the first of the usual names (`article`, `document`, `text`, ...).
        target_field: Field of the target. The default is the name that belongs to it (`highlights`, `summary`, ...).
        prefix: Text before each source, as T5 was trained with: `summarize: `.
        max_source_length: Tokens of a source that are read.
        max_target_length: Tokens of a target that are learnt.
        longer: What to do with longer ones: `truncate`, or `refuse`. What is scored is compared with whole targets in any case.
        template: Text around the source that a decoder reads, `{source}` in it. The default is the tokenizer's chat template,
            or without one `{source}`, an empty line and `TL;DR: `.
        chat_template: Jinja file of the chat template; it is saved with the tokenizer. The default is the tokenizer's.
        generated_by: Learn what this model writes, in place of the targets of the training split (sequence-level distillation,
            Kim and Rush 2016, arXiv:1606.07947): hub id or folder. It is generated once.
        generation: How that is generated.
        batch_size: Training texts of one micro-batch on one device.
        eval_batch_size: Texts of one scoring batch.
        valid_fraction: Share of texts for validation, where the source names no such split.
        test_fraction: Share of texts for testing, likewise.
        tokenizer: Hub id or folder of the tokenizer. The default is the model's.
        vocab_size: Train a byte-level BPE tokenizer of this many tokens, with BART's special ones, on the training split.
        predict_split: The split that `predict` reads.
        seed: Seed of the training order. The default is the run's seed.
    """

    unit = "pairs"
    calibrates = 16

    def __init__(
        self,
        source: str = "requirements",
        source_field: str | None = None,
        target_field: str | None = None,
        prefix: str = "",
        max_source_length: PositiveInt = 512,
        max_target_length: PositiveInt = 128,
        longer: Literal["truncate", "refuse"] = "truncate",
        template: str | None = None,
        chat_template: str | None = None,
        generated_by: str | None = None,
        generation: Decoding = Decoding(num_beams=4),
        batch_size: PositiveInt = 8,
        eval_batch_size: PositiveInt = 16,
        valid_fraction: ClosedUnitInterval = 0.1,
        test_fraction: ClosedUnitInterval = 0.05,
        tokenizer: str | None = None,
        vocab_size: PositiveInt | None = None,
        predict_split: Split = "test",
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(
            source,
            batch_size,
            eval_batch_size,
            valid_fraction,
            test_fraction,
            tokenizer,
            vocab_size,
            predict_split,
            seed,
        )
        self.columns = PairColumns(source_field, target_field)
        self.prefix, self.longer = prefix, longer
        self.max_source_length, self.max_target_length = int(max_source_length), int(max_target_length)
        self.template, self.chat_template = template, chat_template
        self.generated_by, self.generation = generated_by, generation

    def problems(self) -> list[str]:
        found = super().problems()
        if self.template is not None and PLACE not in self.template:
            found.append(f"data.template: must hold {PLACE}, got {self.template!r:.60}; put it where the source goes")
        if self.chat_template and not Path(self.chat_template).expanduser().is_file():
            found.append(f"data.chat_template: {self.chat_template} is not a file; name a Jinja file")
        if self.max_target_length < 2:
            found.append("data.max_target_length: 1 leaves room for the end alone; give at least 2")
        found += [p.under("data.generation") for p in self.generation.problems(self.max_target_length)]
        return found

    def fits(self, positions: Mapping[str, int]) -> list[str]:
        found, names = [], ("max_source_length", "max_target_length")
        for count, key in {count: key for key, count in positions.items()}.items():
            if self.is_joined:
                both = self.max_source_length + self.max_target_length
                what = (
                    f"{self.max_source_length} with the {self.max_target_length} tokens of a target is longer than the"
                )
                if both > count:
                    found.append(f"data.max_source_length: {what} {count} positions of {key}; give less of one of them")
                continue
            for name in names:
                if (length := getattr(self, name)) > count:
                    what = f"{length} is longer than the {count} positions of {key}"
                    found.append(f"data.{name}: {what}; give at most that")
        return found

    @property
    def is_joined(self) -> bool:
        """True if the model is a decoder, which reads source and target as one text."""
        config = self.connection.config if self.connection else None
        return config is not None and not config.is_encoder_decoder

    def prepare_data(self) -> None:
        super().prepare_data()
        if self._generated:
            self._generated.complete(self._examples["train"])

    def examples(self, split: Split, count: int) -> list[dict[str, Any]]:
        """The first pairs of a split, as batches of one."""
        dataset = self._dataset(split)
        return [dataset[Slice(np.array([row]))] for row in range(min(count, len(dataset.windows)))]

    def describe(self) -> dict[str, Any]:
        splits = {
            split: {
                "documents": len(data.pairs),
                "tokens": sum(map(len, data.sources)),
                "target_tokens": sum(map(len, data.targets)),
            }
            for split, data in self._splits.items()
        }
        about = {"source": self.source, "sha256": self._digest(), "splits": splits, **licences([self.corpus])}
        if self._generated:
            about["targets"] = {"generated_by": self.generated_by, "sha256": self._targets_digest()}
        return about | {"max_source_length": self.max_source_length, "max_target_length": self.max_target_length}

    def batching(self) -> dict[str, Any]:
        return {
            "sha256 of the data": self._digest(),
            "sha256 of the targets": self._targets_digest(),
            "data.prefix": self.prefix,
            "data.template": self.template,
            "data.max_source_length": self.max_source_length,
            "data.max_target_length": self.max_target_length,
            "data.seed": int(self.seed),
            "data.batch_size": int(self.batch_size),
        }

    def _read(self, remarks: Remarks) -> None:
        pairs = read_pairs(self.corpus, self.columns, remarks)
        self._examples = split_examples(pairs, self.valid_fraction, self.test_fraction, remarks)
        if not any(self._examples.values()):
            said = "; ".join(["holds no pair of a source and a target", *remarks.lines()])
            raise UserError(f"data.source: {self.source} {said}; give a table with some")

    def _tokenized(self, split: Split, examples: Sequence[Pair]) -> EncodedPairs:
        def longer(what: str, count: int) -> None:
            most, key = {
                "sources": (self.max_source_length, "max_source_length"),
                "targets": (self.max_target_length, "max_target_length"),
            }[what]
            said = f"{count} of {len(examples)} {split} {what} of {self.source} have more than {most} tokens"
            if self.longer == "refuse":
                raise UserError(f"data.longer: {said}; set data.{key}, or data.longer to truncate")
            whole = "; what is scored is compared with whole ones" if what == "targets" else ""
            tell(f"{said}: truncated{whole}")

        if split == "train" and self._generated:
            texts = self._generated.read(examples)
            examples = [
                replace(pair, target=text, conversation=None) for pair, text in zip(examples, texts, strict=True)
            ]
        encoder = PairEncoder(self.tokenizer, self.prefix, self.max_source_length, self.max_target_length)
        if not self.is_joined:
            return encoder.separate(examples, longer)
        found = encoder.joined(examples, longer, self.template)
        self._check_room(found)
        return found

    def _check_room(self, found: EncodedPairs) -> None:
        """Refuses prompts that with their targets are longer than the model's positions, as a template can make them."""
        assert self.connection is not None
        assert self.connection.config is not None
        most = positions_of(self.connection.config)
        longest = max((len(a) + len(b) for a, b in zip(found.sources, found.targets, strict=True)), default=0)
        if most and longest > most:
            what = f"with the template a prompt and its target have {longest} tokens, and the model {most} positions"
            raise UserError(f"data.max_source_length: {what}; give less")

    def _dataset(self, split: Split, training: bool = False) -> PairDataset:
        return PairDataset(self._splits[split], self.is_joined)

    def _inputs(self, split: Split) -> Sequence[NDArray[Any]]:
        data: EncodedPairs = self._splits[split]
        if not self.is_joined:
            return data.sources
        return [np.concatenate(both) for both in zip(data.sources, data.targets, strict=True)]

    def _texts(self, example: Pair) -> list[str]:
        return [self.prefix + example.source, example.target]

    def _train(self, texts: Iterable[str], vocab_size: int, folder: Path) -> None:
        train_text_to_text(texts, vocab_size, folder)

    def _load_tokenizer(self) -> tuple[PreTrainedTokenizerFast, list[int]]:
        tokenizer, kept = super()._load_tokenizer()
        if self.chat_template:
            tokenizer.chat_template = Path(self.chat_template).expanduser().read_text(encoding="utf-8")
        return tokenizer, kept

    @property
    def _generated(self) -> GeneratedTargets | None:
        if self.generated_by is None:
            return None
        sizes = self.max_source_length, self.max_target_length
        trusted = bool(self.connection and self.connection.trust_remote_code)
        found = GeneratedTargets(self.generated_by, self.generation, self.prefix, *sizes, self.template, trusted)
        if getattr(self.trainer, "checks", False) and not found.exist(self._examples["train"]):
            return None  # a check does not wait for a teacher
        return found

    def _digest(self) -> str:
        parts = [[split, [[p.source, p.target] for p in those]] for split, those in sorted(self._examples.items())]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _targets_digest(self) -> str | None:
        """The digest of what is learnt in place of the targets; None if they are."""
        if not self._generated:
            return None
        return hashlib.sha256(json.dumps(self._generated.read(self._examples["train"])).encode()).hexdigest()
