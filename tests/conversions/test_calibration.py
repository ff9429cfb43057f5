"""Layers whose inputs are too uneven for one scale: found by calibration, and harmless once they are stored for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import PreTrainedModel

from lightgpt2.conversions.onnx.calibration import BOUND, measure_inputs, rounded_at_once
from lightgpt2.conversions.onnx.conversion import Onnx
from lightgpt2.conversions.onnx.writer import Forms
from lightgpt2.conversions.target import Target
from lightgpt2.data.validation import validation_data
from lightgpt2.models.families import block_linears
from tests.support.models import make_restless_model, write_corpus, write_tokenizer
from tests.support.onnx_client import Array, Client, torch_logits, write_onnx

RARE = 7  # the token that makes one neuron fire
UNEVEN = "transformer.h.1.mlp.c_proj"
IDS = np.random.default_rng(0).integers(8, 300, (4, 40))
IDS[::2, 3] = RARE


@torch.no_grad()
def massive_model() -> PreTrainedModel:
    """One neuron is thousands of times as large as the others for one token, and nothing reads it."""
    model = make_restless_model("gpt2", n_embd=64, n_inner=1024)
    core: Any = model.base_model
    block = core.h[1]
    core.wte.weight[RARE, 0] = 200
    block.ln_2.weight.fill_(1)
    block.ln_2.bias.zero_()
    block.mlp.c_fc.weight[:, 0] = 0
    block.mlp.c_fc.weight[0, 0], block.mlp.c_fc.bias[0] = 1000, -5500  # of at most 8, the root of the width
    block.mlp.c_proj.weight[0] = 0
    return model


def input_errors(model: PreTrainedModel, rows: Array) -> dict[str, float]:
    return {name: found.error for name, found in measure_inputs(model, [{"input_ids": torch.from_numpy(rows)}]).items()}


def test_rounding_is_that_of_onnx_runtime() -> None:
    """DynamicQuantizeLinear, by the definition of the standard, in numpy."""
    random = np.random.default_rng(0)
    for scale, shift in ((1, 0), (5, 3), (0.1, 10), (2, -30), (0, 0)):
        x = (random.standard_normal((5, 9)) * scale + shift).astype(np.float32)
        low, high = min(x.min(), 0), max(x.max(), 0)
        step = (high - low) / 255 or 1
        zero = np.rint(-low / step)
        wanted = (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step
        found = rounded_at_once(torch.from_numpy(x)).numpy()
        assert np.abs(found - wanted).max() <= step * 1.001, "a step, where a number lies in the middle"
        assert np.abs(found - x).max() <= step * 0.5001 or scale == 0


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_even_layers_are_left(family: str) -> None:
    model = make_restless_model(family)
    errors = input_errors(model, IDS[:1])
    assert {*errors} == {*block_linears(model), "lm_head"}
    assert 0 < min(errors.values()) < max(errors.values()) < BOUND
    with pytest.raises(IndexError):
        measure_inputs(model, [{"input_ids": torch.full((1, 4), 999)}])
    assert not any(module._forward_hooks for module in model.modules()), "nor after an error"


def test_a_massive_activation_is_found() -> None:
    errors = input_errors(massive_model(), IDS[::2])
    assert [name for name, error in errors.items() if error > BOUND] == [UNEVEN]
    assert errors[UNEVEN] > 0.3
    assert max(input_errors(massive_model(), IDS[1::2]).values()) < BOUND, "without the token there is none"


def test_blocks_do_no_harm_where_one_scale_does(tmp_path: Path) -> None:
    model = massive_model()
    wanted, mask = torch_logits(model, IDS), np.ones_like(IDS)
    others = np.ones(IDS.shape, bool)
    others[::2, 3] = False

    def error(forms: Forms, name: str) -> float:
        found, _ = Client(write_onnx(model, tmp_path / name, forms)).run(IDS, mask)
        return float(np.linalg.norm((found - wanted)[others]) / np.linalg.norm(wanted[others]))

    at_once, blocks = error(Forms("int8", "int8"), "a"), error(Forms("int8", "int8", {UNEVEN: "int8-blocks"}), "b")
    assert blocks < 0.1
    assert at_once > 3 * blocks


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_power_of_inputs_is_their_mean_square(family: str) -> None:
    model = make_restless_model(family)
    batches = [torch.from_numpy(IDS[:1]), torch.from_numpy(IDS[1:2, :7])]
    found = measure_inputs(model, [{"input_ids": ids} for ids in batches])
    states = [model(input_ids=ids, output_hidden_states=True).hidden_states for ids in batches]
    last = torch.cat([each[-1].flatten(0, 1) for each in states])  # after the last norm: what the head is given
    torch.testing.assert_close(found["lm_head"].power, last.square().mean(dim=0))
    name = "transformer.h.0.attn.c_attn" if family == "gpt2" else "model.layers.0.self_attn.q_proj"
    block: Any = model.get_submodule(".".join(name.split(".")[:3]))
    norm = block.ln_1 if family == "gpt2" else block.input_layernorm
    first = torch.cat([norm(each[0]).flatten(0, 1) for each in states])
    torch.testing.assert_close(found[name].power, first.square().mean(dim=0))


@torch.no_grad()
def test_the_export_stores_them_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, text = massive_model(), write_corpus(tmp_path / "corpus", 30, 400)
    core: Any = model.base_model
    core.wte.weight[:, 5], core.ln_f.weight[5] = 0, 3000  # uneven for the head too
    write_tokenizer(tmp_path / "m")
    model.save_pretrained(tmp_path / "m")
    data = validation_data("m", str(text))
    # The neuron is to fire in this text: for the token that is there most often.
    often = int(np.bincount(torch.cat(data.calibration(4)).flatten().numpy()).argmax())
    core.wte.weight[[RARE, often]] = core.wte.weight[[often, RARE]]
    forms = Onnx(Target("onnx-int8")).forms(model, {}, data)
    assert (forms.layers, forms.embeddings, forms.prefill) == ("int8", "int8-blocks", None)
    assert forms.others == {UNEVEN: "int8-blocks"}
    forms = Onnx(Target("onnx-int4")).forms(model, {}, data)
    assert (forms.others, forms.embeddings, forms.prefill) == ({}, "int8-blocks", None)
    for name, found in measure_inputs(model, [{"input_ids": ids} for ids in data.calibration(4)]).items():
        assert torch.equal(forms.powers[name], found.power), "rounded to INT4 for the inputs of that text"
    forms = Onnx(Target("onnx-int4", "int4", prefill="int8")).forms(model, {}, data)
    assert forms.prefill == ["lm_head", UNEVEN]
    graph = onnx.load(write_onnx(model, tmp_path / "read", forms) / "model.onnx", load_external_data=False)
    metadata = {each.key: each.value for each in graph.metadata_props}
    assert json.loads(metadata["prefill"]) == [UNEVEN, "transformer.wte"], "the head is stored as the embedding"
