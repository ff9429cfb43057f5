"""Export through the real command: folders that stand alone, made at fit end of what the run has left."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lightgpt2.models.loading import load_model
from lightgpt2.models.quality import value_of
from lightgpt2.runtime.folder import open_export
from lightgpt2.tasks.exported import BOUNDS
from tests.support.mistakes import Bench
from tests.support.models import write_model
from tests.support.onnx_client import Client
from tests.support.stages import callback, entries, stage

RUN = Path("checkpoints/r")


@pytest.fixture
def wide(bench: Bench) -> Bench:
    """A bench whose teacher is large enough that integers make it smaller."""
    write_model(Path("teacher"), n_embd=128)
    return bench


@pytest.mark.slow
def test_what_was_trained_is_exported_and_shown(bench: Bench) -> None:
    bench.configure(stage("FineTune", callbacks=(callback("Export", formats=["onnx", "gguf"], gguf_type="F32"),)))
    shown, ids = bench.succeed("fit"), np.arange(5, 21)[None]
    with torch.inference_mode():
        trained = AutoModelForCausalLM.from_pretrained(RUN / "model")(torch.from_numpy(ids)).logits.numpy()
        start = AutoModelForCausalLM.from_pretrained("teacher")(torch.from_numpy(ids)).logits.numpy()
        gguf = load_model(str(RUN / "model-gguf/model.gguf"), "m")(torch.from_numpy(ids)).logits.numpy()
    for found in (Client(RUN / "model-onnx").run(ids, np.ones_like(ids))[0], gguf):
        np.testing.assert_allclose(found, trained, atol=2e-4)
        assert np.abs(found - start).max() > 1e-2, "and not what the run began with"
    for form in ("onnx", "gguf"):
        about, (*history, entry) = open_export(RUN / f"model-{form}"), entries(f"r/model-{form}")
        assert (about["format"], history) == (form, entries())
        assert (entry["method"], entry["operations"][0]["op"]) == ("Export", "export")
        assert entry["sizes"]["megabytes"] == sum(about["bytes"].values()) / 1e6
        line = next(line for line in shown.splitlines() if line.startswith(f"{RUN}/model-{form}:"))
        assert f"perplexity {value_of(about['quality']['after']):.2f}" in line
    assert open_export(RUN / "model-gguf")["type"] == "F32"


@pytest.mark.slow
def test_integers_are_exported_with_the_scales_that_were_trained_and_else_refused(wide: Bench) -> None:
    form = {"bits": 4, "group": 16, "embeddings": True}
    wide.configure(stage("QAT", callbacks=(callback("Export", formats=["onnx"]),), quantization=form))
    wanted = (
        "trainer.callbacks.Export.formats: onnx: the weights are int4 with scales that were trained; give onnx-int4"
    )
    assert wide.refuse("check", touches=True) == wide.refuse("fit", touches=True) == [wanted]
    assert not (RUN / "last.ckpt").exists()
    wide.configure(stage("QAT", callbacks=(callback("Export", formats=["onnx-int4"]),), quantization=form))
    wide.succeed("fit")
    assert open_export(RUN / "model-onnx-int4")["scales"] == "trained"
    quality = entries("r/model-onnx-int4")[-1]["quality"]
    assert value_of(quality["after"]) == pytest.approx(value_of(quality["before"]), rel=0.02)


@pytest.mark.slow
def test_an_export_that_is_not_good_enough_fails_the_run_and_the_others_stay_as_they_are(
    wide: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BOUNDS, "int4", -0.9)
    check, export = (
        callback("GenerationCheck", samples=1, new_tokens=4),
        callback("Export", formats=["onnx-int4", "onnx-int8"]),
    )
    wide.configure(stage("FineTune", callbacks=(check, export)))
    (message,) = wide.refuse("fit", touches=True)
    assert message.startswith("trainer.callbacks.Export.formats: onnx-int4: its perplexity is ")
    assert message.endswith("nothing was written")
    assert not (RUN / "model-onnx-int4").exists()
    assert open_export(RUN / "model-onnx-int8")["format"] == "onnx-int8", "whose checksums hold"
    assert (RUN / "model/model.safetensors").is_file()
