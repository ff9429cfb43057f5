"""`genai_config.json`: with it, onnxruntime-genai runs the folder of an exported decoder."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lightgpt2.conversions.onnx.graph import GRAPH
from lightgpt2.models.axes import Shape
from lightgpt2.models.families import family_of
from lightgpt2.models.files import write_json

_FILE = "genai_config.json"
# Settings of a generation that both it and transformers have, under one name.
_SEARCH = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size")


def write_genai_config(model: PreTrainedModel, folder: Path) -> None:
    """Write what onnxruntime-genai must know of a decoder whose graph `Decoder` wrote.

    Its general type `decoder` has the names of our inputs and outputs. Layers with fewer heads, or none, it finds in the graph.
    """
    config, generation = model.config, model.generation_config
    shape, positions = Shape.of(config), family_of(config).positions(config)
    ends = generation.eos_token_id if generation.eos_token_id is not None else config.eos_token_id
    pads = (generation.pad_token_id, config.pad_token_id, *(ends if isinstance(ends, list) else [ends]), 0)
    tokens = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends,
        "pad_token_id": next(each for each in pads if each is not None and each >= 0),
    }
    decoder = {
        "filename": GRAPH,
        "hidden_size": shape.width,
        "head_size": shape.head,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads // shape.groups,
        "num_hidden_layers": config.num_hidden_layers,
        "inputs": {
            **{name: name for name in ("input_ids", "attention_mask", "position_ids")},
            **{f"past_{part}_names": f"past_key_values.%d.{part}" for part in ("key", "value")},
        },
        "outputs": {"logits": "logits", **{f"present_{part}_names": f"present.%d.{part}" for part in ("key", "value")}},
    }
    about = {"type": "decoder", "vocab_size": config.vocab_size, "context_length": positions, **tokens}
    search: dict[str, Any] = {name: getattr(generation, name, None) for name in _SEARCH}
    search |= {"max_length": positions, "past_present_share_buffer": True}  # the cache is written in place
    write_json(folder / _FILE, {"model": {**_given(about), "decoder": decoder}, "search": _given(search)})


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
