"""Trimming as a stage: the real command, what it leaves on disk, and what it refuses."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightgpt2.errors import UserError
from lightgpt2.methods import Trim
from lightgpt2.models.axes import Shape
from lightgpt2.models.trimming import activation_scores, choose, cut, first_scores, norm_scores
from lightgpt2.objectives import DistillLoss
from lightgpt2.starts import Trimmed
from tests.support.mistakes import Bench
from tests.support.models import make_model, write_model, write_uneven_model
from tests.support.refusals import assert_refused, refusals
from tests.support.stages import assert_replayed, entries, stage, validated

LOSS = {"ce": 0.5, "kd": 0.5, "hidden": 1.0}


def trim(model: str = "teacher", steps: int = 4, **init: Any) -> dict[str, Any]:
    return stage("Trim", model, **init) | {"trainer.max_steps": steps}


CUTS: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "everything": (
        "teacher", {"layers": 0.5, "width": 0.5, "ffn": 40},
        {"n_layer": 2, "n_embd": 16, "n_head": 1, "n_inner": 40},
    ),
    "layers of the centre, taught": (
        "teacher", {"layers": 2, "layer_choice": "centre", "loss": LOSS},
        {"n_layer": 2, "n_embd": 32, "n_head": 2},
    ),
    "width, taught": (
        "teacher", {"width": 16, "heads": 2, "importance": "first", "loss": LOSS},
        {"n_layer": 4, "n_embd": 16, "n_head": 2},
    ),
    "llama": (
        "llama", {"layers": [0, 3], "width": 24, "heads": 2, "importance": "activation", "calibration": 8},
        {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
         "intermediate_size": 36},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("family", "init", "shape"), CUTS.values(), ids=CUTS)
def test_what_is_cut_is_trained_saved_and_reported(
    bench: Bench, family: str, init: dict[str, Any], shape: dict[str, int]
) -> None:
    write_model(Path("llama"), "llama")
    bench.configure(trim(family, **init))
    output = bench.succeed("fit")
    model = AutoModelForCausalLM.from_pretrained("checkpoints/r/model")
    assert {key: getattr(model.config, key) for key in shape} == shape
    (entry,) = entries()
    assert_replayed(AutoModelForCausalLM.from_pretrained(family), entry, model)
    quality = entry["quality"]
    label = "teacher" if "loss" in init else "source"
    assert set(quality) == {label, "before", "after"}
    assert quality["after"]["perplexity"]["value"] < quality["before"]["perplexity"]["value"]
    assert (entry["teacher"] is None) == ("loss" not in init)
    assert f"\n{label} " in output
    assert validated(bench, "--ckpt_path", "last") == pytest.approx(quality["after"]["perplexity"]["value"], rel=1e-5)


@pytest.mark.slow
def test_resumed_equals_uninterrupted(bench: Bench) -> None:
    init = {"layers": 2, "width": 16, "importance": "activation", "loss": LOSS}
    bench.configure(trim(steps=6, **init))
    bench.succeed("fit")
    whole = Path("checkpoints/r/model/model.safetensors").read_bytes()
    shutil.rmtree("checkpoints/r")
    bench.succeed("fit", "--trainer.max_steps", "3")
    bench.succeed("fit", "--ckpt_path", "last")
    assert Path("checkpoints/r/model/model.safetensors").read_bytes() == whole


@pytest.mark.slow
def test_a_run_that_was_taught_is_scored_and_goes_on_without_its_teacher(bench: Bench) -> None:
    bench.configure(trim(steps=2, layers=2, loss={**LOSS, "hidden": 0.0}))
    bench.succeed("fit")
    bench.configure(trim(layers=2))
    assert validated(bench, "--ckpt_path", "last") > 0
    bench.succeed("fit", "--ckpt_path", "last")
    assert entries()[-1]["steps"] == 4


WITH_VOCABULARY: dict[str, tuple[str, dict[str, Any]]] = {
    "with everything": ("gpt2", {"layers": 2, "width": 16, "ffn": 40, "importance": "activation", "calibration": 8}),
    "alone, taught": ("llama", {"loss": LOSS}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "init"), WITH_VOCABULARY.values(), ids=WITH_VOCABULARY)
def test_tokens_that_the_text_does_not_need_go_from_model_and_tokenizer(
    bench: Bench, family: str, init: dict[str, Any]
) -> None:
    write_model(Path("big"), family, vocab_size=700, pad_token_id=300)
    bench.configure(trim("big", vocabulary="corpus", **init))
    bench.succeed("fit")
    model = AutoModelForCausalLM.from_pretrained("checkpoints/r/model")
    tokenizer = AutoTokenizer.from_pretrained("checkpoints/r/model")
    assert len(tokenizer) == model.config.vocab_size < 700
    assert tokenizer.decode(tokenizer("Zürich ☃")["input_ids"]) == "Zürich ☃"
    (entry,) = entries()
    cut = entry["operations"][0]
    assert (cut["op"], cut["before"], cut["after"]) == ("trim_vocabulary", 700, len(tokenizer))
    assert_replayed(AutoModelForCausalLM.from_pretrained("big"), entry, model)
    quality = entry["quality"]
    assert len({figures["tokens"] for figures in quality.values()}) == 1, "all are asked for the same tokens"
    assert quality["after"]["perplexity"]["value"] < quality["before"]["perplexity"]["value"]
    if set(init) <= {"loss"}:
        assert quality["before"] == quality["teacher" if init else "source"]
    for options in (["--ckpt_path", "last"], []):  # the method with its checkpoint, and the artefact by itself
        assert validated(bench, *options) == pytest.approx(quality["after"]["perplexity"]["value"], rel=1e-5)


@pytest.mark.slow
def test_a_later_stage_goes_on_with_the_smaller_tokenizer(bench: Bench) -> None:
    write_model(Path("big"), vocab_size=700)
    bench.configure(trim("big", vocabulary="corpus"))
    bench.succeed("fit")
    shutil.move("checkpoints/r/model", "small")
    shutil.rmtree("checkpoints/r")
    bench.configure({"model.teacher": "small"})
    bench.succeed("fit")
    first, second = entries()
    assert second["quality"]["teacher"] == first["quality"]["after"]
    assert Path("small/tokenizer.json").read_text() == Path("checkpoints/r/model/tokenizer.json").read_text()


@pytest.mark.slow
def test_a_smaller_vocabulary_is_resumed_only_with_its_own_text(bench: Bench) -> None:
    write_model(Path("big"), vocab_size=700)
    bench.configure(trim("big", steps=3, vocabulary="corpus"))
    bench.succeed("fit")
    bench.configure(trim("big", steps=6, vocabulary="corpus"))
    bench.succeed("fit", "--ckpt_path", "last")
    for file in sorted(Path("corpus").iterdir())[:12]:
        file.unlink()
    (message,) = bench.refuse("fit", "--ckpt_path", "last", "--trainer.max_steps", "8", touches=True)
    assert message.startswith("--ckpt_path: the training text needs other tokens")
    bench.configure(trim("big", steps=8))
    assert "model.vocabulary: corpus there, null here" in bench.refuse("fit", "--ckpt_path", "last")[0]


def test_importance_is_better_than_the_first_channels_before_any_training() -> None:
    """On a model whose last channels are the loud ones, which `first` gives up."""
    model, ids = make_model("gpt2"), torch.arange(60).view(2, 30) * 3
    with torch.no_grad():
        for block in model.transformer.h:
            block.mlp.c_proj.weight[:96] *= 0.01
        found = {}
        scores = {
            "norm": norm_scores(model),
            "activation": activation_scores(model, [ids]),
            "first": first_scores(model),
        }
        for name, score in scores.items():
            target = replace(Shape.of(model.config), ffn=32)
            small = cut(model, target.applied(model.config), choose(model, target, score)).eval()
            found[name] = float((small(ids).logits - model(ids).logits).norm())
    assert max(found["norm"], found["activation"]) < 0.5 * found["first"], found


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, ["model.layers: nothing of teacher is cut"]),
    "wider": ({"width": 64}, ["model.width: 64 is more than the model's 32"]),
    "more heads": ({"heads": 4}, ["model.heads: 4 is more than the model's 2"]),
    "more neurons": ({"ffn": 129}, ["model.ffn: 129 is more than the model's 128"]),
    "more layers": ({"layers": 5}, ["model.layers: cannot choose 5 of 4 layers"]),
    "repeated layers": ({"layers": [0, 2, 2]}, ["model.layers: layers [2] come more than once"]),
    "layer out of range": ({"layers": [0, 4]}, ["model.layers: layers [4]"]),
    "heads that do not divide": ({"width": 15, "heads": 2}, ["model.heads: 2 heads do not divide a width of 15"]),
    "heads of a llama that do not divide": (
        {"model": "llama", "width": 18}, ["model.heads: 4 heads do not divide a width of 18"],
    ),
    "wider heads": ({"heads": 1}, ["model.heads: 1 heads of a width of 32 would have 32 channels, and have 16"]),
    "half a group": ({"model": "llama", "heads": 3}, ["model.heads: each 2 heads share one", "3 is no multiple of 2"]),
    "heads of rotary positions": (
        {"model": "gpt_neox", "width": 16, "heads": 2},
        ["model.heads: 2 heads of a width of 16 would have 8 channels, and rotary positions need all 16"],
    ),
    "a map out of range": (
        {"layers": 2, "loss": DistillLoss(hidden=1.0), "layer_map": [9, 9]}, ["model.layer_map: layers [9, 9]"],
    ),
    "a map for nothing": ({"layers": 2, "layer_map": [0, 1]}, ["model.layer_map: without a hidden loss"]),
    "no loss": ({"layers": 2, "loss": DistillLoss(0, 0, 0)}, ["model.loss: every weight is 0"]),
    "layers of unlike sizes": (
        {"model": "uneven", "layers": 2},
        ["model.model: the layers of uneven have different numbers of heads and neurons", "trim before movement pruning"],
    ),
}  # fmt: skip


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(("init", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_cut_that_cannot_be_is_refused(init: dict[str, Any], words: list[str]) -> None:
    assert_refused(Trim(**{"model": "teacher", **init}), *words)


@pytest.mark.usefixtures("inside")
def test_all_mistakes_are_named_at_once() -> None:
    keys = [message.partition(":")[0] for message in refusals(Trim("teacher", layers=9, width=64, ffn=129))]
    assert keys == ["model.layers", "model.width", "model.ffn"]


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("tokens", "beginning"),
    [
        (range(300), "start.vocabulary: the training text needs all 300 tokens of teacher; remove it"),
        ([0, 700], "data.tokenizer: it has a token 700 and the model of start.model has 300 tokens"),
    ],
)
def test_a_vocabulary_that_cannot_be_cut_is_refused(tokens: Any, beginning: str) -> None:
    data: Any = SimpleNamespace(kept_tokens=list(tokens))
    with pytest.raises(UserError) as refused:
        Trimmed("teacher", vocabulary="corpus").build(data, False)
    assert str(refused.value).startswith(beginning)


@pytest.mark.slow
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


def test_it_may_cut_and_train_nothing(bench: Bench) -> None:
    bench.configure(stage("Trim", layers=1))
    bench.succeed("fit", "--trainer.max_steps", "0")
    (entry,) = entries()
    assert (entry["steps"], entry["operations"][0]["op"]) == (0, "extract_layers")
