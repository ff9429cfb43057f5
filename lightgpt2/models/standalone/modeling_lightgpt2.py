"""Models whose layers differ in their numbers of heads and neurons, or whose weights are stored as integers.

A model folder has this file if plain transformers cannot express the model: transformers' class for what it predicts, say
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`, loads it. `config.lightgpt2` says

    heads: attention heads of each layer, 0 included; of an encoder-decoder by `encoder`, `decoder` and `decoder.cross`
    ffn: neurons of each layer, likewise, by `encoder` and `decoder`
    stored: `int8` or `int4` if the file holds integers with scales, which become FP32 weights when they are loaded
    activations: `int8` if the inputs of the layers' projections are rounded to that
    packed: true if the file is compressed

`LightLlamaForCausalLM` is transformers' `LlamaForCausalLM` with that, and so for any other decoder: a family needs nothing
here if each of its blocks has one attention (a decoder's that reads an encoder two), and one MLP (or its layers beside it),
whose outputs are the last linear layers that give the width.
"""

import copy
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

from .stored_weights import StoredModel, round_inputs

_LINEAR = (nn.Linear, Conv1D)
_WHOLE = ("ActDense",)  # the classes of neurons that ask for the weights of their layers
_NEURONS = ("MLP", "FFN", *_WHOLE)
_NAMES = {
    "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSeq2SeqLM": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSequenceClassification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}


class Constant(nn.Module):
    """What a projection without inputs gives: its bias at every position, or zero."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.width = width
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        bias = hidden_states.new_zeros(self.width) if self.bias is None else self.bias.to(hidden_states.dtype)
        constant = bias.expand(*hidden_states.shape[:-1], -1)
        # The norm that gave the hidden states gets a gradient, of zero: DDP waits for that of every parameter.
        return constant + 0 * hidden_states[..., :1] if torch.is_grad_enabled() else constant


class NoContext(nn.Module):
    """The attention of an encoder's layer without heads, before its output layer."""

    def forward(self, hidden_states: Tensor, *others: Any, **more: Any) -> tuple[Tensor, None]:
        return hidden_states[..., :0], None


class NoHeads(nn.Module):
    """The attention of a layer without heads: the bias of its output layer stays."""

    def __init__(self, part: Any, width: int) -> None:
        super().__init__()
        self.layer_idx = getattr(part, "layer_idx", 0)
        self.is_sliding = getattr(part, "is_sliding", False)  # which Gemma 3's layer asks for in transformers 4
        self.gives_positions = hasattr(part, "has_relative_attention_bias")  # as T5's, between its two results
        self.output, module = _output(part, width)
        self.add_module(self.output, Constant(width, module.bias is not None))

    def forward(self, hidden_states: Tensor | None = None, **others: Any) -> tuple[Tensor, ...]:
        if hidden_states is None:
            hidden_states = others["query"]  # DistilBERT's in transformers 4
        for past in others.values():
            if isinstance(past, EncoderDecoderCache):
                past = None if "key_value_states" in others else past.self_attention_cache
            if isinstance(past, Cache):  # it is asked for the number of past tokens, and needs a tensor to answer
                place = hidden_states[:, None, :, :1]
                past.update(place, place, self.layer_idx)
        rest = (None, None) if self.gives_positions else (None,)
        return self.get_submodule(self.output)(hidden_states), *rest


class Light(StoredModel):
    """A model with the settings of `config.lightgpt2`; goes before transformers' class."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        model: Any = self
        stacks = _stacks(model.base_model, config)
        for stack, blocks in stacks.items():
            _set_sizes(stack, blocks, config)
        if config.lightgpt2.get("activations") == "int8":
            for module in (module for blocks in stacks.values() for module in blocks.modules()):
                if isinstance(module, _LINEAR):
                    module.register_forward_pre_hook(round_inputs)
        model.post_init()

    @classmethod
    def _whole(cls) -> Any:
        return cls.__bases__[-1]


def _stacks(base: nn.Module, config: PretrainedConfig) -> dict[str, nn.ModuleList]:
    """The lists of blocks, by the names of the stacks of an encoder-decoder."""
    parts = (
        {name: base.get_submodule(name) for name in ("encoder", "decoder")} if config.is_encoder_decoder else {"": base}
    )
    return {name: next(m for m in part.modules() if isinstance(m, nn.ModuleList)) for name, part in parts.items()}


def _set_sizes(stack: str, blocks: nn.ModuleList, config: PretrainedConfig) -> None:
    """Give the blocks of a stack the heads and neurons that the configuration says."""
    heads, ffn = (config.lightgpt2.get(name) for name in ("heads", "ffn"))
    for index, block in enumerate(blocks):
        for place, (name, part) in zip((stack, f"{stack}.cross"), _attentions(block), strict=False):
            if heads is not None:
                count = (heads[place] if stack else heads)[index]
                _set_attention(block, name, part, count, config)
                if hasattr(part, "has_relative_attention_bias"):
                    _set_positions(part, count, place == stack)
        if ffn is not None:
            _set_neurons(block, (ffn[stack] if stack else ffn)[index], config.hidden_size)


def _set_neurons(block: nn.Module, count: int, width: int) -> None:
    """Give a block other neurons, or none; they are in a module, or in the block itself."""
    inside = ((name, module) for name, module in block.named_modules() if type(module).__name__.endswith(_NEURONS))
    name, part = next(inside, ("", block))
    if count or not type(part).__name__.endswith(_WHOLE):
        _resize(part, count, width)
    else:
        _put(block, name, Constant(width, False))


def _set_attention(block: nn.Module, name: str, part: Any, count: int, config: PretrainedConfig) -> None:
    """Give one attention of a block other heads, or none."""
    if count:
        _set_heads(part, count, config)
    elif hasattr(part, "self"):  # the norm behind it stays
        part.self = NoContext()
        part.output.dense = Constant(config.hidden_size, True)
    else:
        _put(block, name, NoHeads(part, config.hidden_size))


def _put(block: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, own = name.rpartition(".")
    setattr(block.get_submodule(owner), own, module)


def _attentions(block: nn.Module) -> list[tuple[str, Any]]:
    """Names and modules of a block's attentions: on itself first, then on an encoder."""
    found: list[tuple[str, Any]] = []
    for name, module in block.named_modules():
        if _is_attention(module) and not any(name.startswith(f"{outer}.") for outer, _ in found):
            found.append((name, module))
    return found


def _linears(part: nn.Module) -> list[tuple[str, Any]]:
    """The linear layers of a part, BERT's a level deeper; of a block those that are not its attention's."""
    whole = _is_attention(part)
    children = [(name, child) for name, child in part.named_children() if whole or not _is_attention(child)]
    deeper = [(f"{name}.{inner}", m) for name, child in children for inner, m in child.named_children()]
    return [(name, m) for name, m in [*children, *deeper] if isinstance(m, _LINEAR)]


def _is_attention(part: nn.Module) -> bool:
    name = type(part).__name__
    return name.endswith("Attention") and "Layer" not in name  # T5's layers have their attention inside


def _output(part: nn.Module, width: int) -> tuple[str, Any]:
    """Name and module of a part's last linear layer that gives the width."""
    return next((name, module) for name, module in reversed(_linears(part)) if _sizes(module)[1] == width)


def _set_heads(part: Any, count: int, config: PretrainedConfig) -> None:
    """Give an attention other heads."""
    before, _ = _sizes(_output(part, config.hidden_size)[1])
    size = before // config.num_attention_heads
    _resize(part, count * size, config.hidden_size)
    # Some attention classes read their sizes in `forward`, and each names them differently.
    part = getattr(part, "self", part)  # BERT's without its output layer
    groups = getattr(part, "num_key_value_groups", 1)
    names = {"num_heads": count, "num_attention_heads": count, "n_heads": count, "num_key_value_heads": count // groups}
    for name, value in {**names, **dict.fromkeys(("split_size", "all_head_size", "dim"), count * size)}.items():
        if hasattr(part, name):
            setattr(part, name, value)
    if hasattr(part, "config"):
        part.config = copy.copy(part.config)
        part.config.num_attention_heads = count


def _set_positions(part: Any, count: int, own: bool) -> None:
    """Give T5's attention its own table of relative positions, if any: its heads are not those of the first block."""
    part.n_heads, part.inner_dim = count, count * part.key_value_proj_dim
    if own:
        part.has_relative_attention_bias = True
        part.relative_attention_bias = nn.Embedding(part.relative_attention_num_buckets, count)
    part.register_forward_pre_hook(_without_positions, with_kwargs=True)


def _without_positions(_: nn.Module, args: tuple[Any, ...], others: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**others, "position_bias": None}


def _resize(part: nn.Module, units: int, width: int) -> None:
    """Give a part's output layer other inputs, and the layers before it outputs in proportion; without any, constants."""
    _, output = _output(part, width)
    before, _ = _sizes(output)
    for name, module in _linears(part):
        inputs, outputs = _sizes(module)
        if module is output:
            new = _new(module, units, width) if units else Constant(width, module.bias is not None)
        else:  # what some split in two
            new = _new(module, inputs, outputs * units // before) if units else Constant(2, False)
        owner, _, own = name.rpartition(".")
        setattr(part.get_submodule(owner), own, new)


def _sizes(module: Any) -> tuple[int, int]:
    """Inputs and outputs."""
    return (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)


def _new(module: Any, inputs: int, outputs: int) -> nn.Module:
    if isinstance(module, Conv1D):
        return Conv1D(outputs, inputs)
    return nn.Linear(inputs, outputs, module.bias is not None)


def light_class(model_type: str, auto_class: str) -> Any:
    """The class for configurations of this type that have `lightgpt2`, by what such a model predicts."""
    return _light(f"Light{_NAMES[auto_class][model_type]}")


@cache
def _light(name: str) -> Any:
    original = name.removeprefix("Light")
    made: Any = type(name, (Light, getattr(transformers, original)), {})
    auto_class = next(auto for auto, names in _NAMES.items() if original in names.values())
    made.register_for_auto_class(auto_class)  # so that saving a model saves this file with it
    return made


def __getattr__(name: str) -> Any:
    if name.startswith("Light"):
        return _light(name)
    raise AttributeError(name)
