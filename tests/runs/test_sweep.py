"""`lightgpt2 sweep` through the real command."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.methods.test_lora import config
from tests.support.cli import run_cli, succeed, write_config
from tests.support.models import write_corpus, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sweep")
    write_corpus(made / "corpus")
    write_model(made / "base")
    write_config(made / "lora.yaml", config("base"))
    return made


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.slow
def test_sparsity_is_swept_over_one_fit(folder: Path) -> None:
    command = ["sweep", "--config", "lora.yaml", "--values", "0.5", "0.8", "--budget", "50"]
    shown = succeed(folder, *command)
    run = folder / "checkpoints/lora"
    found = read(run / "sweep.json")
    assert found["values"] == [0.0, 0.5, 0.8]
    assert found["targets"] == "lora", "adapters, where there are any"
    assert found["largest_inside_budget"] == 0.8
    assert "the largest value inside it is 0.8" in shown
    assert (run / "sweep.svg").read_text().startswith("<svg")
    model = (run / "model/model.safetensors").stat().st_mtime_ns
    again = succeed(folder, *command, "--set", "trainer.max_steps=12")
    assert (run / "model/model.safetensors").stat().st_mtime_ns == model, "what is fitted is not fitted again"
    assert read(run / "sweep.json") == found, again


@pytest.mark.slow
def test_any_number_is_swept_by_a_fit_for_each_value(folder: Path) -> None:
    command = ["sweep", "--config", "lora.yaml", "--key", "model.lora.r", "--values", "4", "1"]
    shown = succeed(folder, *command, "--set", "trainer.max_steps=6")
    group = folder / "checkpoints/lora-model.lora.r"
    found = read(group / "sweep.json")
    assert found["values"] == [1.0, 4.0]
    for value, row in zip(("1", "4"), found["arms"]["fit"], strict=True):
        entry = read(group / value / "model/ledger.json")[-1]
        assert row == entry["quality"]["after"]
        assert entry["operations"][0]["r"] == int(value)
        assert entry["steps"] == 6
        assert f"{row['perplexity']:.2f}" in shown
    assert read(group / "1/model/ledger.json")[-1]["sweeps"]["model.lora.r"] == found
    again = succeed(folder, *command, "--set", "trainer.max_steps=6")
    assert again.count("skipped") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--values", "1.0"], "--values: 1 is no sparsity; give numbers in [0, 1)"),
        (
            ["--key", "model.lora.rank", "--values", "1"],
            "--key: the configuration has no model.lora.rank; give one that it sets",
        ),
        (["--key", "model.model", "--values", "1"], "--key: model.model is 'base' and no number; give one of"),
        (["--key", "seed_everything", "--values", "1"], "--key: the configuration has no seed_everything"),
        (["--key", "model.lora.r"], "--values: give the values of model.lora.r"),
        (["--set", "trainer.max_steps"], "--set: trainer.max_steps is no setting; give key=value"),
        (["--values", "many"], "--values"),
    ],
)
def test_wrong_sweeps_give_one_message(folder: Path, arguments: list[str], words: str) -> None:
    before = sorted(folder.rglob("*"))
    done = run_cli(folder, "sweep", "--config", "lora.yaml", *arguments)
    assert done.returncode == 2
    (message,) = done.stderr.splitlines()
    assert words in message
    assert sorted(folder.rglob("*")) == before
