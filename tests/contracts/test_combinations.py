"""Combinations that make no sense are refused with the reason, before a weight is loaded; the others are not."""

from collections.abc import Callable
from typing import Any

import pytest

from lightgpt2.adaptations import Adaptation, FakeQuantize, Lora, LoraAdapters, MovementGates
from lightgpt2.adaptations.pruning_settings import Pruning
from lightgpt2.methods import QAT, FineTune, LoRA, Method, QLoRA, Trim
from lightgpt2.models.integers import Integers
from lightgpt2.starts import ChosenLayers, Fresh, Pretrained, Start, Trimmed
from tests.support.refusals import assert_refused, refusals

pytestmark = pytest.mark.usefixtures("inside")

_PLAIN = LoraAdapters(dropout=0.0)
STARTS: dict[str, Callable[[], Start]] = {
    "pretrained": lambda: Pretrained("teacher"),
    "nf4": lambda: Pretrained("teacher", "nf4", adapters=True),
    "fresh": lambda: Fresh({"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64}),
    "trimmed": lambda: Trimmed("teacher", layers=2),
    "chosen layers": lambda: ChosenLayers("teacher", 2),
}


def gates(granularity: Any = "structured") -> MovementGates:
    return MovementGates(Pruning(attention=0.5, ffn=0.5, granularity=granularity))


SENSELESS: dict[str, tuple[str, list[Adaptation], str]] = {
    "adapters with gates": ("pretrained", [Lora(), gates()], "0: adapters leave the weights frozen that movement pruning"),
    "int4 of what is removed": (
        "pretrained", [gates(), FakeQuantize(Integers(bits=4))], "1.quantization.bits: groups of inputs share a scale",
    ),
    "rounded inputs of what is removed": (
        "pretrained", [gates(), FakeQuantize(Integers(activations=True))], "1.quantization.activations: a token's inputs",
    ),
    "two formats": ("pretrained", [FakeQuantize(), FakeQuantize(Integers(4))], "1: a run has one FakeQuantize at most"),
    "two prunings": ("pretrained", [gates(), gates("weight")], "1: a run has one MovementGates at most; remove one"),
    "dropout before rounding": (
        "pretrained", [Lora(LoraAdapters()), FakeQuantize()], "0.lora.dropout: 0.05 on the adapters' input",
    ),
    "DoRA before rounding": (
        "pretrained", [Lora(LoraAdapters(dropout=0.0, use_dora=True)), FakeQuantize()], "0.lora.use_dora: DoRA's weights",
    ),
    "nf4 without adapters": ("nf4", [gates()], "0: MovementGates works on weights in full precision, and this start loads"),
    "adapters on nf4, rounded": ("nf4", [Lora(_PLAIN), FakeQuantize()], "1: FakeQuantize works on weights in full prec"),
    **{
        f"adapters on a {start} model": (start, [Lora()], "0: Lora trains on the frozen weights of a model that lies on disk")
        for start in ("fresh", "trimmed", "chosen layers")
    },
}  # fmt: skip

SENSIBLE: dict[str, tuple[str, list[Adaptation]]] = {
    "gates and int8": ("pretrained", [gates(), FakeQuantize()]),
    "gates on weights and int4": ("pretrained", [gates("weight"), FakeQuantize(Integers(bits=4, activations=True))]),
    "adapters and int4 of everything": ("pretrained", [Lora(_PLAIN), FakeQuantize(Integers(4, None, True, True))]),
    "adapters by default and int8": ("pretrained", [Lora(), FakeQuantize()]),
    "adapters on nf4": ("nf4", [Lora()]),
    "all weights of nothing": ("fresh", []),
    "a trimmed model, rounded": ("trimmed", [FakeQuantize()]),
    "layers with gates": ("chosen layers", [gates()]),
}


@pytest.mark.parametrize(("start", "parts", "message"), SENSELESS.values(), ids=SENSELESS)
def test_senseless_combinations_are_refused(start: str, parts: list[Adaptation], message: str) -> None:
    assert_refused(Method(STARTS[start](), adaptations=parts), f"model.adaptations.{message}")


@pytest.mark.parametrize(("start", "parts"), SENSIBLE.values(), ids=SENSIBLE)
def test_all_others_are_not(start: str, parts: list[Adaptation]) -> None:
    assert refusals(Method(STARTS[start](), adaptations=parts)) == []


@pytest.mark.parametrize(
    ("method", "stored", "reason"),
    [
        *((method, stored, "") for method in (QAT, FineTune, Trim, LoRA) for stored in ("nf4", "int8", "int4")),
        (LoRA, "nf4", "adapters cannot be merged into 4 bit; use lightgpt2.methods.QLoRA"),
        (FineTune, "nf4", "such weights cannot be trained; give the model in full precision, or use lightgpt2.methods.QLoRA"),
        (QLoRA, "int8", "give the model in full precision, or in NF4"),
        (QLoRA, "int4", "give the model in full precision, or in NF4"),
    ],
)  # fmt: skip
def test_what_is_quantized_is_not_trained_or_converted_again(method: Any, stored: str, reason: str) -> None:
    made = method(stored, layers=2) if method is Trim else method(stored)
    assert_refused(made, f"model.model: {stored} is quantized to {stored.upper()}: {reason}")


def test_nf4_weights_take_adapters_as_they_are() -> None:
    assert refusals(QLoRA("nf4")) == []
