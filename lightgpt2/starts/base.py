"""What a start is."""

from abc import ABC, abstractmethod
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.data.base import TaskData
from lightgpt2.models.operations import Operation


class Start(ABC):
    """Where the model that is trained comes from.

    Attributes:
        source: The model that the stage starts from: hub id, folder, GGUF file, or configuration values.
        key: The config key of the start, for messages; that of the source is `key.model`.
        trims_vocabulary: Whether the model keeps only the tokens that the training split needs.
        original: The model that the built one was cut out of, if it was; set by `build`.
        precision: What its linear layers are quantized to.
        adapter: The adapter folder to go on with, if the source is one.
    """

    source: str | dict[str, Any]
    key: str = "start"
    trims_vocabulary: bool = False
    original: PreTrainedModel | None = None
    precision: str = "fp32"
    adapter: str | None = None

    @abstractmethod
    def configs(self, trust_remote_code: bool) -> dict[str, PretrainedConfig]:
        """Configurations by config key, without weights: of the model that is trained; and of the original, if there is one.

        Raises:
            UserError: A model cannot be found, or one setting contradicts another; with all such problems.
        """

    @abstractmethod
    def build(self, data: TaskData, trust_remote_code: bool) -> tuple[PreTrainedModel, list[Operation]]:
        """Makes the model, in full precision unless the start says otherwise, and says what was done to its source.

        Raises:
            UserError: It cannot be made.
        """

    def layers(self, original: PretrainedConfig) -> list[int] | None:
        """Which of the original's layers the model has; None where there is no original."""
        return None

    def plain(self, trust_remote_code: bool) -> PreTrainedModel:
        """The model as it was built, loaded anew in full precision: adapters are merged into it.

        Raises:
            NotImplementedError: This start can't build the same model twice.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be built twice")

    @property
    def fingerprint(self) -> Any:
        """What of the built model depends on the training text, in plain values; None: nothing."""
        return None

    @property
    def tokenizer(self) -> tuple[str | dict[str, Any], str]:
        """The source of the model's tokenizer, and its config key."""
        return self.source, f"{self.key}.model"

    @property
    def sources(self) -> list[str]:
        """The models whose weights stay frozen under adapters."""
        return [self.source] if isinstance(self.source, str) else []
