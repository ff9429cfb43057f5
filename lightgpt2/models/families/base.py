"""The contract of a family: what has to be known of one architecture, and the registry by model type."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.errors import Problem, UserError
from lightgpt2.functional.vocabulary import head_logits
from lightgpt2.models.architectures import CAUSAL_LM, CLASSIFICATION
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

    def applied(self, config: PretrainedConfig) -> PretrainedConfig:
        """A copy of a configuration with these sizes in all its blocks."""
        return family_of(config).resized(config, self)

    def channels(self) -> dict[str, int]:
        """The channels of each role in a block; for the roles see `Family`."""
        inner = self.heads * self.head
        shared = inner // self.groups
        attention = {"query": inner, "key": shared, "value": shared, "context": inner}
        cross = {f"cross_{role}": count for role, count in attention.items()}
        every = {"channel": self.head, "head": self.heads}
        return {"width": self.width, **attention, **cross, **every, "ffn": self.ffn}


class Head(NamedTuple):
    """The head as it computes: logits = scale * hidden @ weight.T + bias, over V tokens or classes."""

    weight: Tensor  # [V, D], the embedding itself where the two are tied
    bias: Tensor | None  # [V]
    scale: float

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits `[N, V]` of hidden states `[N, D]`."""
        return head_logits(hidden, *self)


class Family(ABC):
    """An architecture that can be trained, trimmed and exported; each subclass with `model_types` is one that is supported.

    `axes` says what each axis of a module's weight stands for, by a regular expression on names of modules; a bias has the axis
    of the outputs. Roles are `width`, `vocabulary`, `position`, `segment`, `class`; `query`, `key` and `value`, the channels of
    the heads as the attention's projections give them, and `context`, those that its output projection takes, all four with
    `cross_` before them in cross-attention; `channel`, those that every head has; `head`, one for each head; `ffn`, the
    neurons. Sections that lie behind one another are joined by `+`, those that alternate head
    by head by `/`.
    """

    model_types: ClassVar[tuple[str, ...]]
    axes: ClassVar[Mapping[str, tuple[str, ...]]]
    auto_classes: ClassVar[tuple[str, ...]] = (CAUSAL_LM, CLASSIFICATION)  # transformers' classes by what they predict
    stack: ClassVar[str] = "decoder"  # the kind of its blocks
    blocks: ClassVar[str] = "layers"  # path of their list in the base model
    text_inputs: ClassVar[tuple[str, ...]] = ("input_ids",)  # of its forward pass: those that are token ids
    model_inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")  # of its forward pass, from a batch
    head_parts: ClassVar[tuple[str, ...]] = ("score",)  # modules of a classification head, which always train
    layer_settings: ClassVar[tuple[str, ...]] = ("layer_types",)  # configuration keys with a value for each layer
    conv1d: ClassVar[bool] = False  # True if linear layers are `Conv1D`, whose weights are [inputs, outputs]
    heads_share_width: ClassVar[bool] = False  # True if the width is the number of heads times their size
    heads_divide_width: ClassVar[bool] = True  # False if the width need not be a multiple of the number of heads
    heads_align: ClassVar[bool] = False  # True if a stack's blocks share something for each head, by its place
    heads_narrow: ClassVar[bool] = False  # True if a head's channels can be cut: rotary positions turn them in pairs
    first_differs: ClassVar[bool] = False  # True if the first block has other parts than the others
    pads_behind: ClassVar[bool] = False  # True if a classifier reads the first token, which must not be a pad
    adapted: ClassVar[list[str] | None] = None  # modules that get adapters by default, where PEFT does not choose
    gguf: ClassVar[str] = ""  # the architecture's name in llama.cpp; empty if it has none
    # True if its blocks carry a state from token to token and have neither heads nor neurons; a fused kernel reads the weights
    # of their linear layers, so that nothing can take the place of one, or see what it reads.
    recurrent: ClassVar[bool] = False
    code: ClassVar[ModuleType | None] = None  # that goes into its model folders, if transformers does not have it

    def __init_subclass__(cls) -> None:
        if "model_types" in vars(cls):
            FAMILIES.update(dict.fromkeys(cls.model_types, cls()))

    def stacks(self, model: PreTrainedModel) -> dict[str, nn.ModuleList]:
        """The transformer blocks in order, by the name of their stack."""
        return {self.stack: model.base_model.get_submodule(self.blocks)}

    def depths(self, config: PretrainedConfig) -> dict[str, int]:
        """The number of blocks of each stack."""
        return {self.stack: config.num_hidden_layers}

    def attentions(self, config: PretrainedConfig) -> dict[str, int]:
        """The number of attentions of each kind: those of a stack's blocks on themselves, and `decoder.cross`."""
        return self.depths(config)

    def lender(self, name: str) -> str:
        """The parameter whose values one has that its model lacks, as blocks that shared it get their own."""
        return name

    def keep_layers(self, config: PretrainedConfig, layers: Mapping[str, Sequence[int]]) -> None:
        """Lets a configuration have only these blocks, in this order, in each stack; a ValueError if no model can."""
        (chosen,) = layers.values()
        if self.first_differs and [i for i, layer in enumerate(chosen) if not layer] != [0]:
            what = f"the first layer of a {config.model_type} has other parts than the others"
            raise ValueError(f"layers {[*chosen]}: {what}; begin with layer 0, and name it once")
        config.num_hidden_layers = len(chosen)
        for name in self.layer_settings:
            if values := getattr(config, name, None):
                setattr(config, name, [values[i] for i in chosen])

    def called(self, model: PreTrainedModel) -> list[nn.Module]:
        """The modules that `final_states` calls."""
        return [model.base_model]

    def final_states(self, model: PreTrainedModel, **inputs: Any) -> Tensor:
        """What the head reads of each token `[B, T, D]`."""
        return cast(Tensor, model.base_model(**inputs, use_cache=False).last_hidden_state)

    def classifier(self, model: PreTrainedModel) -> nn.Module:
        """The last layer of a classification head."""
        return model.get_submodule("score")

    def head_module(self, model: PreTrainedModel) -> nn.Module:
        """The layer that gives the logits: of all tokens, or of the classes."""
        found: nn.Module | None = model.get_output_embeddings()
        return self.classifier(model) if found is None else found

    def head(self, model: PreTrainedModel) -> Head:
        """The head, with the parameters that it computes with."""
        module = self.head_module(model)
        bias = None if getattr(module, "bias", None) is None else computed(module, "bias")
        return Head(computed(module, "weight"), bias, 1.0)

    def pooled_states(self, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
        """What the classifier reads of each text `[B, D]`: the last token's state, on whichever side the pads are."""
        mask = batch["attention_mask"]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        inputs = {"input_ids": batch["input_ids"], "attention_mask": mask, "position_ids": positions}
        numbers = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * numbers).argmax(dim=1)
        return self.final_states(model, **inputs)[torch.arange(len(mask), device=mask.device), last]

    def config_problems(self, config: PretrainedConfig) -> Iterable[str]:
        """What of a configuration is not supported, each with the fix: `what; fix`."""
        return ()

    def positions(self, config: PretrainedConfig) -> int | None:
        """The longest context; None if there is no limit."""
        return config.max_position_embeddings

    def special_tokens(self, tokenizer: Any) -> dict[str, int | None]:
        """What the configuration of a new model says of a tokenizer's special tokens."""
        return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}

    def apart(self, model: PreTrainedModel, positions: Tensor) -> dict[str, Tensor]:
        """The inputs with which no document of a row sees another; `positions [B, T]` begin at 0 with each document."""
        return {"position_ids": positions}  # from which transformers finds the documents

    def rope(self, config: PretrainedConfig) -> dict[str, Any]:
        """The settings of the rotary positions, of the layers that see the whole text; empty if there are none."""
        return getattr(config, "rope_parameters", None) or {}

    def norm(self, module: Any) -> tuple[Tensor, float]:
        """What a norm without mean and bias multiplies with `[D]`, and its epsilon."""
        return module.weight, module.variance_epsilon

    def activation(self, config: PretrainedConfig) -> str:
        """The activation of the neurons, by transformers' name."""
        return config.hidden_act

    def shape(self, config: PretrainedConfig) -> Shape:
        """The sizes of the blocks."""
        heads = config.num_attention_heads
        groups = heads // (getattr(config, "num_key_value_heads", None) or heads)
        head = getattr(config, "head_dim", None) or config.hidden_size // heads
        return Shape(config.hidden_size, heads, groups, head, config.intermediate_size)

    def resized(self, config: PretrainedConfig, shape: Shape) -> PretrainedConfig:
        """A copy of a configuration with other sizes, in those of these keys that it has."""
        sizes = {
            "hidden_size": shape.width,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.heads // shape.groups,
            "head_dim": shape.head,
            "intermediate_size": shape.ffn,
        }
        sized = copy.deepcopy(config)
        for key, size in sizes.items():
            if hasattr(sized, key):
                setattr(sized, key, size)
        return sized

    def state_width(self, config: PretrainedConfig, layers: int) -> int:
        """The width of the hidden states behind a number of layers; behind none, of what the first one reads."""
        return int(config.hidden_size)

    def fixed(self, model: PreTrainedModel) -> Iterable[nn.Parameter]:
        """Parameters that are computed once and never trained."""
        return ()

    def narrowed(self, model: PreTrainedModel, width: int) -> None:  # noqa: B027 - most need nothing
        """Correct the weights cut out of a model of this width for what a family computes from the width."""

    def renumbered(self, model: PreTrainedModel, layers: Mapping[str, Sequence[int]]) -> None:  # noqa: B027 - most need nothing
        """Correct the weights of layers that had these numbers for what a family computes from a layer's number."""

    @abstractmethod
    def graph(self, writer: Any, model: PreTrainedModel) -> Any:
        """Write the ONNX graph of the blocks with a `conversions.onnx.decoder.Decoder`; returns the final hidden state."""

    def old_rope(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of `config.json` from which transformers 4 reads what `rope_parameters` says."""
        own = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        scaling = {key: value for key, value in rope.items() if key not in own}
        return {"rope_scaling": None if rope.get("rope_type", "default") == "default" else scaling, **own}

    def old_settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The keys from which transformers 4 reads what a `config.json` says under other ones."""
        rope = config.get("rope_parameters")
        return self.old_rope(rope) if rope else {}

    def onnx_problems(self, config: PretrainedConfig) -> Iterable[str]:
        """What the graph would compute differently, each with the fix: `what; fix`."""
        return ()

    def gguf_problems(self, config: PretrainedConfig) -> Iterable[str]:
        """What llama.cpp would compute differently, each with the fix: `what; fix`."""
        return () if self.gguf else (f"llama.cpp has no models of type {config.model_type}; export to onnx",)

    def gguf_metadata(self, config: PretrainedConfig) -> dict[str, Any]:
        """What a GGUF file says beside the sizes that all families have, by NAME of `gguf.GGUFWriter.add_NAME`."""
        return {}

    def gguf_stored(self, name: str, value: Tensor, config: PretrainedConfig) -> Tensor:
        """A parameter `[outputs, inputs]` as llama.cpp stores it, from its name in the file."""
        return value

    def gguf_tensors(self, model: PreTrainedModel) -> Iterable[tuple[str, Tensor]]:
        """Tensors of the file that are no parameters."""
        return ()

    def correct_gguf(self, config: PretrainedConfig) -> None:  # noqa: B027 - most need nothing
        """Correct what transformers reads wrongly from a GGUF file."""


FAMILIES: dict[str, Family] = {}  # by model type


def family_of(source: PretrainedConfig | PreTrainedModel) -> Family:
    """The family of a model or a configuration; a KeyError if it is not supported, see `check_family`."""
    return FAMILIES[getattr(source, "config", source).model_type]


def check_family(config: PretrainedConfig, key: str, *auto_classes: str) -> str | None:
    """Raise a `UserError` naming `key` if the model's family, or what is special in its configuration, is not supported.

    `auto_classes` are what it may predict, as names of transformers' classes; none: whatever it does. Returns the first of them
    that the family has.
    """

    def chosen(family: Family) -> str | None:
        return next((name for name in auto_classes if name in family.auto_classes), None)

    family = FAMILIES.get(config.model_type)
    auto_class = chosen(family) if family else None
    if family is None or (auto_classes and auto_class is None):
        types = ", ".join(sorted(t for t, each in FAMILIES.items() if chosen(each) or not auto_classes))
        for_this = " for this task" if family else ""
        raise UserError(
            f"{key}: models of type {config.model_type!r} are not supported{for_this}; use a model of type {types}"
        )
    if auto_class:
        class_for(config, auto_class, key)
    if problems := [Problem(key, *line.split("; ", 1)) for line in family.config_problems(config)]:
        raise UserError(problems)
    return auto_class


def class_for(config: PretrainedConfig, auto_class: str, key: str) -> str:
    """The name of the class of transformers that predicts `auto_class` with such a model; a `UserError` if it has none."""
    try:
        return getattr(transformers, auto_class)._model_mapping[type(config)].__name__
    except KeyError as error:
        what = f"transformers has no {auto_class} for models of type {config.model_type}"
        raise UserError([Problem(key, what, "choose another model")]) from error
