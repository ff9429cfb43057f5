"""The second graph, in 8 bits, that reads the prompts of a model in 4."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from lightgpt2.conversions.onnx.weights import Blocks, Matrix
from lightgpt2.conversions.onnx.writer import Forms
from lightgpt2.errors import UserError
from lightgpt2.functional.quantization import fake_quantize, integers
from lightgpt2.models.families import block_linears
from lightgpt2.runtime.onnx_engine import OnnxEngine
from lightgpt2.runtime.prefill import from_blocks, rounded
from tests.conversions.test_onnx_weights import rounded as in_4_bits
from tests.support.models import make_restless_model
from tests.support.onnx_client import Array, off, torch_logits, write_onnx

ROUNDED_INPUTS = 0.1  # as for the graph in 8 bits: what rounding inputs may do, as a share of the largest logit
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2, widths that 32 does not divide": ("gpt2", {"n_embd": 200, "n_head": 5, "n_inner": 62}),
    "gpt2, untied": ("gpt2", {"tie_word_embeddings": False}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
}
FORMS = {
    "head in int8": Forms("int4", "int8", prefill=[]),
    "all in int4": Forms("int4", "int4", prefill=[], group=64),
    "head in blocks of int8": Forms("int4", "int8-blocks", prefill=[]),
}


def engine_of(model: PreTrainedModel, folder: Path, forms: Forms) -> OnnxEngine:
    return OnnxEngine(write_onnx(model, folder, forms) / "model.onnx", 64, threads=1)


def whole_logits(engine: OnnxEngine, ids: Array) -> Array:
    return engine.logits(ids, np.ones_like(ids)).copy()


def random_ids(model: PreTrainedModel, *shape: int) -> Array:
    return np.random.default_rng(0).integers(0, model.config.vocab_size, shape)


@pytest.mark.parametrize("inputs", [64, 62, 200, 8])
@pytest.mark.parametrize("group", [16, 32, 128])
def test_numbers_come_back_from_their_blocks(inputs: int, group: int) -> None:
    rows = torch.randn(7, inputs, generator=torch.Generator().manual_seed(inputs))
    after_training = Matrix.of(rows).rounded("int4", group)
    trained = Matrix(*integers(rows, 4, group), None, inputs)  # without zero points
    for matrix in (after_training, trained):
        assert matrix.scale is not None
        steps = matrix.rows.float() - (0 if matrix.zero is None else matrix.zero)
        blocks = Blocks.of(matrix, "int4")
        found = from_blocks(blocks.data, blocks.scales, blocks.zeros, inputs)
        np.testing.assert_array_equal(found, (steps * matrix.scale).flatten(1)[:, :inputs].numpy())


def test_they_are_rounded_as_the_export_to_8_bits_rounds() -> None:
    rows = torch.randn(9, 50, generator=torch.Generator().manual_seed(0))
    rows[3] = 0
    whole, steps = rounded(rows.numpy())
    assert whole.dtype == np.int8
    np.testing.assert_allclose(whole.T * steps[:, None], fake_quantize(rows, 8).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "form"), [*(("gpt2", form) for form in FORMS), *((s, "all in int4") for s in SHAPES if s != "gpt2")]
)
def test_prompts_are_read_in_8_bits_and_steps_taken_in_4(tmp_path: Path, shape: str, form: str) -> None:
    family, changes = SHAPES[shape]
    model, forms = make_restless_model(family, **changes), FORMS[form]
    plain = engine_of(model, tmp_path / "plain", replace(forms, prefill=None))
    engine = engine_of(model, tmp_path / "prefill", forms)
    weights = [(tmp_path / name / "model.onnx_data").read_bytes() for name in ("plain", "prefill")]
    assert weights[0] == weights[1], "the file is that of the plain export"

    ids = random_ids(model, 2, 20)
    exact = torch_logits(in_4_bits(model, forms), ids)
    found = whole_logits(engine, ids)
    assert off(found, exact) < ROUNDED_INPUTS
    assert not np.array_equal(found, whole_logits(plain, ids))

    mask = np.ones_like(ids)
    first, of_plain = (each.prefill(ids[:, :15], mask[:, :15], 5) for each in (engine, plain))
    assert off(first, exact[:, 14]) < ROUNDED_INPUTS
    assert not np.array_equal(first, of_plain)
    for past, cache in engine._caches.items():
        plain._caches[past][:] = cache
    for place in range(15, 20):
        step = engine.decode(ids[:, place]).copy()
        assert off(step, exact[:, place]) < ROUNDED_INPUTS
        np.testing.assert_array_equal(step, plain.decode(ids[:, place]))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_uneven_layers_keep_their_4_bits(tmp_path: Path, family: str) -> None:
    model = make_restless_model(family)
    ids = random_ids(model, 1, 20)
    plain = whole_logits(engine_of(model, tmp_path / "plain", Forms("int4", "int4")), ids)
    names = [*block_linears(model)]
    all_kept = engine_of(model, tmp_path / "kept", Forms("int4", "int4", prefill=[*names, "lm_head"]))
    np.testing.assert_array_equal(whole_logits(all_kept, ids), plain)
    for number, kept in enumerate([names, [*names[1:], "lm_head"], ["lm_head"]]):
        found = whole_logits(engine_of(model, tmp_path / f"{number}", Forms("int4", "int4", prefill=kept)), ids)
        same = np.array_equal(found, plain)
        # Of layers that are multiplied with together, one that is uneven keeps them all.
        assert same == (family == "llama" and number == 1)


def test_what_loading_writes_is_temporary_and_both_sessions_have_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_onnx(make_restless_model("gpt2"), tmp_path / "out", Forms("int4", "int4", prefill=[]))
    scratch = tmp_path / "scratch"
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with pytest.raises(UserError, match=r"^MODEL: the weights that .* set TMPDIR to a folder that has some$"):
        OnnxEngine(folder / "model.onnx", 64)
    scratch.mkdir()
    for threads in (1, 2):
        sessions = OnnxEngine(folder / "model.onnx", 64, threads).sessions
        assert [session.get_session_options().intra_op_num_threads for session in sessions] == [threads] * 2
        assert not [*scratch.iterdir()]


def test_files_may_be_links(tmp_path: Path) -> None:
    """As in a hub cache, and as backups keep what is there twice."""
    model = make_restless_model("gpt2", n_layer=1)
    whole = write_onnx(model, tmp_path / "whole", Forms("int4", "int8", prefill=[]))
    wanted = whole_logits(OnnxEngine(whole / "model.onnx", 64, threads=1), random_ids(model, 1, 20))
    for name, link in (("soft", Path.symlink_to), ("hard", Path.hardlink_to)):
        (tmp_path / name).mkdir()
        for file in whole.iterdir():
            link(tmp_path / name / file.name, file)
        engine = OnnxEngine(tmp_path / name / "model.onnx", 64, threads=1)
        np.testing.assert_array_equal(whole_logits(engine, random_ids(model, 1, 20)), wanted)
