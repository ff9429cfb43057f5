"""What each axis of each parameter stands for: the one table by which slices are taken and importances are summed."""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

# Roles of axes. `query`, `key` and `value` are the channels of the heads as the attention's projections give them, `context`
# those that its output projection takes, `ffn` the neurons. Sections that lie behind one another are joined by `+`.
_AXES: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2": {
        r"transformer\.wte\.weight": ("vocabulary", "width"),
        r"transformer\.wpe\.weight": ("position", "width"),
        r"transformer\.(h\.\d+\.ln_1|h\.\d+\.ln_2|ln_f)\.(weight|bias)": ("width",),
        r"transformer\.h\.\d+\.attn\.c_attn\.weight": ("width", "query+key+value"),  # Conv1D: input, output
        r"transformer\.h\.\d+\.attn\.c_attn\.bias": ("query+key+value",),
        r"transformer\.h\.\d+\.attn\.c_proj\.weight": ("context", "width"),
        r"transformer\.h\.\d+\.mlp\.c_fc\.weight": ("width", "ffn"),
        r"transformer\.h\.\d+\.mlp\.c_fc\.bias": ("ffn",),
        r"transformer\.h\.\d+\.mlp\.c_proj\.weight": ("ffn", "width"),
        r"transformer\.h\.\d+\.(attn|mlp)\.c_proj\.bias": ("width",),
        r"lm_head\.weight": ("vocabulary", "width"),
    },
    "llama": {
        r"model\.embed_tokens\.weight": ("vocabulary", "width"),
        r"model\.(layers\.\d+\.\w+layernorm|norm)\.weight": ("width",),
        r"model\.layers\.\d+\.self_attn\.q_proj\.weight": ("query", "width"),  # Linear: output, input
        r"model\.layers\.\d+\.self_attn\.k_proj\.weight": ("key", "width"),
        r"model\.layers\.\d+\.self_attn\.v_proj\.weight": ("value", "width"),
        r"model\.layers\.\d+\.self_attn\.o_proj\.weight": ("width", "context"),
        r"model\.layers\.\d+\.self_attn\.q_proj\.bias": ("query",),
        r"model\.layers\.\d+\.self_attn\.k_proj\.bias": ("key",),
        r"model\.layers\.\d+\.self_attn\.v_proj\.bias": ("value",),
        r"model\.layers\.\d+\.mlp\.(gate|up)_proj\.weight": ("ffn", "width"),
        r"model\.layers\.\d+\.mlp\.(gate|up)_proj\.bias": ("ffn",),
        r"model\.layers\.\d+\.mlp\.down_proj\.weight": ("width", "ffn"),
        r"model\.layers\.\d+\.(self_attn\.o|mlp\.down)_proj\.bias": ("width",),
        r"lm_head\.weight": ("vocabulary", "width"),
    },
}


@dataclass(frozen=True)
class Named:
    """A parameter with what its axes stand for.

    Attributes:
        name: Its name.
        value: The parameter.
        layer: The block that it belongs to; None for embeddings, the final norm and the head.
        axes: For each axis the roles of its sections.
    """

    name: str
    value: Tensor
    layer: int | None
    axes: tuple[tuple[str, ...], ...]


def named_axes(model: PreTrainedModel) -> Iterator[Named]:
    """All parameters of a model, tied ones once.

    Args:
        model: A decoder of a supported family, without adapters.

    Raises:
        ValueError: It has one that the table lacks.
    """
    table = _AXES[model.config.model_type]
    for name, value in model.named_parameters():
        axes = next((axes for pattern, axes in table.items() if re.fullmatch(pattern, name)), None)
        if axes is None:
            raise ValueError(f"unknown parameter {name} of a {model.config.model_type} model")
        layer = re.search(r"\.(\d+)\.", name)
        yield Named(name, value, int(layer[1]) if layer else None, tuple(tuple(axis.split("+")) for axis in axes))


def uneven_sizes(config: PretrainedConfig) -> dict[str, list[int]]:
    """The sizes that differ from layer to layer, each a list (`standalone.modeling_lightgpt2`); none of an ordinary model."""
    return {name: sizes for name, sizes in getattr(config, "lightgpt2", {}).items() if name in ("heads", "ffn")}


@dataclass(frozen=True)
class Shape:
    """The sizes of a block, in which a model can be trimmed.

    Attributes:
        width: Size of the hidden states.
        heads: Attention heads of a block.
        groups: Heads that share one head of keys and values.
        head: Channels of a head.
        ffn: Neurons of a block.
    """

    width: int
    heads: int
    groups: int
    head: int
    ffn: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> "Shape":
        """The sizes that a configuration of a supported family gives."""
        width, heads = config.hidden_size, config.num_attention_heads
        if config.model_type == "gpt2":
            return cls(width, heads, 1, width // heads, config.n_inner or 4 * width)
        groups = heads // config.num_key_value_heads
        return cls(width, heads, groups, config.head_dim, config.intermediate_size)

    def settings(self, model_type: str) -> dict[str, int | None]:
        """The same as configuration values of a family."""
        if model_type == "gpt2":
            inner = None if self.ffn == 4 * self.width else self.ffn
            return {"n_embd": self.width, "n_head": self.heads, "n_inner": inner}
        return {
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads // self.groups,
            "head_dim": self.head,
            "intermediate_size": self.ffn,
        }

    def applied(self, config: PretrainedConfig) -> PretrainedConfig:
        """A copy of a configuration with these sizes in all its blocks."""
        sized = copy.deepcopy(config)
        for key, size in self.settings(config.model_type).items():
            setattr(sized, key, size)
        return sized


def block_sizes(config: PretrainedConfig) -> tuple[list[int], list[int]]:
    """Numbers of attention heads and of neurons of each block."""
    shape, count = Shape.of(config), config.num_hidden_layers
    own = getattr(config, "lightgpt2", {})
    return own.get("heads", [shape.heads] * count), own.get("ffn", [shape.ffn] * count)


def block_units(config: PretrainedConfig) -> tuple[list[int], list[int]]:
    """Numbers of each block's heads that can go by themselves, those that share keys and values being one; and of neurons."""
    heads, neurons = block_sizes(config)
    return [count // Shape.of(config).groups for count in heads], neurons


def with_block_sizes(config: PretrainedConfig, heads: list[int], ffn: list[int]) -> PretrainedConfig:
    """A copy of a configuration with these numbers of attention heads and neurons.

    Where its family's own settings can say them it stays one of plain transformers; else `lightgpt2` says them, for
    `models.standalone`.
    """
    shape, sized = Shape.of(config), copy.deepcopy(config)
    own = {key: value for key, value in getattr(sized, "lightgpt2", {}).items() if key not in ("heads", "ffn")}
    # GPT-2's heads share its width out; a Llama's have a size of their own, but transformers wants their number to divide it.
    said = heads[0] == shape.heads or (config.model_type != "gpt2" and heads[0] and shape.width % heads[0] == 0)
    if len({*heads}) == 1 and said:
        shape = replace(shape, heads=heads[0])
    else:
        own["heads"] = heads
    if len({*ffn}) == 1 and ffn[0]:
        shape = replace(shape, ffn=ffn[0])
    else:
        own["ffn"] = ffn
    sized = shape.applied(sized)
    for name in ("lightgpt2", "auto_map"):  # which saving it writes again where it is needed
        if hasattr(sized, name):
            delattr(sized, name)
    if own:
        sized.lightgpt2 = own
    return sized
