"""What a finished model writes: measured from disk, beside the text itself, with the same figures for the same seed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightgpt2.callbacks import GenerationCheck
from lightgpt2.data.requirements import requirements
from lightgpt2.errors import UserError
from lightgpt2.methods import FineTune
from tests.support.mistakes import Bench
from tests.support.models import make_model, write_tokenizer
from tests.support.stages import callback, entries


@pytest.mark.slow
def test_artefact_and_siblings_are_looked_at_with_the_same_text(bench: Bench) -> None:
    check = callback("GenerationCheck", samples=20, prompt_tokens=6, new_tokens=24)
    quantization = callback("PostTrainingQuantization", formats=["int8"])
    bench.configure({"trainer.callbacks": [check, quantization], "data.valid_fraction": 0.3})
    first = bench.succeed("fit")
    shown = [line for line in first.splitlines() if "repeats" in line]
    assert [line.split(":")[0] for line in shown] == ["model", "model-int8"]
    plain, quantized = (entries(f"r/{folder}")[-1]["generation"] for folder in ("model", "model-int8"))
    for key in ("samples", "settings", "repeated_text", "distinct_2_text"):
        assert plain[key] == pytest.approx(quantized[key], abs=0.05), "but for the lengths of what they write"
    assert 0 < plain["repeated"] < 1
    assert "well_formed" not in plain
    bench.succeed("fit", "--ckpt_path", "last")
    assert entries()[-1]["generation"] == plain, "the same seed gives the same text"


class Documents:
    """A data module of requirements, as far as generation asks."""

    def __init__(self, folder: Path, source: str) -> None:
        self.tokenizer, self.source = write_tokenizer(folder), source
        self.texts = [self.tokenizer(text)["input_ids"] for _, text in requirements(20)]

    def passages(self, split: str, count: int, length: int, more: int) -> list[tuple[list[int], list[int]]]:
        rows = [[0, *ids] for ids in self.texts if len(ids) >= length]
        return [(row[:length], row[length : length + more]) for row in rows][:count]

    def describe(self) -> dict[str, Any]:
        return {"source": self.source}


def test_a_model_that_says_one_thing_has_collapsed(tmp_path: Path) -> None:
    model, check = make_model("gpt2"), GenerationCheck(20, prompt_tokens=6, new_tokens=24)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(100 * model.transformer.wte.weight[77])
    generation = check._measure(model, Documents(tmp_path, "text"))
    assert generation["collapsed"]
    assert generation["repeated"] > 0.9
    assert generation["distinct_2"] < 0.05
    assert generation["repeated_text"] < 0.7
    assert "well_formed" not in generation


def test_sentences_of_the_grammar_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Documents(tmp_path, "requirements:20")
    check = GenerationCheck(20, prompt_tokens=6, new_tokens=57)
    assert check._measure(make_model("gpt2"), data)["well_formed"] == 0.0, "random weights know no grammar"
    rest = [ids[5:] for ids in data.texts]
    monkeypatch.setattr(GenerationCheck, "_continue", lambda *_: rest)
    assert check._measure(make_model("gpt2"), data)["well_formed"] == 1.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"new_tokens": 60}, ["new_tokens: 6 tokens of prompt and 60 new ones", "64 positions; give at most 58"]),
        ({"prompt_tokens": 39_000, "new_tokens": 1}, ["prompt_tokens: 39000 leave none", "positions; give at most 63"]),
        (
            {"prompt_tokens": 63, "new_tokens": 1},
            ["prompt_tokens: no document of the validation split is longer than 63"],
        ),
    ],
)
def test_what_cannot_be_generated_is_refused(tmp_path: Path, settings: dict[str, int], words: list[str]) -> None:
    method: Any = FineTune("unused")
    method.model = make_model("gpt2")
    data = Documents(tmp_path, "text")
    data.texts = [ids[:50] for ids in data.texts]
    method._trainer = SimpleNamespace(datamodule=data)
    with pytest.raises(UserError, match=r"^trainer\.callbacks\.GenerationCheck\.") as refused:
        GenerationCheck(**{"prompt_tokens": 6, "new_tokens": 24, **settings}).on_fit_start(method._trainer, method)
    assert all(word in str(refused.value) for word in words), refused.value
