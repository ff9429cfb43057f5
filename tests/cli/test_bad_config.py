"""A mistake in a configuration: one message that names the key and the fix, exit code 2, and nothing touched."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.mistakes import Bench, files

# What a person may write, and words of the one message that it must give. The first begins the message.
MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no loss": ({"model.loss": {"ce": 0, "kd": 0, "hidden": 0}}, ["model.loss: every weight is 0", "above 0"]),
    "a class of another kind": (
        {"model": {"class_path": "lightgpt2.data.LanguageModelingData"}},
        ["model: ", "lightgpt2.data.LanguageModelingData does not correspond to a subclass of Method"],
    ),
    "no class of a callback": (
        {"trainer.callbacks": [{"class_path": "lightgpt2.callbacks.artefact.Nothing"}]},
        ["trainer.callbacks.Nothing: there is no lightgpt2.callbacks.artefact.Nothing"],
    ),
    "no such option of a callback of others": (
        {"trainer.callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"durations": 1}}]},
        ["trainer.callbacks.Timer.durations: no such key; did you mean duration?"],
    ),
    "a model folder's config for a strategy": ({"trainer.strategy": {"a": 1}}, ["trainer.strategy: "]),
    "bad separator": ({"data.separator": "("}, ["data.separator: '(' is not a regular expression", "correct it"]),
    "windows of one token": ({"data.sequence_length": 1}, ["data.sequence_length: 1 leaves nothing", "at least 2"]),
    "stride too long": ({"data.stride": 32}, ["data.stride: 32 skips tokens", "windows of 32", "at most 31"]),
    "nothing to train on": (
        {"data.valid_fraction": 0.6, "data.test_fraction": 0.4},
        ["data.valid_fraction: with data.test_fraction it leaves no training data", "less than 1"],
    ),
    "two tokenizers": (
        {"data.tokenizer": "teacher", "data.vocab_size": 300},
        ["data.vocab_size: cannot be given together with data.tokenizer", "remove one"],
    ),
    "sequence longer than the model": (
        {"data.sequence_length": 65},
        ["data.sequence_length: 65 is longer than the 64 positions of model.teacher", "at most"],
    ),
    "layer out of range": ({"model.layers": [0, 4]}, ["model.layers: layers [4]", "4 layers has layers 0 to 3"]),
    "negative layer": ({"model.layers": [-1, 2]}, ["model.layers: layers [-1]", "4 layers has layers 0 to 3"]),
    "too many layers": ({"model.layers": 5}, ["model.layers: cannot choose 5 of 4 layers"]),
    "no layer": ({"model.layers": []}, ["model.layers: layers list is empty", "layers 0 to 3"]),
    "layer_map out of range": ({"model.layer_map": [0, 9]}, ["model.layer_map: layers [9]", "4 layers has layers 0 to 3"]),
    "layer_map too long": ({"model.layer_map": [0, 1, 2]}, ["model.layer_map: it lists 3 layers", "the student has 2"]),
    "layer_map too short": ({"model.layer_map": [0]}, ["model.layer_map: it lists 1 layers", "the student has 2"]),
    "layers of a student": (
        {"model.student": "teacher"},
        ["model.layers: cannot be given together with model.student", "remove one"],
    ),
    "another vocabulary": (
        {"model.layers": None, "model.student": {"n_layer": 2, "vocab_size": 400}},
        ["model.student: its vocabulary has 400 tokens and the teacher's 300", "share a tokenizer"],
    ),
    "unknown shape": (
        {"model.layers": None, "model.student": {"n_layr": 2}},
        ["model.student: a gpt2 configuration has no n_layr", "remove"],
    ),
    "zero steps": ({"trainer.max_steps": 0}, ["trainer.max_steps: 0 trains nothing", "at least 1"]),
    "zero epochs": ({"trainer.max_epochs": 0}, ["trainer.max_epochs: 0 trains nothing", "at least 1"]),
    "zero batches": ({"trainer.limit_train_batches": 0}, ["trainer.limit_train_batches: 0 trains nothing", "at least 1"]),
    "no end": ({"trainer.max_steps": -1}, ["trainer.max_steps: nothing ends the run", "trainer.max_epochs"]),
    "validation never": (
        {"trainer.check_val_every_n_epoch": 1, "trainer.val_check_interval": 5000},
        ["trainer.val_check_interval: 5000 is more than the 97 batches of an epoch", "at most"],
    ),
    "seed out of range": ({"seed_everything": 99999999999}, ["seed_everything: ", "99999999999"]),
    "negative seed": ({"seed_everything": -1}, ["seed_everything: ", "-1"]),
    "part of a split": ({"trainer.limit_val_batches": 1}, ["trainer.limit_val_batches: a part of a split has no score"]),
    "a batch an epoch": ({"trainer.limit_train_batches": 1}, ["trainer.limit_train_batches: cuts optimizer steps apart"]),
    "one step to try": ({"trainer.fast_dev_run": True}, ["trainer.fast_dev_run: not supported", "lightgpt2 check"]),
    "no checkpoints": ({"trainer.enable_checkpointing": False}, ["trainer.enable_checkpointing: ", "remove it"]),
    "prompt as long as the model": (
        {"model.task.prompt_tokens": 64},
        ["model.task.prompt_tokens: 64 leaves none of the model's 64 positions", "at most 63"],
    ),
    "text for a shape": ({"model.layers": None, "model.student": {"n_layer": "two"}}, ["model.student: ", "n_layer"]),
    "more shards than processes": (
        {
            "trainer.strategy": {
                "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
                "init_args": {"data_parallel_size": 3, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
            }
        },
        ["trainer.strategy.data_parallel_size: 3 with 1 processes", "give 1"],
    ),
    "first FSDP by its class": (
        {"trainer.strategy": {"class_path": "lightning.pytorch.strategies.FSDPStrategy"}},
        ["trainer.strategy: FSDPStrategy is not supported", "ModelParallelStrategy"],
    ),
    "first FSDP": ({"trainer.strategy": "fsdp"}, ["trainer.strategy: fsdp is not supported", "ModelParallelStrategy"]),
    "tensor parallelism": (
        {
            "trainer.strategy": {
                "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
                "init_args": {"tensor_parallel_size": 2, "save_distributed_checkpoint": False},
            }
        },
        ["trainer.strategy.tensor_parallel_size: 2 is not supported", "give 1"],
    ),
    "no such device": ({"trainer.devices": 0}, ["trainer: ", "devices=0"]),
    "no such accelerator": ({"trainer.accelerator": "tpu"}, ["trainer: ", "torch_xla"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_one_mistake_gives_one_message(bench: Bench, name: str) -> None:
    changes, words = MISTAKES[name]
    bench.configure(changes)
    (message,) = bench.refuse("fit")
    assert message.startswith(words[0])
    assert all(word in message for word in words), message
    assert len(message) < 300, "a message for people is no dump"


@pytest.mark.parametrize("changes", [{}, {"seed_everything": True}], ids=["as it is", "a seed chosen by Lightning"])
def test_valid_configuration_is_not_refused(bench: Bench, changes: dict[str, Any]) -> None:
    bench.configure(changes)
    assert "ok" in bench.succeed("check").splitlines()
    assert files() == {}, "check writes nothing"


def test_check_reports_all_mistakes_of_sense_at_once(bench: Bench) -> None:
    bench.configure({
        "data.separator": "(", "data.stride": 99, "trainer.max_steps": 0,
        "trainer.limit_train_batches": 0, "model.student": {"n_layer": 2, "vocab_size": 400}, "model.layer_map": [0, 9],
    })  # fmt: skip
    messages = bench.refuse("check")
    assert sorted(message.partition(":")[0] for message in messages) == [
        "data.separator", "data.stride", "model.layer_map", "model.layers", "model.student",
        "trainer.limit_train_batches", "trainer.max_steps",
    ]  # fmt: skip


def test_zero_steps_are_refused_before_another_stage_is_trained(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightgpt2.cli.trainer.make_missing", lambda *_: pytest.fail("trained the teacher first"))
    bench.configure({"trainer.max_steps": 0, "needs": {"teacher": "teacher.yaml"}})
    (message,) = bench.refuse("fit")
    assert message.startswith("trainer.max_steps: 0 trains nothing")


# -- the run's folder ------------------------------------------------------------------------------------------------------


def test_folder_of_another_run_is_not_touched(finished: Bench) -> None:
    finished.configure({"model.layers": 3})
    (message,) = finished.refuse("fit")
    assert message.startswith("--run r: ")
    assert "belongs to another run (model.layers: 2 there, 3 here)" in message
    assert "--run NAME" in message


def test_model_of_other_settings_is_not_scored_as_if_it_were_these(finished: Bench) -> None:
    finished.configure({"model.layers": None})
    (message,) = finished.refuse("validate")
    assert message.startswith(
        "--run r: the model in checkpoints/r was made with other settings (model.layers: 2 there, null here)"
    )
    assert "--ckpt_path checkpoints/r/model" in message
    assert "perplexity" in finished.succeed("validate", "--ckpt_path=checkpoints/r/model")


@pytest.mark.parametrize("content", [None, "", "a: [", "model: 3", "model: {}"])
def test_folder_of_something_else_is_not_touched(bench: Bench, content: str | None) -> None:
    Path("checkpoints/r").mkdir(parents=True)
    Path("checkpoints/r/thesis.txt").write_text("years of work")
    if content is not None:
        Path("checkpoints/r/config.yaml").write_text(content)
    (message,) = bench.refuse("fit")
    assert message.startswith("--run r: ")
    assert "was not made by lightgpt2" in message
    assert "--run NAME" in message


@pytest.mark.parametrize("name", ["../r", "a/b/c", ".data", "..", "a/.b", "a/..", "a/", "/a"])
def test_run_name_is_the_name_of_a_folder(bench: Bench, name: str) -> None:
    (message,) = bench.refuse("fit", f"--run={name}")
    assert message.startswith(f"--run {name}: not the name of a folder")
    assert "give NAME or GROUP/NAME" in message
    assert not Path("checkpoints").exists()


def test_a_run_neither_lies_in_another_nor_holds_others(finished: Bench) -> None:
    (message,) = finished.refuse("fit", "--run=r/inner")
    assert message.startswith("--run r/inner: checkpoints/r is the folder of a run itself; give")
    Path("checkpoints/group").mkdir()
    Path("checkpoints/r").rename("checkpoints/group/r")
    (message,) = finished.refuse("fit", "--run=group")
    assert message.startswith("--run group: checkpoints/group holds other runs (r); give")


def test_unfinished_run_is_not_started_afresh(finished: Bench) -> None:
    for path in Path("checkpoints/r/model").iterdir():
        path.unlink()
    Path("checkpoints/r/model").rmdir()
    (message,) = finished.refuse("fit")
    assert message.startswith("--run r: ")
    assert "holds an unfinished run" in message
    assert "--ckpt_path last" in message


def test_interrupted_extension_is_neither_started_afresh_nor_scored_as_finished(finished: Bench) -> None:
    path = Path("checkpoints/r/model/ledger.json")
    entries = json.loads(path.read_text())
    entries[-1]["steps"] = 2  # as a run leaves it that was finished at step 2 and killed when it was resumed
    path.write_text(json.dumps(entries))
    (message,) = finished.refuse("fit")
    assert "holds an unfinished run; resume it with --ckpt_path last" in message
    (message,) = finished.refuse("validate")
    assert "score the checkpoint with --ckpt_path last" in message


def test_interruption_before_the_first_step_leaves_the_finished_run_alone(
    finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = files()
    monkeypatch.setattr("lightgpt2.tasks.base.Task.evaluate", interrupted)
    code, _, err = finished.run("fit")
    assert (code, err.splitlines()[-1]) == (130, "lightgpt2: interrupted between steps; what was saved is untouched")
    assert before.items() <= files().items()


def test_run_of_another_process_is_not_touched(bench: Bench) -> None:
    Path("checkpoints/r").mkdir(parents=True)
    other = os.open("checkpoints/r", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    (message,) = bench.refuse("fit", touches=True)
    assert "another process is at work in checkpoints/r" in message
    os.close(other)


def test_predictions_do_not_keep_a_run_from_being_fitted(bench: Bench) -> None:
    Path("checkpoints/r").mkdir(parents=True)
    Path("checkpoints/r/predictions.jsonl").write_text("{}\n")
    assert "ok" in bench.succeed("check").splitlines()


def test_scoring_does_not_train_what_is_missing(bench: Bench) -> None:
    bench.configure({"model.teacher": "checkpoints/t/model", "needs": {"checkpoints/t/model": "t.yaml"}})
    (message,) = bench.refuse("validate")
    assert message == "needs: not there yet: checkpoints/t/model (fit makes it with t.yaml)"


def test_printed_configuration_can_be_checked(bench: Bench) -> None:
    Path("config.yaml").write_text(bench.succeed("fit", "--print_config"))
    assert "ok" in bench.succeed("check").splitlines()


def test_failed_repetition_keeps_the_finished_run(finished: Bench) -> None:
    Path("corpus").rename("moved")
    Path("corpus").mkdir()
    Path("corpus/a.txt").write_text("")
    (message,) = finished.refuse("fit")
    assert message.startswith("data.source: corpus holds no text")
    assert yaml.safe_load(Path("checkpoints/r/config.yaml").read_text())["trainer"]["max_steps"] == 3
