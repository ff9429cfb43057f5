"""Trimming as a stage: the real command, what it leaves on disk, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lightgpt2.models.surgery import replay
from tests.support.mistakes import Bench
from tests.support.models import write_model, write_tokenizer, write_uneven_model

_RATE = {"lr": 1.0e-3, "warmup_steps": 0, "decay": "constant"}


def trim(family: str = "teacher", **init: Any) -> dict[str, Any]:
    """Changes of the bench's configuration."""
    task = {"class_path": "lightgpt2.tasks.language_modeling.LanguageModeling", "init_args": {"samples": 0}}
    arguments = {"model": family, "optimizer": _RATE, "task": task, **init}
    return {"model": {"class_path": "lightgpt2.methods.Trim", "init_args": arguments}}


CUTS: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "everything": (
        "teacher", {"layers": 2, "width": 16, "ffn": 40},
        {"n_layer": 2, "n_embd": 16, "n_head": 1, "n_inner": 40},
    ),
    "layers of the centre, taught": (
        "teacher", {"layers": 2, "layer_choice": "centre", "loss": {"ce": 0.5, "kd": 0.5, "hidden": 1.0}},
        {"n_layer": 2, "n_embd": 32, "n_head": 2},
    ),
    "width, taught": (
        "teacher", {"width": 16, "heads": 2, "importance": "first", "loss": {"ce": 0.5, "kd": 0.5, "hidden": 1.0}},
        {"n_layer": 4, "n_embd": 16, "n_head": 2},
    ),
    "llama": (
        "llama", {"layers": [0, 3], "width": 24, "heads": 2, "importance": "activation", "calibration": 8},
        {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
         "intermediate_size": 36},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("family", "init", "shape"), CUTS.values(), ids=CUTS)
def test_what_is_cut_is_trained_saved_and_told(
    bench: Bench, family: str, init: dict[str, Any], shape: dict[str, int]
) -> None:
    write_model(Path("llama"), "llama")
    bench.configure({**trim(family, **init), "trainer.max_steps": 4})
    output = bench.succeed("fit")
    model = AutoModelForCausalLM.from_pretrained("checkpoints/r/model")
    assert {key: getattr(model.config, key) for key in shape} == shape
    source = AutoModelForCausalLM.from_pretrained(family)
    (entry,) = json.loads(Path("checkpoints/r/model/ledger.json").read_text())
    shapes = {name: value.shape for name, value in replay(source.config, entry["operations"]).state_dict().items()}
    assert shapes == {name: value.shape for name, value in model.state_dict().items()}
    quality = entry["quality"]
    label = "teacher" if "loss" in init else "source"
    assert set(quality) == {label, "before", "after"}
    assert quality["after"]["perplexity"]["value"] < quality["before"]["perplexity"]["value"]
    assert (entry["teacher"] is None) == ("loss" not in init)
    assert f"\n{label} " in output
    again = bench.succeed("validate", "--ckpt_path", "last")
    assert float(again.split("perplexity ")[1].split()[0]) == pytest.approx(
        quality["after"]["perplexity"]["value"], rel=1e-5
    )


@pytest.mark.parametrize("loss", [None, {"ce": 0.5, "kd": 0.5, "hidden": 1.0}], ids=["alone", "taught"])
def test_resumed_equals_uninterrupted(bench: Bench, loss: dict[str, float] | None) -> None:
    init = {"layers": 2, "width": 16, "importance": "activation", "loss": loss}
    bench.configure({**trim(**init), "trainer.max_steps": 6})
    bench.succeed("fit")
    whole = Path("checkpoints/r/model/model.safetensors").read_bytes()
    shutil.rmtree("checkpoints/r")
    bench.configure({**trim(**init), "trainer.max_steps": 3})
    bench.succeed("fit")
    bench.configure({**trim(**init), "trainer.max_steps": 6})
    bench.succeed("fit", "--ckpt_path", "last")
    assert Path("checkpoints/r/model/model.safetensors").read_bytes() == whole


def test_a_run_that_was_taught_is_scored_and_goes_on_without_its_teacher(bench: Bench) -> None:
    loss = {"ce": 0.5, "kd": 0.5, "hidden": 0.0}
    bench.configure({**trim(layers=2, loss=loss), "trainer.max_steps": 2})
    bench.succeed("fit")
    bench.configure({**trim(layers=2), "trainer.max_steps": 4})
    assert "perplexity" in bench.succeed("validate", "--ckpt_path", "last")
    bench.succeed("fit", "--ckpt_path", "last")
    assert json.loads(Path("checkpoints/r/model/ledger.json").read_text())[-1]["steps"] == 4


WITH_VOCABULARY: dict[str, tuple[str, dict[str, Any]]] = {
    "alone": ("gpt2", {}),
    "with everything": ("gpt2", {"layers": 2, "width": 16, "ffn": 40, "importance": "activation", "calibration": 8}),
    "taught": ("llama", {"layers": [0, 3], "heads": 2, "loss": {"ce": 0.5, "kd": 0.5, "hidden": 1.0}}),
    "alone, taught": ("llama", {"loss": {"ce": 0.5, "kd": 0.5, "hidden": 1.0}}),
}


@pytest.mark.parametrize(("family", "init"), WITH_VOCABULARY.values(), ids=WITH_VOCABULARY)
def test_tokens_that_the_text_does_not_need_go_from_model_and_tokenizer(
    bench: Bench, family: str, init: dict[str, Any]
) -> None:
    write_model(Path("big"), family, vocab_size=700, pad_token_id=300)
    bench.configure({**trim("big", vocabulary="corpus", **init), "trainer.max_steps": 4})
    bench.succeed("fit")
    model = AutoModelForCausalLM.from_pretrained("checkpoints/r/model")
    tokenizer = AutoTokenizer.from_pretrained("checkpoints/r/model")
    assert len(tokenizer) == model.config.vocab_size < 700
    assert tokenizer.decode(tokenizer("Zürich ☃")["input_ids"]) == "Zürich ☃"
    source = AutoModelForCausalLM.from_pretrained("big")
    (entry,) = json.loads(Path("checkpoints/r/model/ledger.json").read_text())
    cut = entry["operations"][0]
    assert (cut["op"], cut["before"], cut["after"]) == ("trim_vocabulary", 700, len(tokenizer))
    shapes = {name: value.shape for name, value in replay(source.config, entry["operations"]).state_dict().items()}
    assert shapes == {name: value.shape for name, value in model.state_dict().items()}
    quality = entry["quality"]
    assert len({figures["tokens"] for figures in quality.values()}) == 1, "all are asked for the same tokens"
    assert quality["after"]["perplexity"]["value"] < quality["before"]["perplexity"]["value"]
    if set(init) <= {"loss"}:
        assert quality["before"] == quality["teacher" if init else "source"]
    for options in (["--ckpt_path", "last"], []):  # the method with its checkpoint, and the artefact by itself
        again = bench.succeed("validate", *options)
        assert float(again.split("perplexity ")[1].split()[0]) == pytest.approx(
            quality["after"]["perplexity"]["value"], rel=1e-5
        )


def test_a_later_stage_goes_on_with_the_smaller_tokenizer(bench: Bench) -> None:
    write_model(Path("big"), vocab_size=700)
    bench.configure(trim("big", vocabulary="corpus"))
    bench.succeed("fit")
    shutil.move("checkpoints/r/model", "small")
    shutil.rmtree("checkpoints/r")
    bench.configure({"model.teacher": "small"})
    bench.succeed("fit")
    first, second = json.loads(Path("checkpoints/r/model/ledger.json").read_text())
    assert second["quality"]["teacher"] == first["quality"]["after"]
    assert Path("small/tokenizer.json").read_text() == Path("checkpoints/r/model/tokenizer.json").read_text()


def test_a_smaller_vocabulary_is_resumed_and_only_with_its_own_text(bench: Bench) -> None:
    write_model(Path("big"), vocab_size=700)
    bench.configure({**trim("big", vocabulary="corpus"), "trainer.max_steps": 6})
    bench.succeed("fit")
    whole = Path("checkpoints/r/model/model.safetensors").read_bytes()
    shutil.rmtree("checkpoints/r")
    bench.configure({**trim("big", vocabulary="corpus"), "trainer.max_steps": 3})
    bench.succeed("fit")
    bench.configure({**trim("big", vocabulary="corpus"), "trainer.max_steps": 6})
    bench.succeed("fit", "--ckpt_path", "last")
    assert Path("checkpoints/r/model/model.safetensors").read_bytes() == whole
    for file in sorted(Path("corpus").iterdir())[:12]:
        file.unlink()
    bench.configure({**trim("big", vocabulary="corpus"), "trainer.max_steps": 8})
    (message,) = bench.refuse("fit", "--ckpt_path", "last", touches=True)
    assert message.startswith("--ckpt_path: the training text needs other tokens")
    bench.configure({**trim("big"), "trainer.max_steps": 8})
    assert "model.vocabulary: corpus there, null here" in bench.refuse("fit", "--ckpt_path", "last")[0]


def test_a_run_of_a_version_without_the_setting_is_the_same_run(bench: Bench) -> None:
    bench.configure(trim(layers=2))
    bench.succeed("fit")
    config = Path("checkpoints/r/config.yaml")
    old = config.read_text().replace("    vocabulary: null\n", "")
    assert old != config.read_text()
    config.write_text(old)
    bench.succeed("validate")


def test_importance_is_better_than_the_first_channels_before_any_training(bench: Bench) -> None:
    """On a model whose last channels are the loud ones, which `first` gives up."""
    teacher = AutoModelForCausalLM.from_pretrained("teacher")
    with torch.no_grad():
        for block in teacher.transformer.h:
            block.mlp.c_proj.weight[:96] *= 0.01
    teacher.save_pretrained("teacher")
    found = {}
    for importance in ("norm", "activation", "first"):
        bench.configure({**trim(ffn=32, importance=importance), "trainer.max_steps": 1})
        bench.succeed("fit")
        entry = json.loads(Path("checkpoints/r/model/ledger.json").read_text())[-1]
        found[importance] = abs(
            entry["quality"]["before"]["perplexity"]["value"] - entry["quality"]["source"]["perplexity"]["value"]
        )
        shutil.rmtree("checkpoints/r")
    assert max(found["norm"], found["activation"]) < 0.2 * found["first"], found


MISTAKES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "nothing": ("teacher", {}, ["model.layers: nothing of teacher is cut"]),
    "wider": ("teacher", {"width": 64}, ["model.width: 64 is more than the model's 32"]),
    "more heads": ("teacher", {"heads": 4}, ["model.heads: 4 is more than the model's 2"]),
    "more neurons": ("teacher", {"ffn": 129}, ["model.ffn: 129 is more than the model's 128"]),
    "more layers": ("teacher", {"layers": 5}, ["model.layers: cannot choose 5 of 4 layers"]),
    "repeated layers": ("teacher", {"layers": [0, 2, 2]}, ["model.layers: layers [2] come more than once"]),
    "layer out of range": ("teacher", {"layers": [0, 4]}, ["model.layers: layers [4]"]),
    "heads that do not divide": ("teacher", {"width": 15, "heads": 2}, ["model.heads: 2 heads do not divide a width of 15"]),
    "heads of a llama that do not divide": ("llama", {"width": 18}, ["model.heads: 4 heads do not divide a width of 18"]),
    "wider heads": ("teacher", {"heads": 1}, ["model.heads: 1 heads of a width of 32 would have 32 channels, and have 16"]),
    "half a group": ("llama", {"heads": 3}, ["model.heads: each 2 heads share one", "3 is no multiple of 2"]),
    "a map out of range": ("teacher", {"layers": 2, "loss": {"hidden": 1.0}, "layer_map": [9, 9]},
                           ["model.layer_map: layers [9, 9]"]),
    "a map for nothing": ("teacher", {"layers": 2, "layer_map": [0, 1]}, ["model.layer_map: without a hidden loss"]),
    "no loss": ("teacher", {"layers": 2, "loss": {"ce": 0, "kd": 0, "hidden": 0}}, ["model.loss: every weight is 0"]),
    "an odd vocabulary": ("teacher", {"vocabulary": 500}, ["model.vocabulary: ", "corpus"]),
    "layers of unlike sizes": ("uneven", {"layers": 2},
                               ["model.model: the layers of uneven have different numbers of heads and neurons",
                                "trim before movement pruning"]),
    "no heads": ("teacher", {"heads": 0}, ["model.heads: not allowed; give a value above 0 (given: 0)"]),
    "too little text": ("teacher", {"layers": 2, "width": 16, "importance": "activation", "calibration": 100_000},
                        ["model.calibration: the training split has", "fewer than 100000"]),
}  # fmt: skip


@pytest.mark.parametrize(("family", "init", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_cut_that_cannot_be_is_refused(bench: Bench, family: str, init: dict[str, Any], words: list[str]) -> None:
    write_model(Path("llama"), "llama")
    write_uneven_model(Path("uneven"))
    bench.configure(trim(family, **init))
    (message,) = bench.refuse("fit", touches="calibration" in init)
    assert message.startswith(words[0])
    assert all(word in message for word in words)


VOCABULARY_MISTAKES: dict[str, tuple[str, str | None, str]] = {
    "all of it needed": ("small", None, "model.vocabulary: the training text needs all 262 tokens of small; remove it"),
    "another kind": (
        "teacher",
        "alien",
        "model.vocabulary: only a byte-level BPE tokenizer (as GPT-2's) can be cut down",
    ),
    "too big": ("teacher", "big", "data.tokenizer: it has a token"),
}


@pytest.mark.parametrize(("model", "tokenizer", "beginning"), VOCABULARY_MISTAKES.values(), ids=VOCABULARY_MISTAKES)
def test_a_vocabulary_that_cannot_be_cut_is_refused(
    bench: Bench, model: str, tokenizer: str | None, beginning: str
) -> None:
    write_model(Path("small"), vocab_size=262)
    write_tokenizer(Path("big"), 700)
    letters = [("<end>", 0.0), *((chr(code), -1.0) for code in range(32, 127))]
    unigram = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram(letters, unk_id=0)), eos_token="<end>")
    unigram.save_pretrained("alien")
    bench.configure({**trim(model, vocabulary="corpus"), "data.tokenizer": tokenizer})
    (message,) = bench.refuse("fit")
    assert message.startswith(beginning)


def test_a_student_is_made_of_layers_of_unlike_sizes_or_beside_them(bench: Bench) -> None:
    write_uneven_model(Path("uneven"))
    teacher = AutoModelForCausalLM.from_pretrained("uneven", trust_remote_code=True)
    fresh = {"n_layer": 2, "n_embd": 16, "n_head": 2}
    for student, sizes in ((None, {"heads": [2, 2], "ffn": [40, 8]}), (fresh, None)):
        bench.configure({"model.teacher": "uneven", "model.layers": None if student else 2, "model.student": student})
        bench.succeed("fit")
        model = AutoModelForCausalLM.from_pretrained("checkpoints/r/model", trust_remote_code=student is None)
        assert getattr(model.config, "lightgpt2", None) == sizes
        assert model.num_parameters() < teacher.num_parameters()
        shutil.rmtree("checkpoints/r")


def test_all_mistakes_are_named_at_once(bench: Bench) -> None:
    bench.configure(trim(layers=9, width=64, ffn=129))
    assert [message.partition(":")[0] for message in bench.refuse("fit")] == [
        "model.layers",
        "model.width",
        "model.ffn",
    ]
