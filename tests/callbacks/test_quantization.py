"""PostTrainingQuantization through the real command: copies of the artefact, scored from disk."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from lightgpt2.models.operations import kind_of
from lightgpt2.models.quality import read_scores, value_of
from tests.support.mistakes import Bench
from tests.support.models import write_model
from tests.support.stages import callback, entries, stage, validated

RUN = Path("checkpoints/r")


def finetune(name: str = "PostTrainingQuantization", **init: Any) -> dict[str, Any]:
    return stage("FineTune", callbacks=(callback(name, **init),))


@pytest.mark.slow
def test_copies_are_scored_from_disk_beside_full_and_half_precision(bench: Bench) -> None:
    write_model(Path("teacher"), n_embd=128)
    bench.configure(finetune(formats=["nf4", "int8", "onnx-int8", "onnx-int4"]))
    shown, whole = bench.succeed("fit"), entries()
    names = ["fp32", "bf16", "nf4", "int8", "onnx-int8", "onnx-int4"]
    table = {line.split()[0]: line.split() for line in shown.splitlines() if line.startswith(tuple(names))}
    assert list(table) == names
    quality = whole[-1]["quality"]
    assert [table["fp32"][1], table["bf16"][1]] == [f"{value_of(quality[label]):.2f}" for label in ("after", "bf16")]
    assert read_scores(RUN / "model", "bf16", quality["bf16"])["perplexity"].value() == value_of(quality["bf16"])
    for form in ("nf4", "int8"):
        (*history, entry) = entries(f"r/model-{form}")
        assert history == whole
        (operation,) = entry["operations"]
        assert operation == {"op": form, "matched": 16, "linears": 17, "kept": {"lm_head": "tied to the embedding"}}
        figure = value_of(entry["quality"]["after"])
        assert figure == pytest.approx(value_of(quality["after"]), rel=0.1)
        assert table[form][1:] == [
            f"{figure:.2f}", f"{entry['sizes']['memory']:.2f}", f"{entry['sizes']['megabytes']:.2f}", "16/17",
        ]  # fmt: skip
        loaded = AutoModelForCausalLM.from_pretrained(RUN / f"model-{form}")
        assert loaded.num_parameters() == entry["sizes"]["parameters"] == whole[-1]["sizes"]["parameters"]
    scored = value_of(entries("r/model-nf4")[-1]["quality"]["after"])
    assert validated(bench, "--ckpt_path", str(RUN / "model-nf4")) == pytest.approx(scored, rel=1e-5)
    for form in ("onnx-int8", "onnx-int4"):
        entry, folder = entries(f"r/model-{form}")[-1], RUN / f"model-{form}"
        size = sum((folder / name).stat().st_size for name in ("model.onnx", "model.onnx_data")) / 1e6
        assert table[form][1:] == [f"{value_of(entry['quality']['after']):.2f}", f"{size:.2f}", "all"]
        assert entry["quality"]["before"] == quality["after"], "scored once"
    memory = {name: float(table[name][2]) for name in ("fp32", "bf16", "nf4", "int8")}  # one document has no interval
    assert memory["fp32"] == pytest.approx(2 * memory["bf16"], rel=0.05), "half precision's share is shown apart"
    assert memory["nf4"] < memory["int8"] < memory["fp32"]


def test_unknown_formats_are_refused(bench: Bench) -> None:
    bench.configure(finetune(formats=["int4"]))
    (message,) = bench.refuse("fit")
    assert message.startswith("trainer.callbacks.PostTrainingQuantization.formats: must be a list of one of nf4, int8")


@pytest.mark.slow
def test_copies_of_an_older_artefact_go_with_it_and_what_holds_stays(bench: Bench) -> None:
    write_model(Path("teacher"), n_embd=64)
    bench.configure(finetune(formats=["nf4", "int8"]))
    bench.succeed("fit")
    bench.configure(finetune("SparsitySweep", levels=[0.5]))
    bench.succeed("fit", "--ckpt_path", "last")  # of the same weights
    assert {"before", "after", "bf16"} == set(entries()[-1]["quality"])
    assert (RUN / "model-int8").is_dir()
    bench.configure(finetune(formats=["nf4"]))
    bench.succeed("fit", "--ckpt_path", "last", "--trainer.max_steps", "5")  # of others
    assert not (RUN / "model-int8").exists()
    assert not (RUN / "sweep.json").exists()
    assert entries("r/model-nf4")[-1]["steps"] == 5


@pytest.mark.slow
def test_a_conversion_of_the_user_is_named_in_yaml(bench: Bench) -> None:
    bench.configure(finetune("Convert", conversions=["tests.conversions.test_contract.Halved"]))
    assert "\nhalved  " in bench.succeed("fit")
    (*history, entry) = entries("r/model-halved")
    assert history == entries()
    (operation,) = entry["operations"]
    assert kind_of(operation).describe(operation) == "stored in half precision"
    assert (entry["method"], kind_of(operation).converted(operation)) == ("Convert", "quantized")
    failing = {"class_path": "tests.conversions.test_contract.Halved", "init_args": {"fails": True}}
    bench.configure(finetune("Convert", conversions=[failing]))
    (message,) = bench.refuse("check", touches=True)
    assert message == "trainer.callbacks.Convert.conversions.fails: halved: must be false, got true; remove it"
