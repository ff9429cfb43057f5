"""A tiny exported ONNX decoder."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lightgpt2.models.ledger import Ledger
from lightgpt2.runtime.folder import describe
from tests.support.models import make_restless_model, write_tokenizer
from tests.support.onnx_client import write_onnx

VOCABULARY, POSITIONS = 300, 64


def tiny_model() -> PreTrainedModel:
    return make_restless_model("gpt2", n_layer=1, n_embd=16, n_head=2)


def seal(folder: Path, about: dict[str, Any]) -> None:
    """Writes what makes a folder an exported one."""
    describe(folder, about)
    Ledger([{}]).write(folder)


def write_decoder(folder: Path) -> Path:
    """An exported folder of the tiny model, with its tokenizer."""
    write_tokenizer(folder)
    model = tiny_model()
    write_onnx(model, folder)
    model.config.save_pretrained(folder)
    seal(folder, {"format": "onnx"})
    return folder
