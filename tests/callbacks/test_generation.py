"""What a finished model writes: measured from disk, beside the text itself, with the same figures for the same seed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightgpt2.data.requirements import flaw
from tests.support.mistakes import Bench

_CHECK = "lightgpt2.callbacks.GenerationCheck"


def check(**settings: Any) -> dict[str, Any]:
    return {"class_path": _CHECK, "init_args": {"samples": 20, "prompt_tokens": 6, "new_tokens": 24, **settings}}


def found(folder: str = "model") -> dict[str, Any]:
    return json.loads(Path(f"checkpoints/r/{folder}/ledger.json").read_text())[-1]["generation"]


def test_artefact_and_siblings_are_looked_at_with_the_same_text(bench: Bench) -> None:
    quantization = {"class_path": "lightgpt2.callbacks.PostTrainingQuantization", "init_args": {"formats": ["int8"]}}
    bench.configure({"trainer.callbacks": [check(), quantization], "data.valid_fraction": 0.3})
    first = bench.succeed("fit")
    told = [line for line in first.splitlines() if "repeats" in line]
    assert [line.split(":")[0] for line in told] == ["model", "model-int8"]
    plain, quantized = found(), found("model-int8")
    for key in ("samples", "settings", "repeated_text", "distinct_2_text"):
        assert plain[key] == pytest.approx(quantized[key], abs=0.05), "but for the lengths of what they write"
    assert 0 < plain["repeated"] < 1
    assert "well_formed" not in plain
    bench.succeed("fit", "--ckpt_path", "last")
    assert found() == plain, "the same seed gives the same text"


def test_a_model_that_says_one_thing_has_collapsed(bench: Bench) -> None:
    teacher = AutoModelForCausalLM.from_pretrained("teacher")
    with torch.no_grad():
        teacher.transformer.ln_f.weight.zero_()
        teacher.transformer.ln_f.bias.copy_(100 * teacher.transformer.wte.weight[77])
    teacher.save_pretrained("teacher")
    model = {"class_path": "lightgpt2.methods.FineTune", "init_args": {"model": "teacher"}}
    bench.configure({"model": model, "trainer.max_steps": 0, "trainer.callbacks": [check()]})
    bench.succeed("fit")
    generation = found()
    assert generation["repeated"] > 0.9
    assert generation["distinct_2"] < 0.05
    assert generation["repeated_text"] < 0.7


def test_sentences_of_the_grammar_are_checked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("lightgpt2.callbacks.generation.flaw", lambda text: seen.append(text) or flaw(text))
    bench.configure({"trainer.callbacks": [check(new_tokens=40)], "data.source": "requirements:300"})
    bench.succeed("fit")
    assert found()["well_formed"] == 0.0, "three steps teach no grammar"
    assert len(seen) == 20
    assert all(text.startswith("[") for text in seen)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"new_tokens": 60}, ["new_tokens: 6 tokens of prompt and 60 new ones", "64 positions; give at most 58"]),
        (
            {"prompt_tokens": 39_000, "new_tokens": 1},
            ["prompt_tokens: 39000 leave none", "64 positions; give at most 63"],
        ),
        ({"temperature": 0}, ["temperature: 0 is not allowed; give a value above 0"]),
        ({"samples": 0}, ["samples: 0 is not allowed"]),
    ],
)
def test_what_cannot_be_generated_is_refused(bench: Bench, settings: dict[str, Any], words: list[str]) -> None:
    bench.configure({"trainer.callbacks": [check(**settings)]})
    (message,) = bench.refuse("fit", touches=True)
    assert message.startswith("trainer.callbacks")
    assert all(word in message for word in words), message
