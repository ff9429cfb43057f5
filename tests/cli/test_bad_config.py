"""A mistake in a configuration: one message that names the key and the fix, exit code 2, and nothing touched."""

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.mistakes import Bench, files

STRATEGY = "lightning.pytorch.strategies."
FSDP2 = {"tensor_parallel_size": 1, "save_distributed_checkpoint": False}
OTHERS = {"model.layers": None, "model.student": {"n_layer": 2}}


def strategy(**changes: Any) -> dict[str, Any]:
    chosen = {"class_path": f"{STRATEGY}ModelParallelStrategy", "init_args": {**FSDP2, **changes}}
    return {"trainer.strategy": chosen}


def callback(path: str, **settings: Any) -> dict[str, Any]:
    return {"trainer.callbacks": [{"class_path": path, "init_args": settings}]}


# What a person may write, and words of the one message that it must give. The first begins the message.
MISTAKES: list[tuple[dict[str, Any], str, *tuple[str, ...]]] = [
    ({"model.loss": {"ce": 0, "kd": 0, "hidden": 0}}, "model.loss: every weight is 0", "above 0"),
    ({"model": {"class_path": "lightgpt2.data.TaskData"}}, "model: ", "TaskData does not correspond to a subclass of Method"),
    (callback("lightgpt2.callbacks.artefact.No"), "trainer.callbacks.No: there is no lightgpt2.callbacks.artefact.No"),
    (
        callback("lightning.pytorch.callbacks.Timer", durations=1),
        "trainer.callbacks.Timer.durations: no such key; did you mean duration?",
    ),
    ({"trainer.strategy": {"a": 1}}, "trainer.strategy: "),
    ({"data.separator": "("}, "data.separator: '(' is not a regular expression", "correct it"),
    ({"data.sequence_length": 1}, "data.sequence_length: 1 leaves nothing", "at least 2"),
    ({"data.stride": 32}, "data.stride: 32 skips tokens", "windows of 32", "at most 31"),
    (
        {"data.valid_fraction": 0.6, "data.test_fraction": 0.4},
        "data.valid_fraction: with data.test_fraction it leaves no training data", "less than 1",
    ),
    (
        {"data.tokenizer": "teacher", "data.vocab_size": 300},
        "data.vocab_size: cannot be given together with data.tokenizer", "remove one",
    ),
    ({"data.sequence_length": 65}, "data.sequence_length: 65 is longer than the 64 positions of model.teacher", "at most"),
    ({"model.layers": [0, 4]}, "model.layers: layers [4]", "4 layers has layers 0 to 3"),
    ({"model.layers": []}, "model.layers: layers list is empty", "layers 0 to 3"),
    ({"model.layer_map": [0, 9]}, "model.layer_map: layers [9]", "4 layers has layers 0 to 3"),
    ({"model.layer_map": [0, 1, 2]}, "model.layer_map: it lists 3 layers", "the student has 2"),
    ({"model.student": "teacher"}, "model.layers: cannot be given together with model.student", "remove one"),
    (
        {**OTHERS, "model.student": {"n_layer": 2, "vocab_size": 400}},
        "model.student: its vocabulary has 400 tokens and the teacher's 300", "share a tokenizer",
    ),
    ({**OTHERS, "model.student": {"n_layr": 2}}, "model.student: a gpt2 configuration has no n_layr", "remove"),
    ({"trainer.max_steps": 0}, "trainer.max_steps: 0 trains nothing", "at least 1"),
    ({"trainer.limit_train_batches": 0}, "trainer.limit_train_batches: 0 trains nothing", "at least 1"),
    ({"trainer.max_steps": -1}, "trainer.max_steps: nothing ends the run", "trainer.max_epochs"),
    (
        {"trainer.check_val_every_n_epoch": 1, "trainer.val_check_interval": 5000},
        "trainer.val_check_interval: 5000 is more than the 97 batches of an epoch", "at most",
    ),
    ({"seed_everything": -1}, "seed_everything: ", "-1"),
    ({"trainer.limit_val_batches": 1}, "trainer.limit_val_batches: a part of a split has no score"),
    ({"trainer.limit_train_batches": 1}, "trainer.limit_train_batches: cuts optimizer steps apart"),
    ({"trainer.fast_dev_run": True}, "trainer.fast_dev_run: not supported", "lightgpt2 check"),
    ({"trainer.enable_checkpointing": False}, "trainer.enable_checkpointing: ", "remove it"),
    ({"model.task.prompt_tokens": 64}, "model.task.prompt_tokens: 64 leaves none of the model's 64 positions", "at most 63"),
    (strategy(data_parallel_size=3), "trainer.strategy.data_parallel_size: 3 with 1 processes", "give 1"),
    (strategy(tensor_parallel_size=2), "trainer.strategy.tensor_parallel_size: 2 is not supported", "give 1"),
    (
        {"trainer.strategy": {"class_path": f"{STRATEGY}FSDPStrategy"}},
        "trainer.strategy: FSDPStrategy is not supported", "ModelParallelStrategy",
    ),
    ({"trainer.devices": 0}, "trainer: ", "devices=0"),
    ({"trainer.accelerator": "tpu"}, "trainer: ", "torch_xla"),
    (
        callback("lightgpt2.callbacks.InferenceBenchmark", prompt_tokens=32, new_tokens=[4, 256], forward_tokens=16),
        "trainer.callbacks.InferenceBenchmark.new_tokens: must be within the model's 64 positions after a prompt of 32, got",
        "256; give at most 32",
    ),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=[" ".join(first) for first, *_ in MISTAKES])
def test_one_mistake_gives_one_message(bench: Bench, mistake: tuple[Any, ...]) -> None:
    changes, *words = mistake
    bench.configure(changes)
    (message,) = bench.refuse("fit")
    assert message.startswith(words[0])
    assert all(word in message for word in words), message
    assert len(message) < 300, "a message for people is no dump"


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


def test_generating_is_refused_where_each_process_holds_a_part_of_the_model(bench: Bench) -> None:
    bench.configure({**strategy(), "model.task.predict": "continuations"})
    (message,) = bench.refuse("predict")
    assert message == "trainer.strategy: continuations differ in length between processes; use auto, or ddp"


def test_valid_configurations_are_not_refused(bench: Bench) -> None:
    for changes in ({}, {"seed_everything": True}):  # a seed that Lightning chooses
        bench.configure(changes)
        assert "ok" in bench.succeed("check").splitlines()
    assert files() == {}, "check writes nothing"
    Path("config.yaml").write_text(bench.succeed("fit", "--print_config"))
    Path("checkpoints/r").mkdir(parents=True)
    Path("checkpoints/r/predictions.jsonl").write_text("{}\n")  # which do not keep a run from being fitted
    assert "ok" in bench.succeed("check").splitlines()


def test_nothing_that_is_needed_is_made_where_there_are_mistakes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightgpt2.cli.trainer.make_missing", lambda *_: pytest.fail("trained the teacher first"))
    needs = {"model.teacher": "checkpoints/t/model", "needs": {"checkpoints/t/model": "t.yaml"}}
    bench.configure({"trainer.max_steps": 0, **needs})
    (message,) = bench.refuse("fit")
    assert message.startswith("trainer.max_steps: 0 trains nothing")
    bench.configure(needs)
    for verb in ("validate", "check"):
        (message,) = bench.refuse(verb)
        assert message == "needs: not there yet: checkpoints/t/model (fit makes it with t.yaml)"


# -- the run's folder ------------------------------------------------------------------------------------------------------


def refused(bench: Bench, verb: str, *args: str, touches: bool = False) -> str:
    (message,) = bench.refuse(verb, *args, touches=touches)
    return message


def test_folder_of_another_run_is_neither_touched_nor_scored_as_this(finished: Bench) -> None:
    finished.configure({"model.layers": 3})
    message = refused(finished, "fit")
    assert message.startswith(
        "--run r: checkpoints/r belongs to another run (model.layers: 2 there, 3 here); give this run a name"
    )
    assert "--run NAME" in message
    message = refused(finished, "validate")
    assert message.startswith(
        "--run r: the model in checkpoints/r was made with other settings (model.layers: 2 there, 3 here)"
    )
    assert "--ckpt_path checkpoints/r/model" in message
    assert "perplexity" in finished.succeed("validate", "--ckpt_path=checkpoints/r/model")


def test_unfinished_run_is_neither_started_afresh_nor_scored_as_finished(finished: Bench) -> None:
    path = Path("checkpoints/r/model/ledger.json")
    entries = json.loads(path.read_text())
    entries[-1]["steps"] = 2  # as a run leaves it that was finished at step 2 and killed when it was resumed
    path.write_text(json.dumps(entries))
    unfinished = "--run r: checkpoints/r holds an unfinished run; resume it with --ckpt_path last"
    assert refused(finished, "fit").startswith(unfinished)
    assert "score the checkpoint with --ckpt_path last" in refused(finished, "validate")
    shutil.rmtree("checkpoints/r/model")
    assert refused(finished, "fit").startswith(unfinished)


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
    assert "another process is at work in checkpoints/r" in refused(bench, "fit", touches=True)
    os.close(other)


def test_failed_repetition_keeps_the_finished_run(finished: Bench) -> None:
    Path("corpus").rename("moved")
    Path("corpus").mkdir()
    Path("corpus/a.txt").write_text("")
    assert refused(finished, "fit").startswith("data.source: corpus holds no text")
    assert yaml.safe_load(Path("checkpoints/r/config.yaml").read_text())["trainer"]["max_steps"] == 3
