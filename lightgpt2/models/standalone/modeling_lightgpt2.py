"""Models whose layers differ in their numbers of heads and neurons, or whose weights are stored as integers.

A model folder has this file if plain transformers cannot express the model: transformers' class for what it predicts, say
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`, loads it. `config.lightgpt2` says

    heads: attention heads of each layer, 0 included
    ffn: neurons of each layer, likewise
    stored: `int8` or `int4` if the file holds integers with scales, which become FP32 weights when they are loaded
    activations: `int8` if the inputs of the layers' projections are rounded to that
    packed: true if the file is compressed

`LightLlamaForCausalLM` is transformers' `LlamaForCausalLM` with that, and so for any other decoder: a family needs nothing
here if each of its blocks has one attention, and one MLP (or its layers beside it), whose outputs are the last linear layers
that give the width.
"""

import contextlib
import copy
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

from .stored_weights import read, round_inputs

_LINEAR = (nn.Linear, Conv1D)
_NAMES = {
    "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSeq2SeqLM": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSequenceClassification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}
_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


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
        self.output, module = _output(part, width)
        self.add_module(self.output, Constant(width, module.bias is not None))

    def forward(self, hidden_states: Tensor, **others: Any) -> tuple[Tensor, None]:
        for past in others.values():
            if isinstance(past, Cache):  # it is asked for the number of past tokens, and needs a tensor to answer
                place = hidden_states[:, None, :, :1]
                past.update(place, place, self.layer_idx)
        return self.get_submodule(self.output)(hidden_states), None


class Light:
    """A model with the settings of `config.lightgpt2`; goes before transformers' class."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        model: Any = self
        blocks: Any = next(module for module in model.base_model.modules() if isinstance(module, nn.ModuleList))
        for index, block in enumerate(blocks):
            if "heads" in config.lightgpt2:
                name, part = _attention(block)
                if count := config.lightgpt2["heads"][index]:
                    _set_heads(part, count, config)
                elif hasattr(part, "self"):  # the norm behind it stays
                    part.self = NoContext()
                    part.output.dense = Constant(config.hidden_size, True)
                else:
                    setattr(block, name, NoHeads(part, config.hidden_size))
            if "ffn" in config.lightgpt2:
                ends = ("MLP", "FFN")
                part = next((module for module in block.children() if type(module).__name__.endswith(ends)), block)
                _resize(part, config.lightgpt2["ffn"][index], config.hidden_size)
        if config.lightgpt2.get("activations") == "int8":
            for module in blocks.modules():
                if isinstance(module, _LINEAR):
                    module.register_forward_pre_hook(round_inputs)
        model.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **options: Any) -> Any:
        """As transformers' own; `stored_weights` reads the file if the configuration says so."""
        source = pretrained_model_name_or_path
        where = {key: options[key] for key in _WHERE if key in options}
        if not isinstance(config, PretrainedConfig):
            config = cls.config_class.from_pretrained(config or source, **where)  # type: ignore[attr-defined]
        config = copy.deepcopy(config)
        config.__dict__.pop("transformers_weights", None)  # which tells plain transformers that it needs this code
        own: Any = super()
        if not {"stored", "packed"} & {*config.lightgpt2} or source is None:
            return own.from_pretrained(source, *args, config=config, **options)
        config.lightgpt2 = {key: value for key, value in config.lightgpt2.items() if key != "packed"}
        if not config.lightgpt2:  # unpacked it is one of plain transformers
            own = cls.__bases__[-1]
            for name in ("lightgpt2", "auto_map"):
                config.__dict__.pop(name, None)
        weights = read(cached_file(source, "model.safetensors", **where))
        if options.get("generation_config") is None:
            with contextlib.suppress(OSError):
                options["generation_config"] = GenerationConfig.from_pretrained(source, **where)
        loaded = own.from_pretrained(None, *args, config=config, state_dict=weights, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = str(source)
        return loaded


def _attention(block: nn.Module) -> tuple[str, Any]:
    """Name and module of a block's attention."""
    return next((name, module) for name, module in block.named_children() if _is_attention(module))


def _linears(part: nn.Module) -> list[tuple[str, Any]]:
    """The linear layers of a part, BERT's a level deeper; of a block those that are not its attention's."""
    whole = _is_attention(part)
    children = [(name, child) for name, child in part.named_children() if whole or not _is_attention(child)]
    deeper = [(f"{name}.{inner}", m) for name, child in children for inner, m in child.named_children()]
    return [(name, m) for name, m in [*children, *deeper] if isinstance(m, _LINEAR)]


def _is_attention(part: nn.Module) -> bool:
    return type(part).__name__.endswith("Attention")


def _output(part: nn.Module, width: int) -> tuple[str, Any]:
    """Name and module of a part's last linear layer that gives the width."""
    return next((name, module) for name, module in reversed(_linears(part)) if _sizes(module)[1] == width)


def _set_heads(part: Any, count: int, config: PretrainedConfig) -> None:
    """Give an attention other heads."""
    before, _ = _sizes(_output(part, config.hidden_size)[1])
    size = before // config.num_attention_heads
    _resize(part, count * size, config.hidden_size)
    # Some read the sizes when they run (GPT-2 the first two, Phi-3 the others).
    part = getattr(part, "self", part)  # BERT's without its output layer
    part.num_heads, part.split_size = count, count * size
    part.num_key_value_heads = count // getattr(part, "num_key_value_groups", 1)
    part.config = copy.copy(part.config)
    part.config.num_attention_heads = count


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
