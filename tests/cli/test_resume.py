"""A run that was killed and resumed is the run that was not."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.cli import logged, run_cli, succeed, write_config
from tests.support.models import SHAPES, write_corpus, write_model

pytestmark = pytest.mark.slow

# What depends on the clock or the process is no part of the promise.
_CLOCK = ("train/tokens_per_s", "train/memory_mb")


def config(method: str, folder: Path, **trainer: Any) -> dict[str, Any]:
    init: dict[str, Any] = {"optimizer": {"lr": 3.0e-3, "warmup_steps": 3}, "task": {
        "class_path": "lightgpt2.tasks.language_modeling.LanguageModeling", "init_args": {"samples": 1}
    }}  # fmt: skip
    data: dict[str, Any] = {"source": str(folder / "corpus"), "sequence_length": 32, "batch_size": 4, "vocab_size": 300}
    if method == "FineTune":
        init["model"] = {"model_type": "gpt2", **SHAPES["gpt2"]}
    elif method == "MovementPruning":
        del data["vocab_size"]
        schedule = {"attention": 0.4, "ffn": 0.6, "warmup": 0.2, "cooldown": 0.3}
        init |= {"model": str(folder / "teacher"), "teacher": str(folder / "teacher"), "pruning": schedule}
    elif method in ("LoRA", "QLoRA"):
        del data["vocab_size"]
        init |= {"model": str(folder / "teacher"), "lora": {"dropout": 0.1}}
    elif method == "QAT":
        del data["vocab_size"]
        integers = {"bits": 4, "activations": True, "embeddings": True}
        init |= {
            "model": str(folder / "teacher"),
            "teacher": str(folder / "teacher"),
            "quantization": integers,
            "delay": 0.4,
        }
    else:
        del data["vocab_size"]
        # narrower than the teacher, so that the trained projections are in the checkpoint too
        init |= {"teacher": str(folder / "teacher"), "student": {"n_layer": 2, "n_embd": 16}}
    return {
        "seed_everything": 7,
        "model": {"class_path": f"lightgpt2.methods.{method}", "init_args": init},
        "data": {"class_path": "lightgpt2.data.LanguageModelingData", "init_args": data},
        "checkpoint": {"every_n_steps": 4},
        "trainer": {
            "accelerator": "cpu", "devices": 1, "check_val_every_n_epoch": None, "val_check_interval": 12,
            "gradient_clip_val": 1.0, **trainer,
        },
    }  # fmt: skip


def fit_killed(folder: Path, name: str, kills: list[int]) -> None:
    """Runs `fit`, killed after so many micro-batches of each process, then resumed to its end."""
    for i, batch in enumerate(kills):
        killer = [
            "--trainer.callbacks+=tests.support.kill.KillAt", f"--trainer.callbacks.batch={batch}"
        ]  # fmt: skip
        resume = ["--ckpt_path", "last"] if i else []
        done = run_cli(folder, "fit", "--config", "config.yaml", "--run", name, *killer, *resume)
        assert done.returncode != 0, "the run ended before it was killed"
        assert "Traceback" not in done.stderr, done.stderr
    succeed(folder, "fit", "--config", "config.yaml", "--run", name, "--ckpt_path", "last")


def assert_same_run(folder: Path, first: str, second: str) -> None:
    assert_same_weights(folder, first, second)
    states = [torch.load(folder / "checkpoints" / name / "last.ckpt", weights_only=True) for name in (first, second)]
    torch.testing.assert_close(states[0]["state_dict"], states[1]["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(states[0]["optimizer_states"], states[1]["optimizer_states"], rtol=0, atol=0)
    assert states[0]["rng"] == states[1]["rng"]
    assert states[0]["global_step"] == states[1]["global_step"]
    curves = [logged(folder, name) for name in (first, second)]
    assert curves[0].keys() == curves[1].keys()
    for tag in curves[0].keys() - set(_CLOCK):
        assert curves[0][tag] == curves[1][tag], tag


def random_kills(count: int, total: int, every: int) -> list[int]:
    """How many micro-batches each process does before it is killed: at random, all before the end of the run.

    Args:
        count: Number of kills.
        total: Micro-batches of the run.
        every: Micro-batches between two checkpoints.
    """
    draw, position, kills = random.SystemRandom(), 0, []
    for left in range(count, 0, -1):
        room = total - 1 - position - every * (left - 1)
        kills.append(draw.randint(1, min(room, 2 * total // count)))
        position += kills[-1] // every * every
    print("kills:", kills)  # pytest shows it where the test fails
    return kills


def kills_in(phases: list[tuple[int, int]], every: int) -> list[int]:
    """As `random_kills`: one kill in each range of micro-batches of the run, counted from its beginning."""
    position, kills = 0, []
    for first, last in phases:
        at = random.SystemRandom().randint(first, last)
        kills.append(at - position)
        position = at // every * every
    print("kills:", kills)
    return kills


# One epoch is 11 optimizer steps of 2 micro-batches of 4 windows, and a checkpoint comes every 4: kills fall before the first
# one and after it, inside an accumulation, and in later epochs.
@pytest.mark.parametrize("method", ["FineTune", "Distill", "QLoRA", "QAT"])
def test_killed_at_random_steps_and_resumed_equals_uninterrupted(tmp_path: Path, method: str) -> None:
    write_corpus(tmp_path / "corpus", documents=24)
    if method != "FineTune":
        write_model(tmp_path / "teacher", n_embd=64 if method == "QLoRA" else 32)
    write_config(tmp_path / "config.yaml", config(method, tmp_path, max_steps=34, accumulate_grad_batches=2))
    succeed(tmp_path, "fit", "--config", "config.yaml", "--run", "whole", fresh=True)
    fit_killed(tmp_path, "killed", random_kills(3 if method == "QLoRA" else 5, total=68, every=8))
    assert_same_run(tmp_path, "whole", "killed")


def test_scheduled_pruning_goes_on_exactly(tmp_path: Path) -> None:
    """Adapters pruned along the schedule: killed before it begins, on its way, and in its hold phase."""
    write_corpus(tmp_path / "corpus", documents=24)
    write_model(tmp_path / "teacher")
    settings = config("LoRA", tmp_path, max_steps=34, accumulate_grad_batches=2)
    schedule = {"targets": "lora", "amount": 0.8, "schedule": "cubic", "warmup": 0.2, "hold": 0.3, "every": 3}
    settings["trainer"]["callbacks"] = [{"class_path": "lightgpt2.callbacks.GlobalL1Pruning", "init_args": schedule}]
    write_config(tmp_path / "config.yaml", settings)
    succeed(tmp_path, "fit", "--config", "config.yaml", "--run", "whole", fresh=True)
    fit_killed(tmp_path, "killed", kills_in([(1, 13), (18, 44), (50, 66)], every=8))  # steps 7 to 24 are on the way
    assert_same_run(tmp_path, "whole", "killed")
    ledger = json.loads((tmp_path / "checkpoints/killed/model/ledger.json").read_text())
    assert ledger[-1]["operations"][1]["achieved"] == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("pruning", ["structured", "threshold"])
def test_movement_pruning_goes_on_exactly(tmp_path: Path, pruning: str) -> None:
    """Weights, scores and decisions: killed before the schedule begins, on its way, and after it."""
    write_corpus(tmp_path / "corpus", documents=24)
    write_model(tmp_path / "teacher")
    settings = config("MovementPruning", tmp_path, max_steps=34, accumulate_grad_batches=2)
    chosen: dict[str, Any] = settings["model"]["init_args"]["pruning"]
    if pruning == "threshold":
        del chosen["attention"], chosen["ffn"]
        chosen |= {"threshold": {"at": 0.49, "penalty": 300.0}, "granularity": "weight"}
    write_config(tmp_path / "config.yaml", settings)
    succeed(tmp_path, "fit", "--config", "config.yaml", "--run", "whole")
    fit_killed(tmp_path, "killed", kills_in([(1, 13), (18, 44), (50, 66)], every=8))  # steps 7 to 24 are on the way
    assert_same_run(tmp_path, "whole", "killed")


def assert_same_weights(folder: Path, first: str, second: str) -> None:
    weights = [(folder / "checkpoints" / name / "model" / "model.safetensors").read_bytes() for name in (first, second)]
    assert weights[0] == weights[1]


def test_longer_run_goes_on_in_the_epoch_where_a_shorter_one_ended(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", documents=24)
    settings = config("FineTune", tmp_path, max_epochs=2, accumulate_grad_batches=2)
    settings["model"]["init_args"]["optimizer"] |= {"decay": "constant", "warmup_steps": 0}
    write_config(tmp_path / "config.yaml", settings)
    succeed(tmp_path, "fit", "--config", "config.yaml", "--run", "whole", fresh=True)
    for steps in ("5", "11"):  # inside the first epoch, then at its very end
        more = ["--trainer.max_steps", steps, *(["--ckpt_path", "last"] if steps != "5" else [])]
        succeed(tmp_path, "fit", "--config", "config.yaml", "--run", "longer", *more)
    succeed(tmp_path, "fit", "--config", "config.yaml", "--run", "longer", "--ckpt_path", "last")
    assert_same_weights(tmp_path, "whole", "longer")


def test_checkpoint_inside_an_accumulation_goes_on_exactly(tmp_path: Path) -> None:
    """The best one, written after a validation between two micro-batches of one step, when there is no other yet."""
    write_corpus(tmp_path / "corpus", documents=24)
    settings = config("FineTune", tmp_path, max_steps=14, accumulate_grad_batches=2)
    settings["checkpoint"]["every_n_steps"] = 100
    settings["trainer"]["val_check_interval"] = 7
    write_config(tmp_path / "config.yaml", settings)
    succeed(tmp_path, "fit", "--config", "config.yaml", "--run", "whole", fresh=True)
    fit_killed(tmp_path, "killed", [11])
    assert_same_weights(tmp_path, "whole", "killed")


def test_resuming_takes_the_command_line_s_optimizer_and_refuses_other_batches(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", documents=24)
    settings = config("FineTune", tmp_path, max_steps=4)
    settings["model"]["init_args"]["optimizer"] |= {"decay": "constant", "warmup_steps": 0}
    write_config(tmp_path / "config.yaml", settings)
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
    write_corpus(tmp_path / "corpus", documents=24)
    write_model(tmp_path / "teacher", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    settings = config("Distill", tmp_path, max_steps=24, accumulate_grad_batches=2)
    settings["data"]["init_args"]["mode"] = "padded"  # windows of different lengths: the mean is over all their tokens
    write_config(tmp_path / "one.yaml", settings)
    settings["data"]["init_args"]["batch_size"] = 2
    settings["trainer"] |= {"devices": 2, "strategy": strategy}
    write_config(tmp_path / "config.yaml", settings)
    succeed(tmp_path, "fit", "--config", "one.yaml", "--run", "one", fresh=True)
    succeed(tmp_path, "fit", "--config", "config.yaml", "--run", "two")
    ledger = json.loads((tmp_path / "checkpoints/two/model/ledger.json").read_text())
    assert ledger[-1]["method"] == "Distill"
    one, two = logged(tmp_path, "one"), logged(tmp_path, "two")
    for tag in one.keys() - {*_CLOCK}:
        assert list(one[tag]) == list(two[tag])
        near = 1e-3 if tag == "train/grad_norm" else 2e-5
        assert list(two[tag].values()) == pytest.approx(list(one[tag].values()), rel=near), tag
    fit_killed(tmp_path, "killed", random_kills(2, total=48, every=8))
    assert_same_run(tmp_path, "two", "killed")
