"""PostTrainingQuantization through the real command: siblings of the artefact, scored from disk."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.support.mistakes import Bench
from tests.support.models import write_model


def finetune(formats: Any, **more: Any) -> dict[str, Any]:
    model = {"class_path": "lightgpt2.methods.FineTune", "init_args": {"model": "teacher", "optimizer": {"lr": 1e-3}}}
    callback = {"class_path": "lightgpt2.callbacks.PostTrainingQuantization", "init_args": {"formats": formats}}
    return {"model": model, "trainer.callbacks": [callback], **more}


def test_siblings_are_scored_from_disk_beside_full_and_half_precision(bench: Bench) -> None:
    write_model(Path("teacher"), n_embd=64)
    bench.configure(finetune(["nf4", "int8"]))
    shown = bench.succeed("fit")
    run = Path("checkpoints/r")
    whole = json.loads((run / "model/ledger.json").read_text())
    table = {
        line.split()[0]: line.split() for line in shown.splitlines() if line.startswith(("fp32", "bf16", "nf4", "int8"))
    }
    assert set(table) == {"fp32", "bf16", "nf4", "int8"}
    assert table["fp32"][1] == f"{whole[-1]['quality']['after']['perplexity']:.2f}"
    stored = {}
    for form in ("nf4", "int8"):
        ledger = json.loads((run / f"model-{form}/ledger.json").read_text())
        assert ledger[:-1] == whole
        (operation,) = ledger[-1]["operations"]
        assert operation == {"op": form, "matched": 16, "linears": 17, "kept": {"lm_head": "tied to the embedding"}}
        assert len(ledger[-1]["parent"]["sha256"]) == 64
        stored[form] = ledger[-1]["sizes"]["memory"]
        figure = ledger[-1]["quality"]["after"]["perplexity"]
        assert figure == pytest.approx(whole[-1]["quality"]["after"]["perplexity"], rel=0.1)
        assert f"{figure:.2f}" == table[form][1]
        assert "16/17" in table[form]
        shown = bench.succeed("validate", "--ckpt_path", str(run / f"model-{form}"))
        assert float(shown.split("perplexity ")[1].split()[0]) == pytest.approx(figure, rel=1e-6)
        loaded = AutoModelForCausalLM.from_pretrained(run / f"model-{form}")
        assert loaded.num_parameters() == ledger[-1]["sizes"]["parameters"] == whole[-1]["sizes"]["parameters"]
    memory = {name: float(row[2]) for name, row in table.items()}  # one document has no interval
    assert memory["fp32"] == pytest.approx(2 * memory["bf16"], rel=0.05), "half precision's share is shown apart"
    assert stored["nf4"] < stored["int8"] < memory["fp32"]


@pytest.mark.parametrize("formats", [[], ["nf4", "nf4"]])
def test_formats_that_make_nothing_or_the_same_twice_are_refused(bench: Bench, formats: list[str]) -> None:
    bench.configure(finetune(formats))
    (message,) = bench.refuse("fit")
    assert message == (
        "trainer.callbacks.PostTrainingQuantization.formats: give one or more of nf4, int8, onnx-int8, onnx-int4, each once"
    )


def test_unknown_format_is_refused(bench: Bench) -> None:
    bench.configure(finetune(["int4"]))
    (message,) = bench.refuse("fit")
    assert message.startswith("trainer.callbacks.formats")
    assert "'nf4', 'int8'" in message


def test_rows_that_are_no_whole_blocks_are_refused_before_training(bench: Bench) -> None:
    bench.configure(finetune(["int8", "nf4"]))
    (message,) = bench.refuse("fit", touches=True)
    assert message.startswith("nf4: layers with 32 inputs are computed wrongly")


def test_what_was_made_of_an_older_artefact_goes_with_it_and_what_holds_stays(bench: Bench) -> None:
    write_model(Path("teacher"), n_embd=64)
    bench.configure(finetune(["nf4", "int8"]))
    bench.succeed("fit")
    run = Path("checkpoints/r")
    sweep = {"class_path": "lightgpt2.callbacks.SparsitySweep", "init_args": {"levels": [0.5]}}
    bench.configure(finetune(["nf4"]) | {"trainer.callbacks": [sweep]})
    bench.succeed("fit", "--ckpt_path", "last")  # of the same weights
    entry = json.loads((run / "model/ledger.json").read_text())[-1]
    assert {"before", "after", "bf16"} == set(entry["quality"])
    assert (run / "model-int8").is_dir()
    bench.configure(finetune(["nf4"]))
    bench.succeed("fit", "--ckpt_path", "last", "--trainer.max_steps", "5")  # of others
    assert not (run / "model-int8").exists()
    assert not (run / "sweep.json").exists()
    assert json.loads((run / "model-nf4/ledger.json").read_text())[-1]["steps"] == 5


def test_onnx_siblings_stand_in_the_table_as_they_lie_on_disk(bench: Bench) -> None:
    write_model(Path("teacher"), n_embd=128)
    bench.configure(finetune(["onnx-int4", "int8", "onnx-int8"]))
    shown = bench.succeed("fit")
    table = {line.split()[0]: line.split() for line in shown.splitlines() if line.startswith(("fp32", "onnx", "int8"))}
    assert list(table) == ["fp32", "int8", "onnx-int8", "onnx-int4"]
    run = Path("checkpoints/r")
    known = json.loads((run / "model/ledger.json").read_text())
    for form in ("onnx-int8", "onnx-int4"):
        folder = run / f"model-{form}"
        size = sum((folder / name).stat().st_size for name in ("model.onnx", "model.onnx_data")) / 1e6
        entry = json.loads((folder / "ledger.json").read_text())[-1]
        assert table[form][1:] == [f"{entry['quality']['after']['perplexity']:.2f}", f"{size:.2f}", "all"]
        assert entry["quality"]["before"] == known[-1]["quality"]["after"], "scored once"
        assert entry["quality"]["after"]["tokens"] == known[-1]["quality"]["after"]["tokens"], "the whole split"
    assert float(table["onnx-int4"][2]) < float(table["onnx-int8"][2])


def test_two_callbacks_that_write_one_folder_are_refused(bench: Bench) -> None:
    settings = finetune(["nf4", "onnx-int8"])
    export = {"class_path": "lightgpt2.callbacks.Export", "init_args": {"formats": ["onnx", "onnx-int8"]}}
    bench.configure(settings | {"trainer.callbacks": [*settings["trainer.callbacks"], export]})
    (message,) = bench.refuse("check")
    assert message == (
        "trainer.callbacks.PostTrainingQuantization.formats: onnx-int8 is among those of Export too; remove one of the two"
    )
