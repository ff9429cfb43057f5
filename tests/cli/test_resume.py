"""A run of the command that was killed and resumed is the run that was not.

`tests/contracts/test_processes.py` says so of every adaptation.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.cli import logged, run_cli, succeed, write_config
from tests.support.mistakes import spoilt
from tests.support.models import SHAPES, write_classifier, write_corpus, write_model

pytestmark = pytest.mark.slow

# What depends on the clock or the process is no part of the promise.
_CLOCK = ("train/tokens_per_s", "train/texts_per_s", "train/memory_mb")
TEACHER = {"model": "teacher", "teacher": "teacher"}
SCHEDULE = {"targets": "lora", "amount": 0.8, "schedule": "cubic", "warmup": 0.2, "hold": 0.3, "every": 3}
SCHEDULED = {"class_path": "lightgpt2.callbacks.GlobalL1Pruning", "init_args": SCHEDULE}
# The method, and its settings.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "FineTune": ("FineTune", {"model": {"model_type": "gpt2", **SHAPES["gpt2"]}}),
    # narrower than the teacher, so that the trained projections are in the checkpoint too; from two teachers
    "Distill": (
        "Distill",
        {"teacher": "teacher", "student": {"n_layer": 2, "n_embd": 16}, "teachers": [{"model": "second"}]},
    ),
    "scheduled pruning": ("LoRA", {**TEACHER, "lora": {"dropout": 0.1}}),
}
# Of classifiers: an objective of several terms, a start that reads training texts, and frozen weights that are not in FP32.
CLASSIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Distill": ("Distill", {"teacher": "teacher", "student": {"num_hidden_layers": 2, "hidden_size": 32}}),
    "Trim": ("Trim", {"model": "teacher", "width": 32, "vocabulary": "corpus", "importance": "activation", "loss": {}}),
    "QLoRA": ("QLoRA", {"model": "teacher"}),
}
LABELLED = {
    "class_path": "lightgpt2.data.ClassificationData",
    "init_args": {"source": "requirements:200", "max_length": 32, "batch_size": 8, "class_weights": "balanced"},
}


def write_classifier_run(folder: Path, name: str, **trainer: Any) -> None:
    """Writes a classifier `teacher` and the `config.yaml` of one of `CLASSIFIERS`."""
    write_classifier(folder / "teacher", hidden_size=64, intermediate_size=128)
    method, settings = CLASSIFIERS[name]
    init = {
        "optimizer": {"lr": 3.0e-3, "warmup_steps": 3},
        "task": {"class_path": "lightgpt2.tasks.Classification"},
        **settings,
    }
    changes = {
        "model": {"class_path": f"lightgpt2.methods.{method}", "init_args": init}, "data": LABELLED,
        "checkpoint.every_n_steps": 4, "trainer.accumulate_grad_batches": 2,
        **{f"trainer.{key}": value for key, value in trainer.items()},
    }  # fmt: skip
    write_config(folder / "config.yaml", spoilt(changes))


def write_run(folder: Path, name: str, **trainer: Any) -> dict[str, Any]:
    """Writes a corpus, a teacher and `config.yaml`, whose content it returns."""
    method, settings = RUNS[name]
    write_corpus(folder / "corpus", documents=24)
    task = {"class_path": "lightgpt2.tasks.language_modeling.LanguageModeling", "init_args": {"samples": 1}}
    init = {"optimizer": {"lr": 3.0e-3, "warmup_steps": 3}, "task": task, **settings}
    changes = {
        "model": {"class_path": f"lightgpt2.methods.{method}", "init_args": init}, "checkpoint.every_n_steps": 4,
        "trainer.max_steps": None, "trainer.val_check_interval": 12, "trainer.gradient_clip_val": 1.0,
        "trainer.accumulate_grad_batches": 2, **{f"trainer.{key}": value for key, value in trainer.items()},
    }  # fmt: skip
    if method == "FineTune":
        changes["data.vocab_size"] = 300
    else:
        write_model(folder / "teacher")
        write_model(folder / "second", seed=1)
    config = spoilt(changes)
    write_config(folder / "config.yaml", config)
    return config


def fit(folder: Path, name: str, *options: str, **kwargs: Any) -> str:
    return succeed(folder, "fit", "--config", "config.yaml", "--run", name, *options, **kwargs)


def fit_killed(folder: Path, name: str, kills: list[int], **kwargs: Any) -> None:
    """Runs `fit`, killed after so many micro-batches of each process, then resumed to its end."""
    print("kills:", kills)  # pytest shows it where the test fails
    for i, batch in enumerate(kills):
        killer = ["--trainer.callbacks+=tests.support.kill.KillAt", f"--trainer.callbacks.batch={batch}"]
        resume = ["--ckpt_path", "last"] if i else []
        done = run_cli(folder, "fit", "--config", "config.yaml", "--run", name, *killer, *resume, **kwargs)
        assert done.returncode != 0, "the run ended before it was killed"
        assert "Traceback" not in done.stderr, done.stderr
    fit(folder, name, "--ckpt_path", "last", **kwargs)


def assert_same_weights(folder: Path, first: str, second: str) -> None:
    weights = [(folder / "checkpoints" / name / "model" / "model.safetensors").read_bytes() for name in (first, second)]
    assert weights[0] == weights[1]


def assert_same_run(folder: Path, first: str, second: str) -> None:
    assert_same_weights(folder, first, second)
    states = [torch.load(folder / "checkpoints" / name / "last.ckpt", weights_only=True) for name in (first, second)]
    for key in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=0)
    assert all(states[0][key] == states[1][key] for key in ("rng", "global_step"))
    curves = [logged(folder, name) for name in (first, second)]
    assert curves[0].keys() == curves[1].keys()
    for tag in curves[0].keys() - set(_CLOCK):
        assert curves[0][tag] == curves[1][tag], tag


def random_kills(count: int, total: int, every: int = 8) -> list[int]:
    """How many micro-batches each process does before it is killed: once in each part of a run of `total`.

    A checkpoint comes `every` so many. Of five kills the first is before a schedule begins, the last after its end.
    """
    position, kills = 0, []
    for part in range(count):
        at = random.SystemRandom().randint(1 + part * (total - 1) // count, (part + 1) * (total - 1) // count)
        kills.append(at - position)
        position = at // every * every
    return kills


# One epoch is 11 optimizer steps of 2 micro-batches of 4 windows, and a checkpoint comes every 4: kills fall before the first
# one and after it, inside an accumulation, and in later epochs.
@pytest.mark.parametrize("name", ["Distill", "scheduled pruning"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, name, max_steps=34, callbacks=[SCHEDULED] if name == "scheduled pruning" else [])
    fit(tmp_path, "whole")
    fit_killed(tmp_path, "killed", random_kills(3, total=68))
    assert_same_run(tmp_path, "whole", "killed")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_killed_and_resumed_classifier_equals_an_uninterrupted_one(tmp_path: Path, name: str) -> None:
    write_classifier_run(tmp_path, name, max_steps=20, val_check_interval=12)
    fit(tmp_path, "whole")
    fit_killed(tmp_path, "killed", random_kills(2, total=40))
    assert_same_run(tmp_path, "whole", "killed")


def test_longer_run_goes_on_in_the_epoch_where_a_shorter_one_ended(tmp_path: Path) -> None:
    config = write_run(tmp_path, "FineTune", max_epochs=2)
    config["model"]["init_args"]["optimizer"] |= {"decay": "constant", "warmup_steps": 0}
    write_config(tmp_path / "config.yaml", config)
    fit(tmp_path, "whole")
    for steps in ("5", "11"):  # inside the first epoch, then at its very end
        fit(tmp_path, "longer", "--trainer.max_steps", steps, *(["--ckpt_path", "last"] if steps != "5" else []))
    fit(tmp_path, "longer", "--ckpt_path", "last")
    assert_same_weights(tmp_path, "whole", "longer")


def test_checkpoint_inside_an_accumulation_goes_on_exactly(tmp_path: Path) -> None:
    """The best one, written after a validation between two micro-batches of one step, when there is no other yet."""
    config = write_run(tmp_path, "FineTune", max_steps=14, val_check_interval=7)
    write_config(tmp_path / "config.yaml", {**config, "checkpoint": {"every_n_steps": 100}})
    fit(tmp_path, "whole")
    fit_killed(tmp_path, "killed", [11])
    assert_same_weights(tmp_path, "whole", "killed")


def test_resuming_takes_the_command_line_s_optimizer_and_refuses_other_batches(tmp_path: Path) -> None:
    config = write_run(tmp_path, "FineTune", max_steps=4, accumulate_grad_batches=1)
    config["model"]["init_args"]["optimizer"] |= {"decay": "constant", "warmup_steps": 0}
    write_config(tmp_path / "config.yaml", config)
    arguments = ("fit", "--config", "config.yaml", "--ckpt_path", "last")
    succeed(tmp_path, *arguments)
    done = run_cli(tmp_path, *arguments, "--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "8")
    assert done.returncode == 2
    assert "trainer.accumulate_grad_batches: 1 there, 2 here" in done.stderr
    (tmp_path / "checkpoints/config/model/model.safetensors").rename(tmp_path / "old.safetensors")
    succeed(tmp_path, *arguments, "--model.optimizer.lr", "1e-5", "--trainer.max_steps", "6")
    rates = logged(tmp_path, "config")["train/lr"]
    assert list(rates.values()) == pytest.approx([3e-3] * 4 + [1e-5] * 2)


_FSDP2 = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
}


@pytest.mark.parametrize("strategy", ["ddp", _FSDP2], ids=["ddp", "fsdp2"])
def test_two_processes_equal_one_and_resume(tmp_path: Path, strategy: Any) -> None:
    """Two processes against one with the same global batch, and killed against uninterrupted."""
    config = write_run(tmp_path, "Distill", max_steps=12)
    write_model(tmp_path / "teacher", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    data = config["data"]["init_args"]
    data["mode"] = "padded"  # windows of different lengths: the mean is over all their tokens
    write_config(tmp_path / "config.yaml", config)
    fit(tmp_path, "one")
    data["batch_size"] = 2
    config["trainer"] |= {"devices": 2, "strategy": strategy}
    write_config(tmp_path / "config.yaml", config)
    fit(tmp_path, "two", processes=2 if strategy == _FSDP2 else 1)  # the one starts the other
    one, two = logged(tmp_path, "one"), logged(tmp_path, "two")
    for tag in one.keys() - {*_CLOCK}:
        assert list(one[tag]) == list(two[tag])
        near = 1e-3 if tag == "train/grad_norm" else 2e-5
        assert list(two[tag].values()) == pytest.approx(list(one[tag].values()), rel=near), tag
    fit_killed(tmp_path, "killed", random_kills(1, total=24), processes=2)
    assert_same_run(tmp_path, "two", "killed")
