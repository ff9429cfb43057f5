"""Every check of what was written fails where it should: with one output, with constants, with nothing, and with NaN."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lightgpt2.conversions.onnx import encoder_export
from lightgpt2.conversions.onnx.calibration import BOUND, Inputs
from lightgpt2.conversions.onnx.conversion import Onnx
from lightgpt2.conversions.target import Format, Target
from lightgpt2.errors import UserError
from lightgpt2.measure.torch_worker import residency_problem
from lightgpt2.runtime.engines import Floats, Ints
from lightgpt2.runtime.transformers_engine import TransformersEngine
from lightgpt2.tasks.exported import agreement, verify
from lightgpt2.tasks.language_modeling import LanguageModeling
from tests.support.models import make_model, write_tokenizer

TASK: Any = LanguageModeling()
TEXTS = ["x = 1", "class A: pass", "the assert statement", "def f(x): return x", "while True: break"]

# -- encoders --------------------------------------------------------------------------------------------------------------

_SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def write_encoder(folder: Path, outputs: int | None) -> None:
    """An encoder with so many outputs, or without a head."""
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<|endoftext|>").save_pretrained(
        folder
    )
    auto, size = (AutoModel, {}) if outputs is None else (AutoModelForSequenceClassification, {"num_labels": outputs})
    model = auto.from_config(AutoConfig.for_model("bert", **_SHAPE, **size), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
        if outputs is not None:
            model.classifier.bias.fill_(5.0)
    model.save_pretrained(folder)


def scaled(model: Any, outputs: int | None) -> None:
    """All outputs a hundredth: their direction is the same."""
    layers = [model.classifier] if outputs is not None else [model.encoder.layer[-1].output.LayerNorm]
    for layer in layers:
        layer.weight.mul_(0.01)
        layer.bias.mul_(0.01)


def constant(model: Any, outputs: int | None) -> None:
    """What is put out does not depend on the text."""
    (model.classifier if outputs is not None else model.encoder.layer[-1].output.LayerNorm).weight.zero_()


def not_numbers(model: Any, outputs: int | None) -> None:
    model.embeddings.LayerNorm.bias.fill_(math.nan) if outputs is None else model.classifier.bias.fill_(math.nan)


def other_places(model: Any, outputs: int | None) -> None:
    """Each token's output is another's."""
    embeddings = (model if outputs is None else model.bert).embeddings.position_embeddings.weight
    embeddings.copy_(embeddings.flip(0) * 3)


def export(form: Format, outputs: int | None, spoil: Callable[[Any, int | None], None] | None = None) -> Any:
    write_encoder(source := Path("m").resolve(), outputs)
    write = encoder_export.write_encoder

    def spoilt(model: PreTrainedModel, *args: Any) -> None:
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            if spoil is not None:
                spoil(model, outputs)
            write(model, *args)
        model.load_state_dict(kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_export, "write_encoder", spoilt)
        return encoder_export.export_encoder(str(source), Target(form), Path("out"), TEXTS, "texts")


@pytest.mark.parametrize("form", ["onnx", "onnx-int8"])
@pytest.mark.parametrize("outputs", [None, 1, 2, 3])
def test_an_encoder_as_it_is_passes(
    form: Format, outputs: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = export(form, outputs)
    assert found["cosine"]["texts"] == len(TEXTS)
    assert 0 <= found["error"] < {"onnx": 1e-3, "onnx-int8": 0.25}[form]


@pytest.mark.parametrize("form", ["onnx", "onnx-int8"])
@pytest.mark.parametrize("outputs", [None, 1, 2, 3])
@pytest.mark.parametrize("spoil", [scaled, not_numbers])
def test_an_encoder_that_puts_out_something_else_is_refused(
    spoil: Any, outputs: int | None, form: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        export(form, outputs, spoil)
    assert all(problem.startswith(f"--format {form}: ") for problem in error.value.problems)
    assert not Path("out").exists()


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("spoil", [constant, other_places])
def test_what_texts_have_in_common_hides_nothing_in_fp32(
    spoil: Any, outputs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="its outputs may be at most 1% off PyTorch's"):
        export("onnx", outputs, spoil)


# -- decoders --------------------------------------------------------------------------------------------------------------


class Engine(TransformersEngine):
    """A model whose logits are changed: with the cache, and without."""

    def __init__(self, model: PreTrainedModel, step: Any = None, read: Any = None) -> None:
        super().__init__(model)
        self._step, self._read = step or (lambda logits: logits), read or (lambda logits: logits)

    def decode(self, tokens: Ints) -> Floats:
        found: Floats = self._step(super().decode(tokens))
        return found

    def logits(self, ids: Ints, mask: Ints) -> Floats:
        found: Floats = self._read(super().logits(ids, mask))
        return found


class Data:
    """Windows of random tokens, and prompts from them."""

    source = "random tokens"

    def __init__(self, documents: int = 3, length: int = 20) -> None:
        self._ids = torch.randint(1, 300, (documents, length), generator=torch.Generator().manual_seed(0))

    def prompts(self, split: str, count: int, length: int) -> list[list[int]]:
        return [row[:length].tolist() for row in self._ids if len(row) > length]

    def scoring_loader(self, split: str) -> list[dict[str, Any]]:
        count, length = self._ids.shape
        if length < 2:
            return []
        about = {
            "lengths": torch.full((count,), length - 1),
            "document": torch.arange(count),
            "bytes": torch.ones(count),
        }
        return [{"input_ids": self._ids[:, :-1], "labels": self._ids[:, 1:], **about}]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """A model that has learnt nothing: whatever it puts out, its perplexity is about that of any other."""
    model = make_model("gpt2", n_layer=2)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.02)
    return model


def problems(engine: Any, model: PreTrainedModel, precision: str, data: Any = None) -> list[str]:
    found: list[str] = verify(TASK, engine, model, data or Data(), None, precision)["problems"]
    return found


def another(logits: Floats) -> Floats:
    return logits[..., ::-1].copy()


def same_for_all(logits: Floats) -> Floats:
    return np.broadcast_to(np.arange(logits.shape[-1], dtype=np.float32) * 1e-4, logits.shape).copy()


PRECISIONS = ["fp32", "f16", "int8", "int4"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_model_itself_passes(model: PreTrainedModel, precision: str) -> None:
    assert problems(Engine(model), model, precision) == []


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fault", [another, same_for_all])
def test_a_fault_that_perplexity_does_not_show_is_refused(model: PreTrainedModel, precision: str, fault: Any) -> None:
    assert problems(Engine(model, fault, fault), model, precision), "everywhere"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_fault_of_the_cache_alone_is_refused(model: PreTrainedModel, precision: str) -> None:
    (problem, *_) = problems(Engine(model, step=another), model, precision)
    assert "greedy tokens" in problem


def test_a_model_that_repeats_one_token_hides_no_fault_of_the_cache(model: PreTrainedModel) -> None:
    """Its likeliest token is the same with any cache; its logits are not."""
    constant = make_model("gpt2", n_layer=2)
    data = Data()
    found = agreement(Engine(constant, step=lambda logits: logits * 0.5), constant, data.prompts("valid", 3, 8))
    assert (found.cache, found.source) == (1, 1)
    assert found.error == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("where", [{"step": True}, {"read": True}])
def test_nan_is_refused(model: PreTrainedModel, precision: str, where: dict[str, bool]) -> None:
    nan = {name: (lambda logits: logits * np.float32(math.nan)) for name in where}
    assert problems(Engine(model, **nan), model, precision)


@pytest.mark.parametrize(("length", "documents"), [(1, None), (20, 0)])
def test_nothing_to_verify_with_is_said(model: PreTrainedModel, length: int, documents: int | None) -> None:
    with pytest.raises(UserError, match="no text of random tokens has two tokens to verify with"):
        verify(TASK, Engine(model), model, Data(length=length), documents, "fp32")


def test_inputs_that_are_not_numbers_count_as_uneven(monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel) -> None:
    name = "transformer.h.0.mlp.c_fc"
    for error, uneven in ((math.nan, True), (2 * BOUND, True), (BOUND / 2, False)):
        inputs = {name: Inputs(error, torch.ones(32))}
        monkeypatch.setattr("lightgpt2.conversions.onnx.conversion.measure_inputs", lambda *_, found=inputs: found)
        monkeypatch.setattr("lightgpt2.conversions.onnx.conversion._calibration", lambda *_: [])
        forms = Onnx(Target("onnx-int8")).forms(model, {}, SimpleNamespace())  # type: ignore[arg-type]
        assert (name in dict(forms.others)) == uneven


# -- measurements ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("products", [{}, {"aten::mm": 0.0}, {"aten::mm": math.nan}])
def test_figures_without_any_kernel_are_not_cudas(products: dict[str, float]) -> None:
    assert residency_problem("cuda:0", {"a": "cuda"}, products)
    assert residency_problem("cpu", {"a": "cpu"}, products) is None
