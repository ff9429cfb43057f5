"""A second, tiny task, defined outside the package: is the number of ones in a sequence even or odd?"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.data import TaskData
from lightgpt2.data.batches import Slice, StepSampler, WindowLoader, evaluation_order
from lightgpt2.data.windows import Windows
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.functional.vocabulary import token_nll
from lightgpt2.models.families import family_of, head
from lightgpt2.models.quality import Metric
from lightgpt2.tasks import Predictions, Task
from lightgpt2.tasks.base import Batch, Row

VOCABULARY = ["0", "1", "=", "even", "odd"]
SIZES = {"train": 256, "valid": 48, "test": 48}


class Parity(Task):
    """One decision a sequence: the token after its `=`."""

    auto_classes = ("AutoModelForCausalLM",)
    primary = "accuracy"
    better = "higher"

    def predictions(self, model: PreTrainedModel, batch: Batch, states: Sequence[str] = ()) -> Predictions:
        final = family_of(model).final_states(model, input_ids=batch["input_ids"])[:, -1]
        weight, bias, scale = head(model)
        kept = {name: (final, torch.ones(len(final), dtype=torch.bool, device=final.device)) for name in states}
        return Predictions(final, weight, batch["labels"], bias, scale, kept)

    @torch.no_grad()
    def rows(self, model: PreTrainedModel, batch: Batch) -> list[Row]:
        found = self.predictions(model, batch)
        nll = token_nll(found.hidden, found.weight, found.labels, found.bias, found.scale).tolist()
        right = (found.logits(slice(None), torch.float32).argmax(1) == found.labels).tolist()
        return [
            {"example": example, "loss": loss, "items": 1, "right": hit}
            for example, loss, hit in zip(batch["example"].tolist(), nll, right, strict=True)
        ]

    def metrics(self, rows: Iterable[Row]) -> dict[str, Metric]:
        hits = {int(row["example"]): float(row["right"]) for row in rows}
        right = np.array([hits[example] for example in sorted(hits)])
        return {"accuracy": Metric("accuracy", "higher", right, np.ones(len(right)))}


class ParityData(TaskData):
    """Random bits with their parity.

    Args:
        source: Its name, for the ledger.
        length: Bits of a sequence.
        batch_size: Sequences of a micro-batch.
        seed: Seed of the training order.
    """

    def __init__(self, source: str = "parity", length: int = 6, batch_size: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.source, self.length, self.batch_size, self.seed = source, length, batch_size, seed
        self.kept_tokens, self.predict_split = [], "test"
        backend = Tokenizer(WordLevel(dict(zip(VOCABULARY, range(5), strict=True)), unk_token="="))
        backend.pre_tokenizer = Split("", "isolated")
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="=", eos_token="=", pad_token="=")
        self._splits = {}
        for number, (split, size) in enumerate(SIZES.items()):
            bits = np.random.default_rng([7, number]).integers(2, size=(size, length))
            self._splits[split] = torch.from_numpy(bits)

    def problems(self) -> list[str]:
        return [] if self.length > 1 else ["data.length: 1 bit is its own parity; give at least 2"]

    @property
    def steps_per_epoch(self) -> int:
        return self._sampler().steps_per_epoch

    def train_dataloader(self) -> WindowLoader:
        return WindowLoader(_Sequences(self._splits["train"]), self._sampler())  # type: ignore[arg-type]

    def val_dataloader(self) -> WindowLoader:
        return self._evaluation("valid")

    def test_dataloader(self) -> WindowLoader:
        return self._evaluation("test")

    def predict_dataloader(self) -> WindowLoader:
        return self._evaluation(self.predict_split)

    def scoring_loader(self, split: str) -> WindowLoader:
        return self._evaluation(split)

    def calibration(self, count: int, key: str = "calibration") -> list[Tensor]:
        return [_Sequences(self._splits["train"])[Slice(np.array([i]))]["input_ids"] for i in range(count)]

    def describe(self) -> dict[str, Any]:
        text = "".join(str(split.tolist()) for split in self._splits.values())
        splits = {name: {"documents": size, "tokens": size} for name, size in SIZES.items()}
        return {"source": self.source, "sha256": hashlib.sha256(text.encode()).hexdigest(), "splits": splits}

    def batching(self) -> dict[str, Any]:
        return {"data.length": self.length, "data.batch_size": self.batch_size, "data.seed": self.seed}

    def _sampler(self) -> StepSampler:
        trainer = self.trainer
        assert trainer is not None
        dataset: Any = _Sequences(self._splits["train"])
        place = (trainer.accumulate_grad_batches, trainer.global_rank, trainer.world_size)
        return StepSampler(dataset, self.batch_size, *place, self.seed, lambda: trainer.global_step)

    def _evaluation(self, split: str) -> WindowLoader:
        dataset: Any = _Sequences(self._splits[split])
        return WindowLoader(dataset, evaluation_order(dataset.windows, 16))


class _Sequences:
    def __init__(self, bits: Tensor) -> None:
        self.bits, numbers = bits, np.arange(len(bits), dtype=np.int64)
        one, none = np.ones_like(numbers), np.zeros_like(numbers)
        self.windows = Windows(numbers, one, none, numbers, sources=[0], counts=[len(bits)], slack=[0])

    def supervised(self, rows: Any, shift: Any) -> int:
        return len(rows)

    def __getitem__(self, index: Slice) -> Batch:
        bits = self.bits[torch.from_numpy(index.indices)]
        ids = torch.cat([bits, torch.full((len(bits), 1), 2)], dim=1)
        labels = torch.full((len(bits),), IGNORE) if index.silent else 3 + bits.sum(dim=1) % 2
        example = torch.from_numpy(index.indices)
        return {"input_ids": ids, "labels": labels, "example": example, "step_items": index.step_items}
