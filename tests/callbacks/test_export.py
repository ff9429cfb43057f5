"""Export through the real command: folders that stand alone, made at fit end of what the run has left."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForCausalLM

from lightgpt2.callbacks import Export
from lightgpt2.conversions.target import Target
from lightgpt2.conversions.verification import BOUNDS
from lightgpt2.models.loading import load_model
from lightgpt2.runtime.folder import open_export
from tests.support.mistakes import Bench
from tests.support.models import write_model

FINETUNE = {
    "class_path": "lightgpt2.methods.FineTune",
    "init_args": {"model": "teacher", "optimizer": {"lr": 1e-3}},
}
QAT: dict[str, Any] = {
    "class_path": "lightgpt2.methods.QAT",
    "init_args": {"model": "teacher", "optimizer": {"lr": 1e-3}},
}
RUN = Path("checkpoints/r")


@pytest.fixture
def wide(bench: Bench) -> Bench:
    """A bench whose teacher is large enough that integers make it smaller."""
    write_model(Path("teacher"), n_embd=128)
    return bench


def exporting(model: Any = FINETUNE, **init: Any) -> dict[str, Any]:
    return {"model": model, "trainer.callbacks": [{"class_path": "lightgpt2.callbacks.Export", "init_args": init}]}


def integers(**quantization: Any) -> dict[str, Any]:
    return {**QAT, "init_args": {**QAT["init_args"], "quantization": quantization}}


def logits(folder: Path, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """By a client that knows nothing but the graph's names."""
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
    past = [each for each in session.get_inputs() if each.name.startswith("past")]
    feeds |= {each.name: np.empty((1, each.shape[1], 0, each.shape[3]), np.float32) for each in past}
    found: np.ndarray[Any, Any] = session.run(["logits"], feeds)[0]
    return found


def test_what_was_trained_is_exported_verified_and_told(bench: Bench) -> None:
    bench.configure(exporting(formats=["onnx", "gguf"], gguf_type="F32"))
    shown = bench.succeed("fit")
    ids = np.arange(5, 21)[None]
    with torch.inference_mode():
        trained = AutoModelForCausalLM.from_pretrained(RUN / "model")(torch.from_numpy(ids)).logits.numpy()
        start = AutoModelForCausalLM.from_pretrained("teacher")(torch.from_numpy(ids)).logits.numpy()
        gguf = load_model(str(RUN / "model-gguf/model.gguf"), "m")(torch.from_numpy(ids)).logits.numpy()
    for found in (logits(RUN / "model-onnx", ids), gguf):
        np.testing.assert_allclose(found, trained, atol=2e-4)
        assert np.abs(found - start).max() > 1e-2, "and not what the run began with"
    known = json.loads((RUN / "model/ledger.json").read_text())
    for form in ("onnx", "gguf"):
        about = open_export(RUN / f"model-{form}")
        assert about["format"] == form
        ledger = json.loads((RUN / f"model-{form}/ledger.json").read_text())
        assert ledger[:-1] == known
        assert (ledger[-1]["method"], ledger[-1]["operations"][0]["op"]) == ("Export", "export")
        assert ledger[-1]["sizes"]["megabytes"] == sum(about["bytes"].values()) / 1e6
        assert ledger[-1]["sizes"]["parameters"] == known[-1]["sizes"]["parameters"]
        line = next(line for line in shown.splitlines() if line.startswith(f"{RUN}/model-{form}:"))
        assert f"perplexity {about['quality']['after']['perplexity']:.2f}" in line
    assert open_export(RUN / "model-gguf")["type"] == "F32"


def test_integers_are_exported_with_the_scales_that_were_trained(wide: Bench) -> None:
    wide.configure(exporting(integers(bits=4, group=16, embeddings=True), formats=["onnx-int4"]))
    wide.succeed("fit")
    assert open_export(RUN / "model-onnx-int4")["scales"] == "trained"
    after = json.loads((RUN / "model-onnx-int4/ledger.json").read_text())[-1]["quality"]
    assert after["after"]["perplexity"] == pytest.approx(after["before"]["perplexity"], rel=0.02)


def test_each_format_is_given_what_it_has() -> None:
    formats: list[Any] = ["onnx", "onnx-int8", "onnx-int4", "gguf"]
    callback = Export(formats, embeddings="int4", group=64, gguf_type="Q8_0", prefill="int8")
    assert callback.targets == [
        Target("onnx"),
        Target("onnx-int8", embeddings="int4"),
        Target("onnx-int4", embeddings="int4", group=64, prefill="int8"),
        Target("gguf", gguf_type="Q8_0"),
    ]


@pytest.mark.parametrize(
    ("init", "messages"),
    [
        ({"formats": []}, ["formats: give one or more of onnx, onnx-int8, onnx-int4, gguf, each once"]),
        ({"formats": ["onnx", "onnx"]}, ["formats: give one or more of onnx, onnx-int8, onnx-int4, gguf, each once"]),
        (
            {"formats": ["onnx"], "embeddings": "int4", "group": 32, "gguf_type": "F16", "prefill": "int8"},
            [
                "embeddings: only onnx-int8 and onnx-int4 have it; remove it",
                "group: onnx-int4 is not among the formats; remove it, or add onnx-int4",
                "prefill: onnx-int4 is not among the formats; remove it, or add onnx-int4",
                "gguf_type: gguf is not among the formats; remove it, or add gguf",
            ],
        ),
        (
            {"formats": ["onnx-int8", "onnx-int4"], "group": 48},
            ["group: 48 is not possible; give 16, 32, 64, 128 or 256"],
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    bench: Bench, init: dict[str, Any], messages: list[str]
) -> None:
    bench.configure(exporting(**init))
    assert bench.refuse("fit") == [f"trainer.callbacks.Export.{message}" for message in messages]


@pytest.mark.parametrize("verb", ["fit", "check"])
def test_what_cannot_be_exported_is_refused_before_training(bench: Bench, verb: str) -> None:
    bench.configure(exporting(integers(activations=True), formats=["onnx", "onnx-int8", "gguf"], gguf_type="Q8_0"))
    messages = bench.refuse(verb, touches=True)
    assert messages[0] == (
        "trainer.callbacks.Export.formats: the model's weights are int8 with scales that were trained; give onnx-int8"
    )
    assert [message.partition(": ")[0] for message in messages] == ["trainer.callbacks.Export.formats"] * 3
    assert "gguf: the weights are int8 with scales that were trained" in messages[1]
    assert "--" not in "".join(messages)
    assert not (RUN / "last.ckpt").exists()


def test_an_export_that_is_not_good_enough_fails_the_run_and_the_others_are_written(
    wide: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BOUNDS, "int4", -0.9)
    wide.configure(exporting(formats=["onnx-int4", "onnx-int8"]))
    (message,) = wide.refuse("fit", touches=True)
    assert message.startswith("trainer.callbacks.Export.formats: onnx-int4: its perplexity is ")
    assert message.endswith("nothing was written")
    assert not (RUN / "model-onnx-int4").exists()
    assert open_export(RUN / "model-onnx-int8")["format"] == "onnx-int8"
    assert (RUN / "model/model.safetensors").is_file()


def test_siblings_that_are_no_model_of_transformers_are_left_as_they_are(wide: Bench) -> None:
    settings = exporting(formats=["onnx-int8"])
    check = {"class_path": "lightgpt2.callbacks.GenerationCheck", "init_args": {"samples": 1, "new_tokens": 4}}
    wide.configure(settings | {"trainer.callbacks": [*settings["trainer.callbacks"], check]})
    assert "model: of 1 documents continued" in wide.succeed("fit")
    open_export(RUN / "model-onnx-int8")  # whose checksums hold
