"""Pipelines of the real command, end to end."""

import fcntl
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from lightgpt2.models.files import sha256_file
from tests.support.cli import logged, run_cli, succeed, write_config
from tests.support.kill import kill_with_children
from tests.support.mistakes import spoilt
from tests.support.models import SHAPES, write_corpus
from tests.support.pipelines import artefacts, state, wait_for

pytestmark = pytest.mark.slow


def real_recipe(folder: Path, *overrides: dict[str, Any]) -> None:
    """Two stages on a small corpus: a model from scratch, and half of its layers distilled."""
    model = {
        "class_path": "lightgpt2.methods.FineTune",
        "init_args": {"model": {"model_type": "gpt2", **SHAPES["gpt2"]}},
    }
    trainer = {"trainer.max_steps": 30, "trainer.val_check_interval": 15, "checkpoint.every_n_steps": 5}
    write_config(folder / "maker.yaml", spoilt({"model": model, **trainer}))
    write_config(folder / "student.yaml", spoilt({"model.teacher": "nowhere", **trainer}))
    first, second = overrides or ({}, {})
    stages = [
        {"name": "baseline", "config": "maker.yaml", "overrides": {"data.vocab_size": 300, **first}},
        {"name": "distilled", "config": "student.yaml", "overrides": {"trainer.max_steps": 20, **second}},
    ]
    write_config(folder / "chain.yaml", {"stages": stages})
    write_corpus(folder / "corpus", documents=24)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the real recipe was run."""
    folder = tmp_path_factory.mktemp("real")
    real_recipe(folder)
    succeed(folder, "pipeline", "chain.yaml")
    return folder


def wait_until_unlocked(folder: Path) -> None:
    """Waits for the stage of a killed pipeline, which dies in its own time."""
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    os.close(held)


def test_real_stages_are_runs_one_after_the_other(real: Path) -> None:
    ledger = json.loads((real / "checkpoints/chain/distilled/model/ledger.json").read_text())
    assert [(e["stage"], e["method"], e["steps"]) for e in ledger] == [
        ("chain/baseline", "FineTune", 30), ("chain/distilled", "Distill", 20),
    ]  # fmt: skip
    first = sha256_file(real / "checkpoints/chain/baseline/model/model.safetensors")
    assert ledger[1]["parent"] == {"source": "checkpoints/chain/baseline/model", "sha256": first}
    assert ledger[1]["teacher"] == ledger[1]["parent"]
    assert {path.name for path in (real / "tb-logs").iterdir()} == {"chain"}
    assert list(logged(real, "chain/distilled")["train/loss"]) == list(range(1, 21))
    before = {path: path.stat().st_mtime_ns for path in real.rglob("*")}
    assert succeed(real, "pipeline", "chain.yaml").count("skipped") == 2
    assert {path: path.stat().st_mtime_ns for path in real.rglob("*")} == before, "nothing was started or written"


def test_real_pipeline_killed_and_run_again_equals_uninterrupted(real: Path, tmp_path: Path) -> None:
    real_recipe(tmp_path)
    chance = random.SystemRandom()
    for stage in ("baseline", "distilled"):
        begun = tmp_path / "checkpoints/chain" / stage / "config.yaml"

        def kill(pid: int, begun: Path = begun) -> None:
            wait_for(lambda: begun.exists() or not Path(f"/proc/{pid}").exists(), 120)
            time.sleep(chance.uniform(0, 0.5))  # a stage may take less than two seconds
            kill_with_children(pid)

        run_cli(tmp_path, "pipeline", "chain.yaml", during=kill)
        wait_until_unlocked(tmp_path / "checkpoints/chain")
        assert state(tmp_path)[stage]["state"] == "running"
    succeed(tmp_path, "pipeline", "chain.yaml")
    assert artefacts(tmp_path) == artefacts(real)


def test_mistakes_in_all_stages_are_named_before_the_first_runs(tmp_path: Path) -> None:
    real_recipe(tmp_path, {"model.layer": 3}, {"trainer.max_steps": 0, "data.stride": 32})
    for options in ((), ("--dry-run",)):
        done = run_cli(tmp_path, "pipeline", "chain.yaml", *options)
        assert done.returncode == 2
        assert [line.split(": ")[2] for line in done.stderr.splitlines()] == [
            "stages.baseline.model.layer", "stages.distilled.trainer.max_steps", "stages.distilled.data.stride",
        ]  # fmt: skip
        assert not list((tmp_path / "checkpoints/chain").glob("*/"))
