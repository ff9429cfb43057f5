"""The contract of a family: what has to be known of one architecture, and the registry by model type."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.errors import UserError
from lightgpt2.models.families.substitution import computed


@dataclass(frozen=True)
class Shape:
    """The sizes of a block, in which a model can be trimmed."""

    width: int  # of the hidden states
    heads: int
    groups: int  # heads that share one head of keys and values
    head: int  # channels of a head
    ffn: int  # neurons

    @classmethod
    def of(cls, config: PretrainedConfig) -> "Shape":
        """The sizes that the configuration of a supported family gives."""
        return family_of(config).shape(config)

    def settings(self, model_type: str) -> dict[str, int | None]:
        """These sizes as configuration values of a family."""
        return family_of(model_type).settings(self)

    def applied(self, config: PretrainedConfig) -> PretrainedConfig:
        """A copy of a configuration with these sizes in all its blocks."""
        sized = copy.deepcopy(config)
        for key, size in self.settings(config.model_type).items():
            setattr(sized, key, size)
        return sized


class Head(NamedTuple):
    """The vocabulary head as it computes: logits = scale * hidden @ weight.T + bias."""

    weight: Tensor  # [V, D], the embedding itself where the two are tied
    bias: Tensor | None  # [V]
    scale: float


@dataclass(frozen=True)
class Gguf:
    """The form of a family in llama.cpp, beside what all families have."""

    architecture: str
    problems: Callable[[PretrainedConfig], Iterable[str]]  # what it would compute differently, and the fix
    metadata: Callable[[PretrainedConfig], dict[str, Any]]  # by NAME of `gguf.GGUFWriter.add_NAME`
    # A parameter `[outputs, inputs]` as llama.cpp stores it, from its name in the file.
    stored: Callable[[str, Tensor, PretrainedConfig], Tensor] = lambda name, value, config: value
    tensors: Callable[[PreTrainedModel], Iterable[tuple[str, Tensor]]] = lambda model: ()  # that are no parameters


class Family(ABC):
    """A decoder that can be trained, trimmed and exported.

    `axes` says what each axis of a module's weight stands for, by a regular expression on names of modules; a bias has the axis
    of the outputs. Roles are `width`, `vocabulary`, `position`; `query`, `key` and `value`, the channels of the heads as the
    attention's projections give them, and `context`, those that its output projection takes; `ffn`, the neurons. Sections that
    lie behind one another are joined by `+`.
    """

    model_types: ClassVar[tuple[str, ...]]
    axes: ClassVar[Mapping[str, tuple[str, ...]]]
    blocks: ClassVar[str]  # name of their list in the base model
    conv1d: ClassVar[bool] = False  # True if linear layers are `Conv1D`, whose weights are [inputs, outputs]
    heads_share_width: ClassVar[bool] = False  # True if the width is the number of heads times their size
    head_multiple: ClassVar[int] = 8  # what ONNX Runtime's attention wants a head's channels to be a multiple of
    gguf: ClassVar[Gguf]

    def stacks(self, model: PreTrainedModel) -> dict[str, nn.ModuleList]:
        """The transformer blocks in order, by the name of their stack."""
        return {"decoder": getattr(model.base_model, self.blocks)}

    def head(self, model: PreTrainedModel) -> Head:
        """The vocabulary head, with the parameters that it computes with."""
        module = model.get_output_embeddings()
        bias = None if getattr(module, "bias", None) is None else computed(module, "bias")
        return Head(computed(module, "weight"), bias, 1.0)

    def positions(self, config: PretrainedConfig) -> int | None:
        """The longest context; None if there is no limit."""
        return config.max_position_embeddings

    def activation(self, config: PretrainedConfig) -> str:
        """The activation of the neurons, by transformers' name."""
        return config.hidden_act

    @abstractmethod
    def shape(self, config: PretrainedConfig, stack: str = "decoder") -> Shape:
        """The sizes of the blocks of a stack."""

    @abstractmethod
    def settings(self, shape: Shape) -> dict[str, int | None]:
        """Sizes as configuration values."""

    @abstractmethod
    def graph(self, writer: Any, model: PreTrainedModel) -> Any:
        """Write the ONNX graph of the blocks with a `conversions.onnx.decoder.Decoder`; returns the final hidden state."""

    def correct_gguf(self, config: PretrainedConfig) -> PretrainedConfig:
        """The configuration of a GGUF file, with what transformers reads wrongly corrected in place."""
        return config


FAMILIES: dict[str, Family] = {}  # by model type


def register(*families: Family) -> None:
    """Add families to the supported ones."""
    for family in families:
        FAMILIES.update(dict.fromkeys(family.model_types, family))


def family_of(source: PretrainedConfig | PreTrainedModel | str) -> Family:
    """The family of a model, a configuration or a model type; a KeyError if it is not supported, see `check_family`."""
    return FAMILIES[source if isinstance(source, str) else getattr(source, "config", source).model_type]


def check_family(config: PretrainedConfig, key: str) -> None:
    """Raise a `UserError` naming `key` if the model's family is not supported."""
    if config.model_type not in FAMILIES:
        raise UserError(
            f"{key}: models of type {config.model_type!r} are not supported; use a decoder of type {' or '.join(FAMILIES)}"
        )
