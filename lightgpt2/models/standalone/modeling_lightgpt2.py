"""Decoders whose layers differ in their numbers of heads and neurons, or whose weights are stored as integers.

A model folder has this file if plain transformers cannot express the model:
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads it. `config.lightgpt2` says

    heads: attention heads of each layer, 0 included
    ffn: neurons of each layer, likewise
    stored: `int8` or `int4` if the file holds integers with scales, which become FP32 weights when they are loaded
    activations: `int8` if the inputs of the layers' projections are rounded to that
    packed: true if the file is compressed

`LightLlamaForCausalLM` is transformers' `LlamaForCausalLM` with that, and so for any other decoder: a family needs nothing
here if each of its blocks has one attention and one MLP, and the last linear layer of each that gives the width is its output.
"""

import contextlib
import copy
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

from .stored_weights import read, round_inputs

_LINEAR = (nn.Linear, Conv1D)
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


class NoNeurons(nn.Module):
    """The feed-forward part of a layer without neurons: the bias of its output stays."""

    def __init__(self, part: nn.Module, width: int) -> None:
        super().__init__()
        self.last, projection = _output(part, width)
        self.add_module(self.last, Constant(width, projection.bias is not None))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.get_submodule(self.last)(hidden_states)


class NoHeads(NoNeurons):
    """The attention of a layer without heads."""

    def __init__(self, part: Any, width: int) -> None:
        super().__init__(part, width)
        self.layer_idx = part.layer_idx

    def forward(self, hidden_states: Tensor, past_key_values: Any = None, **_: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        if past_key_values is not None:  # it is asked for the number of past tokens, and needs a tensor to answer
            place = hidden_states[:, None, :, :1]
            past_key_values.update(place, place, self.layer_idx)
        return super().forward(hidden_states), None


class Light:
    """A decoder with the settings of `config.lightgpt2`; goes before transformers' class."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        model: Any = self
        blocks: Any = next(module for module in model.base_model.modules() if isinstance(module, nn.ModuleList))
        for index, block in enumerate(blocks):
            for key, kind, empty in (("heads", "Attention", NoHeads), ("ffn", "MLP", NoNeurons)):
                if key in config.lightgpt2:
                    name, part = next((n, m) for n, m in block.named_children() if type(m).__name__.endswith(kind))
                    if count := config.lightgpt2[key][index]:
                        _resize(part, count, part.head_dim if key == "heads" else 1, config.hidden_size)
                    else:
                        setattr(block, name, empty(part, config.hidden_size))
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
        own: Any = super()
        if not {"stored", "packed"} & {*config.lightgpt2} or source is None:
            return own.from_pretrained(source, *args, config=config, **options)
        config = copy.deepcopy(config)
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


def _output(part: nn.Module, width: int) -> tuple[str, Any]:
    """Name and module of a part's last linear layer that gives the width."""
    linears = [(name, module) for name, module in part.named_children() if isinstance(module, _LINEAR)]
    return next((name, module) for name, module in reversed(linears) if _sizes(module)[1] == width)


def _resize(part: Any, count: int, size: int, width: int) -> None:
    """Give a part other units: inputs of its output layer, and in proportion outputs of the others."""
    _, projection = _output(part, width)
    before, _ = _sizes(projection)
    part.num_heads, part.split_size = count, count * size  # as GPT-2's attention reads them
    for name, module in list(part.named_children()):
        if module is projection:
            setattr(part, name, _new(module, count * size, width))
        elif isinstance(module, _LINEAR):
            inputs, outputs = _sizes(module)
            setattr(part, name, _new(module, inputs, outputs * count * size // before))


def _sizes(module: Any) -> tuple[int, int]:
    """Inputs and outputs."""
    return (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)


def _new(module: Any, inputs: int, outputs: int) -> nn.Module:
    if isinstance(module, Conv1D):
        return Conv1D(outputs, inputs)
    return nn.Linear(inputs, outputs, module.bias is not None)


def light_class(model_type: str) -> Any:
    """The class for configurations of this type that have `lightgpt2`."""
    return _light(f"Light{MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]}")


@cache
def _light(name: str) -> Any:
    made: Any = type(name, (Light, getattr(transformers, name.removeprefix("Light"))), {})
    made.register_for_auto_class("AutoModelForCausalLM")  # so that saving a model saves this file with it
    return made


def __getattr__(name: str) -> Any:
    if name.startswith("Light"):
        return _light(name)
    raise AttributeError(name)
