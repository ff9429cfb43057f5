"""The data of classification: labelled texts, as batches of equal length."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from numpy.typing import NDArray

from lightgpt2.data.corpora import licences
from lightgpt2.data.examples import Classes, Example, ExampleColumns, read_examples, split_examples
from lightgpt2.data.examples_data import ExamplesData
from lightgpt2.data.remarks import Remarks
from lightgpt2.data.splits import Split
from lightgpt2.data.texts import LabelledTexts, TextDataset
from lightgpt2.data.tokenizer import separates_pairs, train_wordpiece
from lightgpt2.errors import UserError, tell
from lightgpt2.models.families import CLASSIFICATION
from lightgpt2.models.loading import has_head

_UNNAMED = "LABEL_"  # how the names begin that transformers gives classes without one


class ClassificationData(ExamplesData):
    """Labelled texts for a classifier.

    Texts that a held-out split has are left out of the training split. Training order is a function of (seed, epoch); texts of
    similar length share a batch.

    Args:
        source: `requirements` or `requirements:SIZE`, sentences of a grammar whose classes are functional, interface,
            performance, security and usability; a hub dataset id (`name` or `name:config`, `glue:sst2`); or a CSV, TSV, JSON,
            JSONL or Parquet file, or a folder of them, which keeps the splits that its files and folders name.
        text_field: Field of the text. The default is the first of the usual names that is there (`text`, `sentence`, ...).
        pair_field: Field of a second text that belongs to it, with `text_field`.
        label_field: Field of the class, a name or a number.
        class_names: Names of the classes in the order of their numbers. The default is the model's, the data set's, or those in
            the field, sorted.
        class_weights: `balanced` weighs each text by the inverse of its class's share of the training split.
        max_length: Tokens of a text (of both of a pair) that are read.
        longer: What to do with longer texts: `truncate`, or `refuse`.
        batch_size: Training texts of one micro-batch on one device.
        eval_batch_size: Texts of one scoring batch. It does not change any figure.
        valid_fraction: Share of texts for validation, where the source names no such split.
        test_fraction: Share of texts for testing, likewise.
        tokenizer: Hub id or folder of the tokenizer. The default is the model's.
        vocab_size: Train a WordPiece tokenizer of this many tokens on the training split instead.
        predict_split: The split that `predict` reads.
        seed: Seed of the training order. The default is the run's seed.
    """

    calibrates = 64  # texts, which are short

    def __init__(
        self,
        source: str = "requirements",
        text_field: str | None = None,
        pair_field: str | None = None,
        label_field: str = "label",
        class_names: list[str] = [],  # noqa: B006
        class_weights: Literal["balanced"] | None = None,
        max_length: PositiveInt = 128,
        longer: Literal["truncate", "refuse"] = "truncate",
        batch_size: PositiveInt = 16,
        eval_batch_size: PositiveInt = 32,
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
        self.columns = ExampleColumns(text_field, pair_field, label_field)
        self.class_names, self.class_weights = class_names, class_weights
        self.max_length, self.longer = max_length, longer

    def problems(self) -> list[str]:
        found = super().problems()
        if self.columns.pair_field and not self.columns.text_field:
            found.append("data.text_field: required with data.pair_field; name the first text's field")
        if len({*self.class_names}) < len(self.class_names):
            found.append("data.class_names: two classes have one name; give each its own")
        return found

    def fits(self, positions: Mapping[str, int]) -> list[str]:
        owners = {count: key for key, count in positions.items()}
        what = "data.max_length: {} is longer than the {} positions of {}; give at most that"
        return [what.format(self.max_length, n, key) for n, key in owners.items() if self.max_length > n]

    @property
    def labels(self) -> list[str]:
        """The names of the classes, in the order of their numbers."""
        return self._classes.names

    def describe(self) -> dict[str, Any]:
        splits = {
            split: {"documents": len(data.labels), "tokens": int(data.offsets[-1]), "classes": self._counts(split)}
            for split, data in self._splits.items()
        }
        read = {"source": self.source, "sha256": self._digest(), "splits": splits}
        return {**read, **licences([self.corpus]), "max_length": self.max_length}

    def batching(self) -> dict[str, Any]:
        return {
            "sha256 of the data": self._digest(),
            "classes": self.labels,
            "data.class_weights": self.class_weights,
            "data.max_length": int(self.max_length),
            "data.seed": int(self.seed),
            "data.batch_size": int(self.batch_size),
        }

    def _read(self, remarks: Remarks) -> None:
        examples = read_examples(self.corpus, self.columns, remarks)
        self._examples = split_examples(examples, self.valid_fraction, self.test_fraction, remarks)
        known = self._model_names() or self.corpus.class_names(self.columns.label_field)
        self._classes = Classes.of(self._examples, known, self.class_names)
        counts = {split: Counter(self._number(each) for each in those) for split, those in self._examples.items()}
        if len(self.labels) < 2:
            fix = "give data with at least two classes"
            raise UserError(f"data.label_field: all texts of {self.source} are of class {self.labels or 'none'}; {fix}")
        names = self.labels
        if untrained := [names[i] for i in {*counts["valid"], *counts["test"]} - {*counts["train"]}]:
            what = f"no training text of {self.source} is of class {', '.join(sorted(untrained))}, which others are"
            raise UserError(f"data.label_field: {what}; give training texts of that class, or remove it")
        for split in ("valid", "test"):
            absent = [name for i, name in enumerate(names) if counts[split] and not counts[split][i]]
            for name in absent:
                remarks.add(f"classes that the {split} split lacks", name)

    def _number(self, example: Example) -> int:
        return self._classes.numbers[example.label]

    def _model_names(self) -> list[str]:
        """The names that the model has for its classes; empty if it has none."""
        config = self.connection.config if self.connection else None
        if config is None or not isinstance(self.connection and self.connection.tokenizer, str):
            return []
        if not has_head(config, CLASSIFICATION) or not getattr(config, "id2label", None):
            return []
        names = [config.id2label[i] for i in sorted(config.id2label)]
        return [] if all(name.startswith(_UNNAMED) for name in names) else names

    def _tokenized(self, split: Split, examples: Sequence[Example]) -> LabelledTexts:
        texts = [example.text for example in examples]
        pairs = [example.pair for example in examples] if examples and examples[0].pair is not None else None
        if pairs and not separates_pairs(self.tokenizer):
            what = "the tokenizer puts nothing between the two texts of a pair"
            raise UserError(f"data.pair_field: {what}; give an encoder's, or join them in one field")
        found: Any = self.tokenizer(texts, pairs, verbose=False) if texts else {"input_ids": []}
        long = sum(len(ids) > self.max_length for ids in found["input_ids"])
        if long and self.longer == "refuse":
            what = f"{long} {split} texts of {self.source} have more than {self.max_length} tokens"
            raise UserError(f"data.longer: {what}; set data.max_length, or data.longer to truncate")
        if long:
            tell(
                f"{self.source}: {split} texts longer than {self.max_length} tokens, truncated: {long} of {len(texts)}"
            )
            found = self.tokenizer(texts, pairs, truncation=True, max_length=self.max_length)
        labels = [self._number(example) for example in examples]
        return LabelledTexts.of(found, labels, examples, self.tokenizer.pad_token_id or 0)

    def _dataset(self, split: Split, training: bool = False) -> TextDataset:
        data, weights = self._splits[split], None
        if training and self.class_weights:
            counts = np.bincount(data.labels, minlength=len(self.labels))
            weights = len(data.labels) / (len(self.labels) * np.maximum(counts, 1))
        return TextDataset(data, weights)

    def _inputs(self, split: Split) -> Sequence[NDArray[Any]]:
        data = self._splits[split]
        return [data.tokens(row) for row in range(len(data.labels))]

    def _texts(self, example: Example) -> list[str]:
        return [text for text in (example.text, example.pair) if text]

    def _train(self, texts: Iterable[str], vocab_size: int, folder: Path) -> None:
        train_wordpiece(texts, vocab_size, folder)

    def _counts(self, split: Split) -> dict[str, int]:
        counts = np.bincount(self._splits[split].labels, minlength=len(self.labels))
        return {name: int(count) for name, count in zip(self.labels, counts, strict=True)}

    def _digest(self) -> str:
        parts = [
            [split, [[e.text, e.pair, self._number(e)] for e in those]]
            for split, those in sorted(self._examples.items())
        ]
        return hashlib.sha256(json.dumps([self.labels, parts]).encode()).hexdigest()
