"""A task from outside the package (tests.support.parity) goes through everything without a change in it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.cli import succeed

_MODEL = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 16}


def config(class_path: str, **init: Any) -> dict[str, Any]:
    task = {"class_path": "tests.support.parity.Parity"}
    return {
        "seed_everything": 1,
        "model": {"class_path": f"lightgpt2.methods.{class_path}", "init_args": {
            "task": task, "optimizer": {"lr": 5.0e-3, "weight_decay": 0.0}, **init,
        }},
        "data": {"class_path": "tests.support.parity.ParityData", "init_args": {"length": 4, "batch_size": 16}},
        "checkpoint": {"every_n_steps": 5},
        "trainer": {"max_steps": 40, "val_check_interval": 20, "check_val_every_n_epoch": None, "accelerator": "cpu"},
    }  # fmt: skip


def entry(folder: Path, run: str) -> dict[str, Any]:
    last: dict[str, Any] = json.loads((folder / f"checkpoints/{run}/model/ledger.json").read_text())[-1]
    return last


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of four stages on the parity task."""
    folder = tmp_path_factory.mktemp("parity")
    stages = {
        "teacher": config("FineTune", model=_MODEL),
        "student": config("Distill", teacher="x", layers=[0, 1], loss={"hidden": 0.0}),
        "pruned": config("MovementPruning", model="x", pruning={"attention": 0.5, "ffn": 0.5}),
        "int8": config("QAT", model="x"),
    }
    for name, settings in stages.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    listed = [{"name": name, "config": f"{name}.yaml"} for name in stages]
    (folder / "chain.yaml").write_text(yaml.safe_dump({"stages": listed}))
    (folder / "printed").write_text(succeed(folder, "pipeline", "chain.yaml"))
    return folder


@pytest.mark.slow
def test_the_chain_learns_and_its_quality_describes_itself(folder: Path) -> None:
    quality = entry(folder, "chain/teacher")["quality"]
    assert quality["after"]["primary"] == "accuracy"
    assert quality["after"]["accuracy"]["better"] == "higher"
    assert quality["after"]["accuracy"]["value"] > quality["before"]["accuracy"]["value"]
    assert quality["after"]["examples"] == 48
    assert set(entry(folder, "chain/int8")["quality"]) == {"source", "before", "after"}
    assert "accuracy" in (folder / "printed").read_text()


@pytest.mark.slow
def test_resumed_is_bitwise_the_uninterrupted_run(folder: Path) -> None:
    for run, steps in (("whole", 20), ("parts", 10), ("parts", 20)):
        resume = ["--ckpt_path", "last"] if (folder / f"checkpoints/{run}").exists() else []
        options = ["--run", run, "--trainer.max_steps", str(steps), "--model.optimizer.decay", "constant", *resume]
        succeed(folder, "fit", "--config", "teacher.yaml", *options)
    whole, parts = (
        torch.load(folder / f"checkpoints/{run}/last.ckpt", weights_only=True) for run in ("whole", "parts")
    )
    assert all(torch.equal(value, parts["state_dict"][name]) for name, value in whole["state_dict"].items())


@pytest.mark.slow
def test_scores_predictions_and_the_report_know_it(folder: Path) -> None:
    printed = succeed(folder, "validate", "--config", "teacher.yaml", "--run", "chain/teacher")
    value = entry(folder, "chain/teacher")["quality"]["after"]["accuracy"]["value"]
    assert f"valid: accuracy {value:.4f} (95 % interval" in printed
    assert "48 examples" in printed
    succeed(folder, "predict", "--config", "teacher.yaml", "--run", "chain/teacher")
    lines = (folder / "checkpoints/chain/teacher/predictions.jsonl").read_text().splitlines()
    assert {"example", "loss", "items", "right"} == set(json.loads(lines[0]))
    succeed(folder, "report", "checkpoints/chain", "--output", "page")
    text = (folder / "page/report.md").read_text()
    assert "accuracy" in text
    assert "perplexity" not in text
