"""Character models through every method: the real command, and what it leaves on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lightgpt2
from lightgpt2.models.loading import load_model
from lightgpt2.models.standalone import stored_weights
from tests.support.cli import call
from tests.support.mistakes import Bench
from tests.support.stages import callback, entries, stage, validated

SHAPE = {"model_type": "lstm", "num_hidden_layers": 2, "embedding_size": 8, "hidden_size": 16, "dropout": 0.1}
FRESH = {
    **stage("FineTune"),
    "data.tokenizer": "characters",
    "trainer.max_steps": 4,
    "data.cross_document_attention": False,
}
FRESH["model"]["init_args"]["model"] = SHAPE


@pytest.fixture
def trained(bench: Bench) -> Bench:
    """A bench with a character model in the folder of a run, `char`."""
    bench.configure(FRESH)
    bench.succeed("fit", "--run", "char")
    return bench


def weights(run: str) -> bytes:
    return Path(f"checkpoints/{run}/model/model.safetensors").read_bytes()


def test_a_run_that_is_stopped_and_resumed_is_the_run_that_was_not(trained: Bench) -> None:
    trained.succeed("fit", "--run", "s", "--trainer.max_steps", "1")
    trained.succeed("fit", "--run", "s", "--ckpt_path", "last")
    assert weights("s") == weights("char")
    after = entries("char/model")[-1]["quality"]["after"]["perplexity"]["value"]
    assert validated(trained, "--run", "char") == pytest.approx(after, abs=0.006)


def test_it_is_exported_loaded_and_continued(trained: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["checkpoints/char/model"]
    for form in ("onnx", "onnx-int8"):
        folders.append(form)
        code, _, err = call(capsys, "export", folders[0], "--format", form, "--output", form)
        assert code == 0, err
        assert not [*Path(form).glob("*.py")]
    models = [lightgpt2.load(folder) for folder in folders]
    texts = [model.generate(["The a", "class Abc:\n"], max_new_tokens=12, temperature=0.0) for model in models]
    assert texts[0] == texts[1]
    ids = np.array([models[0].tokenizer.encode("if x:\n    return").ids])
    for model, close in zip(models[1:], (1e-5, 0.05), strict=True):
        np.testing.assert_allclose(model.logits(ids), models[0].logits(ids), rtol=0, atol=close)
    for form in ("onnx-int4", "gguf"):
        code, _, err = call(capsys, "export", folders[0], "--format", form)
        assert code == 2
        assert "lstm" in err


def test_a_narrower_one_learns_from_a_wider_one(trained: Bench) -> None:
    student = {"hidden_size": 12, "embedding_size": 6, "num_hidden_layers": 1}
    model = {"teacher": "checkpoints/char/model", "student": student, "loss": {"ce": 0.1, "hidden": 1.0, "kd": 0.8}}
    trained.configure({"model": _method("Distill", **model)})
    trained.succeed("fit")
    assert load_model("checkpoints/r/model", "m").config.hidden_size == 12


def test_layers_of_a_deeper_one_learn_from_it(trained: Bench) -> None:
    trained.configure({"model": _method("Distill", teacher="checkpoints/char/model", layers=[0])})
    trained.succeed("fit")
    assert load_model("checkpoints/r/model", "m").config.num_hidden_layers == 1


def test_integers_of_pruned_weights_are_what_is_exported(trained: Bench) -> None:
    prune = callback("GlobalL1Pruning", targets="linear", amount=0.5)
    trained.configure(stage("FineTune", "checkpoints/char/model", (prune,)))
    trained.succeed("fit", "--run", "pruned")
    tensors = load_file("checkpoints/pruned/model/model.safetensors")
    matrices = {name: value for name, value in tensors.items() if ".layers." in name and value.ndim == 2}
    zeros = sum(int((value == 0).sum()) for value in matrices.values())
    assert zeros == round(0.5 * sum(value.numel() for value in matrices.values()))
    quantization = {"bits": 8, "embeddings": True}
    export = callback("Export", formats=["onnx-int8"])
    trained.configure(stage("QAT", "checkpoints/pruned/model", (export,), quantization=quantization))
    trained.succeed("fit", "--run", "q")
    stored, table = stored_weights.read_stored("checkpoints/q/model/model.safetensors")
    assert {*table} == {*matrices, "model.embed_tokens.weight", "lm_head.weight"}
    assert all(stored[name].dtype == torch.int8 for name in table)
    whole = stored_weights.read("checkpoints/q/model/model.safetensors")
    assert all(not whole[name][value == 0].any() for name, value in matrices.items())
    ids = np.array([[5, 3, 2, 8, 9, 4]])
    models = [lightgpt2.load(f"checkpoints/q/{name}") for name in ("model", "model-onnx-int8")]
    one, other = (model.logits(ids) for model in models)
    np.testing.assert_allclose(one, other, rtol=0, atol=0.05)


def _method(name: str, **settings: Any) -> dict[str, Any]:
    """A method with these settings alone."""
    chosen = stage(name)["model"]
    kept = {key: value for key, value in chosen["init_args"].items() if key != "model"}
    return chosen | {"init_args": {**kept, **settings}}
