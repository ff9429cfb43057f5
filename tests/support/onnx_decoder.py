"""A tiny exported ONNX decoder, and what it computes by transformers without a cache."""

from pathlib import Path

import onnx
from transformers import PreTrainedModel

from lightgpt2.runtime.folder import seal
from tests.support.models import make_restless_model, write_tokenizer
from tests.support.onnx_client import Array, torch_logits, write_onnx

VOCABULARY, POSITIONS = 300, 64


def _model(seed: int = 0) -> PreTrainedModel:
    return make_restless_model("gpt2", seed, n_layer=1, n_embd=16, n_head=2)


def naive_logits(ids: Array, seed: int = 0) -> Array:
    """Logits `[T, V]` of one sequence `[T]`."""
    return torch_logits(_model(seed), ids[None])[0]


def write_decoder(folder: Path, seed: int = 0, keeps: bool = True) -> Path:
    """An exported folder with its tokenizer.

    Args:
        folder: Where.
        seed: Of its weights.
        keeps: Whether it can leave out all logits but the last.
    """
    write_tokenizer(folder)
    write_onnx(_model(seed), folder)
    _model(seed).config.save_pretrained(folder)
    if not keeps:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        model.graph.input.remove(next(each for each in model.graph.input if each.name == "num_logits_to_keep"))
        onnx.save(model, folder / "model.onnx")
    seal(folder, {"format": "onnx"})
    return folder
