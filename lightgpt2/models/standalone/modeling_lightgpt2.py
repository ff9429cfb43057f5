"""GPT-2 and Llama decoders whose layers differ in their numbers of heads and neurons, or whose weights are stored as integers.

A model folder brings this file where plain transformers cannot express the model:
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads it. `config.lightgpt2` says

    heads: attention heads of each layer, none at all included
    ffn: neurons of each layer, likewise
    stored: `int8` or `int4` where the file holds integers with scales, which become FP32 weights when they are loaded
    activations: `int8` where the inputs of the layers' projections are rounded to that
    packed: true where the file is compressed
"""

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GPT2LMHeadModel, LlamaForCausalLM, PretrainedConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

from .stored_weights import read, round_inputs

_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class Constant(nn.Module):
    """What is left of a projection that has no inputs: its bias at every position, or zero."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.width = width
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The bias `[..., D]` for hidden states `[..., any]`."""
        if self.bias is None:
            constant = hidden_states.new_zeros(*hidden_states.shape[:-1], self.width)
        else:
            constant = self.bias.to(hidden_states.dtype).expand(*hidden_states.shape[:-1], self.width)
        if (
            torch.is_grad_enabled()
        ):  # the norm that gave them gets a gradient, of zero: DDP waits for that of every parameter
            constant = constant + 0 * hidden_states[..., :1]
        return constant


class NoHeads(nn.Module):
    """The attention of a layer without heads."""

    def __init__(self, projection: str, constant: Constant, layer_idx: int) -> None:
        super().__init__()
        self.projection, self.layer_idx = projection, layer_idx
        self.add_module(projection, constant)

    def forward(self, hidden_states: Tensor, past_key_values: Any = None, **_: Any) -> tuple[Tensor, None]:
        """What the family's own attention gives, from no heads."""
        if (
            past_key_values is not None
        ):  # which is asked for the number of past tokens, and wants a tensor for the answer
            place = hidden_states[:, None, :, :1]
            past_key_values.update(place, place, self.layer_idx)
        return self.get_submodule(self.projection)(hidden_states), None


class NoNeurons(nn.Module):
    """The feed-forward part of a layer without neurons."""

    def __init__(self, projection: str, constant: Constant) -> None:
        super().__init__()
        self.projection = projection
        self.add_module(projection, constant)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """What the family's own feed-forward part gives, from no neurons."""
        return self.get_submodule(self.projection)(hidden_states)


class Stored:
    """A model that may be stored in a way of its own."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **options: Any) -> Any:
        """As transformers' own; `stored_weights` reads the file where the configuration says so."""
        source = pretrained_model_name_or_path
        where = {key: options[key] for key in _WHERE if key in options}
        if not isinstance(config, PretrainedConfig):
            config = cls.config_class.from_pretrained(config or source, **where)  # type: ignore[attr-defined]
        own: Any = super()
        if not {"stored", "packed"} & {*config.lightgpt2} or source is None:
            return own.from_pretrained(source, *args, config=config, **options)
        config = copy.deepcopy(config)
        config.lightgpt2 = {
            key: value for key, value in config.lightgpt2.items() if key != "packed"
        }  # as it lies there
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

    def round_activations(self, layers: nn.Module) -> None:
        """Lets the projections round their inputs, where the configuration says so."""
        self_: Any = self
        for module in layers.modules() if self_.config.lightgpt2.get("activations") == "int8" else ():
            if isinstance(module, (nn.Linear, Conv1D)):
                module.register_forward_pre_hook(round_inputs)


class LightGPT2LMHeadModel(Stored, GPT2LMHeadModel):  # type: ignore[misc]
    """GPT-2."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        shape, width = config.lightgpt2, config.hidden_size
        for index, block in enumerate(self.transformer.h):
            if "heads" in shape and shape["heads"][index] == 0:
                block.attn = NoHeads("c_proj", Constant(width, bias=True), index)
            elif "heads" in shape:
                attention, inner = block.attn, shape["heads"][index] * block.attn.head_dim
                attention.num_heads, attention.split_size = shape["heads"][index], inner
                attention.c_attn, attention.c_proj = Conv1D(3 * inner, width), Conv1D(width, inner)
            if "ffn" in shape:
                neurons = shape["ffn"][index]
                block.mlp = GPT2MLP(neurons, config) if neurons else NoNeurons("c_proj", Constant(width, bias=True))
        self.round_activations(self.transformer.h)
        self.post_init()


class LightLlamaForCausalLM(Stored, LlamaForCausalLM):  # type: ignore[misc]
    """Llama."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        shape, width = config.lightgpt2, config.hidden_size
        for index, block in enumerate(self.model.layers):
            attention, mlp = block.self_attn, block.mlp
            if "heads" in shape and shape["heads"][index] == 0:
                block.self_attn = NoHeads("o_proj", Constant(width, config.attention_bias), index)
            elif "heads" in shape:
                inner, bias = shape["heads"][index] * attention.head_dim, config.attention_bias
                shared = inner // attention.num_key_value_groups
                attention.q_proj, attention.o_proj = nn.Linear(width, inner, bias), nn.Linear(inner, width, bias)
                attention.k_proj, attention.v_proj = nn.Linear(width, shared, bias), nn.Linear(width, shared, bias)
            if "ffn" in shape and shape["ffn"][index] == 0:
                block.mlp = NoNeurons("down_proj", Constant(width, config.mlp_bias))
            elif "ffn" in shape:
                neurons, bias = shape["ffn"][index], config.mlp_bias
                mlp.gate_proj, mlp.up_proj = nn.Linear(width, neurons, bias), nn.Linear(width, neurons, bias)
                mlp.down_proj = nn.Linear(neurons, width, bias)
        self.round_activations(self.model.layers)
        self.post_init()


MODELS: dict[str, Any] = {"gpt2": LightGPT2LMHeadModel, "llama": LightLlamaForCausalLM}
for _model in MODELS.values():
    _model.register_for_auto_class("AutoModelForCausalLM")  # so that saving a model saves this file with it
