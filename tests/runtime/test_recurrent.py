"""Engines of models that carry states: PyTorch and ONNX Runtime, batches with pads, and texts that are edited."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightgpt2.conversions.onnx.recurrent import RecurrentDecoder
from lightgpt2.conversions.onnx.writer import Forms
from lightgpt2.models.loading import load_config, new_model
from lightgpt2.runtime.engines import Floats, Ints
from lightgpt2.runtime.onnx_recurrent import onnx_decoder
from lightgpt2.runtime.recurrent import RecurrentEngine
from lightgpt2.runtime.transformers_recurrent import TransformersSteps

FORMS = {"onnx": Forms(), "onnx-int8": Forms("int8", "int8")}
# In INT8 one scale holds for all that is read at once, so that each text's depends on the others a little.
CLOSE = {"torch": 1e-5, "onnx": 1e-5, "onnx-int8": 0.05}
ENGINES = ["torch", "torch tied", "onnx", "onnx tied", "onnx-int8"]


def opened(name: str, folder: Path) -> Any:
    """An engine of a model of three layers, by a form, perhaps with `tied` embeddings."""
    form, _, tied = name.partition(" ")
    torch.manual_seed(0)
    shape = {"model_type": "lstm", "vocab_size": 300, "embedding_size": 32, "hidden_size": 32}
    model = new_model(load_config({**shape, "tie_word_embeddings": bool(tied)}, "m")).eval()
    model.lm_head.weight.data *= 30 if not tied else 1  # for logits that differ
    if form == "torch":
        return RecurrentEngine(TransformersSteps(model), 1024)
    RecurrentDecoder.into(folder, model, FORMS[form])
    return onnx_decoder(folder / "model.onnx", 1024)


def tokens(*shape: int, seed: int = 0) -> Ints:
    return np.random.default_rng(seed).integers(0, 300, shape)


def alone(engine: Any, ids: Ints) -> Floats:
    """The logits `[T, V]` of one text."""
    found: Floats = engine.logits(ids[None], np.ones((1, len(ids)), np.int64))[0]
    return found


@pytest.mark.parametrize("form", ["onnx", "onnx tied", "onnx-int8"])
def test_onnx_carries_states_as_pytorch_does_over_500_steps(tmp_path: Path, form: str) -> None:
    ours, theirs = opened(form.replace("onnx-int8", "torch").replace("onnx", "torch"), tmp_path), opened(form, tmp_path)
    ids, mask = tokens(2, 6), np.ones((2, 6), np.int64)
    found, wanted = theirs.prefill(ids, mask, 500), ours.prefill(ids, mask, 500)
    errors = [np.abs(found - wanted).max()]
    for step in tokens(500, 2, seed=1):
        errors.append(np.abs(theirs.decode(step) - ours.decode(step)).max())
    assert max(errors) < CLOSE[form.split()[0]], max(errors)
    assert wanted.std() > 0.1, "what is compared is not nothing"


@pytest.mark.parametrize("name", ENGINES)
def test_a_batch_with_pads_gives_what_each_text_gives_alone(tmp_path: Path, name: str) -> None:
    engine, close = opened(name, tmp_path), CLOSE[name.split()[0]]
    ids, mask = tokens(3, 20), np.ones((3, 20), np.int64)
    mask[0, :7], mask[2, :19] = 0, 0
    found, last, more = engine.logits(ids, mask).copy(), engine.prefill(ids, mask, 2).copy(), tokens(3, seed=5)
    following = engine.decode(more)
    for row in range(3):
        text = ids[row, mask[row] == 1]
        wanted = alone(engine, np.append(text, more[row]))
        np.testing.assert_allclose(found[row, mask[row] == 1], wanted[:-1], rtol=0, atol=close)
        np.testing.assert_allclose(last[row], wanted[-2], rtol=0, atol=close)
        np.testing.assert_allclose(following[row], wanted[-1], rtol=0, atol=close)


@pytest.mark.parametrize("name", ENGINES)
def test_an_edited_text_gives_what_it_gives_anew(tmp_path: Path, name: str) -> None:
    engine, draw = opened(name, tmp_path), np.random.default_rng(1)
    text, reads, run = np.empty(0, np.int64), [], engine.steps.run
    engine.steps.run = lambda ids, *rest: reads.append(ids.shape[1]) or run(ids, *rest)
    for turn in range(60):
        near, anywhere = max(0, len(text) - 4), 0
        kept = int(draw.integers(near if turn % 5 else anywhere, len(text) + 1))
        new = tokens(int(draw.integers(1, 80 if turn % 7 == 0 else 4)), seed=turn)
        text, before = np.concatenate([text[:kept], new]), len(reads)
        found = engine.resume(new, kept)
        assert sum(reads[before:]) < len(new) + 32, "what changed, and what lies between it and the last state"
        np.testing.assert_allclose(found, alone(engine, text)[-1], rtol=0, atol=CLOSE[name.split()[0]])
    engine.prefill(new[None], np.ones((1, len(new)), np.int64), 1)
    text = np.concatenate([text, new])
    found = engine.resume(new, len(text) - len(new))
    np.testing.assert_allclose(found, alone(engine, text)[-1], rtol=0, atol=CLOSE[name.split()[0]])
    with pytest.raises(ValueError, match=r"999 tokens are to be kept, and \d+ were read"):
        engine.resume(new, 999)


def test_int8_of_the_published_size_is_a_quarter_and_no_more(tmp_path: Path) -> None:
    model, sizes = new_model(load_config({"model_type": "lstm"}, "m")), {}
    for name, forms in FORMS.items():
        (tmp_path / name).mkdir()
        RecurrentDecoder.into(tmp_path / name, model, forms)
        sizes[name] = sum(file.stat().st_size for file in (tmp_path / name).iterdir())
    assert model.num_parameters() == 22_105_401
    assert sizes["onnx-int8"] <= 0.27 * sizes["onnx"], sizes
