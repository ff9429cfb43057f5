"""The contract of a task's data module: all that methods, callbacks and conversions ask of the data."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lightgpt2.errors import Problem


@dataclass(frozen=True)
class Connection:
    """The facts that a method hands over to its data before the data is prepared."""

    tokenizer: str | dict[str, Any]  # of the model: hub id, folder, GGUF file; a dictionary if there is none
    key: str  # config key of that source, for messages
    trust_remote_code: bool = False  # whether code in the tokenizer's folder may run
    trims_vocabulary: bool = False  # whether the tokenizer keeps only the tokens that the training split needs
    prompt_tokens: int | None = None  # length of the prompts that `predict` reads; None: it scores
    config: PretrainedConfig | None = None  # of the model, if it can be read


class TaskData(LightningDataModule):
    """The data of a task.

    A batch is a dictionary; `step_items` in it is the number of supervised items of the whole optimizer step, over all its
    micro-batches and processes.
    """

    source: str  # what the ledger calls the data
    tokenizer: PreTrainedTokenizerBase  # once `setup` has run
    kept_tokens: list[int]  # with a trimmed vocabulary the old id of each token; else empty
    predict_split: str  # the split that `predict` reads
    calibrates: ClassVar[int] = 4  # the training inputs that say what the inputs of layers are like
    connection: Connection | None = None

    def connect(self, connection: Connection) -> None:
        """Takes what the method hands over."""
        self.connection = connection

    @abstractmethod
    def problems(self) -> list[str]:
        """The mistakes in the settings, one line each."""

    def unreadable(self, fetch: bool = True) -> list[Problem]:
        """What is wrong with the text where no tokenizer can say it yet: all of it is read; without `fetch`, if it is here."""
        return []

    def fits(self, positions: Mapping[str, int]) -> list[str]:
        """The problems with models of these numbers of positions, by config key, one line each."""
        return []

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch under the attached trainer."""

    @abstractmethod
    def scoring_loader(self, split: str) -> Iterable[dict[str, Any]]:
        """All batches to score a split with, whatever the number of processes."""

    @abstractmethod
    def calibration(self, count: int, key: str = "calibration") -> list[torch.Tensor]:
        """Token ids of training inputs, evenly spaced, `[1, T]` each; a `UserError` under `key` if they are fewer."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The ledger's record of the data: `source`, `sha256`, `splits`, `licence` where it is known, and how it is cut."""

    @abstractmethod
    def batching(self) -> dict[str, Any]:
        """The settings that decide the batches, by config key: a resumed run must have the same."""

    def beginning(self, split: str, example: int) -> str:
        """The beginning of an example's text, by which a person knows it again; empty if the data has none."""
        return ""

    def passages(self, split: str, count: int, length: int, more: int) -> list[tuple[list[int], list[int]]]:
        """The beginnings of the first examples that are longer than `length` tokens, each with up to `more` that follow."""
        return []

    def prompts(self, split: str, count: int, length: int) -> list[list[int]]:
        """The beginnings of the first examples of a split that are longer than `length` tokens."""
        return [prompt for prompt, _ in self.passages(split, count, length, 0)]
