"""The contract of a start."""

from abc import ABC, abstractmethod
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.data.base import TaskData
from lightgpt2.models.layers import Layers
from lightgpt2.models.operations import Operation
from lightgpt2.tasks.base import Task
from lightgpt2.tasks.language_modeling import LanguageModeling


class Start(ABC):
    """The origin of the model that is trained."""

    source: str | dict[str, Any]  # hub id, folder, GGUF file, or configuration values
    task: Task = LanguageModeling()  # what the model has to predict; set by the method
    key: str = "start"  # its config key, for messages; its source has `key.model`
    trims_vocabulary: bool = False  # whether the model keeps only the tokens that the training split needs
    original: PreTrainedModel | None = None  # the model that the built one was cut out of, if it was; set by `build`
    precision: str = "fp32"  # what its linear layers are quantized to
    adapter: str | None = None  # the adapter folder to go on with, if the source is one

    @abstractmethod
    def configs(self, trust_remote_code: bool) -> dict[str, PretrainedConfig]:
        """Configurations by config key: of the model that is trained, then of the original, if there is one.

        Raises:
            UserError: A model cannot be found, or settings contradict each other; with all such problems.
        """

    @abstractmethod
    def build(self, data: TaskData, trust_remote_code: bool) -> tuple[PreTrainedModel, list[Operation]]:
        """Builds the model; also returns what was done to its source.

        Raises:
            UserError: It cannot be built.
        """

    def layers(self, original: PretrainedConfig) -> Layers | None:
        """The layers of the original that the model has, by stack; None if there is no original."""
        return None

    def plain(self, trust_remote_code: bool) -> PreTrainedModel:
        """The model as it was built, loaded anew in full precision: adapters are merged into it."""
        raise NotImplementedError(f"{type(self).__name__} cannot be built twice")

    @property
    def rebuilds(self) -> bool:
        """True if `plain` can build the same model again."""
        return type(self).plain is not Start.plain

    @property
    def fingerprint(self) -> Any:
        """The choices that depend on the training text, in plain values; None if there are none."""
        return None

    @property
    def tokenizer(self) -> tuple[str | dict[str, Any], str]:
        """The source of the model's tokenizer, and its config key."""
        return self.source, f"{self.key}.model"

    @property
    def sources(self) -> list[str]:
        """The models whose weights stay frozen under adapters."""
        return [self.source] if isinstance(self.source, str) else []
