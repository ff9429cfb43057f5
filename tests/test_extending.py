"""The module and the configurations of docs/extending.md, taken from the page, go through the whole chain."""

import json
import re
from pathlib import Path

import pytest
import torch

from lightgpt2.cli import verbs
from tests.support.cli import ROOT, succeed
from tests.support.models import write_model

PAGE = (ROOT / "docs/extending.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's module, its configurations, and two models."""
    folder = tmp_path_factory.mktemp("extending")
    (folder / "mine.py").write_text("\n\n".join(blocks("python")))
    for name, text in zip(("all", "method", "teacher"), blocks("yaml"), strict=True):
        (folder / f"{name}.yaml").write_text(text)
    write_model(folder / "first", "gpt2", seed=1)
    write_model(folder / "second", "gpt2", seed=2)
    return folder


def fit(folder: Path, config: str, *options: str) -> str:
    return succeed(folder, "fit", "--config", f"{config}.yaml", *options, PYTHONPATH=f"{ROOT}:{folder}")


@pytest.mark.slow
def test_all_parts_in_one_run_resumed_and_in_the_ledger_and_report(folder: Path) -> None:
    checked = succeed(folder, "check", "--config", "all.yaml", PYTHONPATH=f"{ROOT}:{folder}")
    assert "ok" in checked
    constant = ("--model.optimizer.decay", "constant")  # which does not depend on the number of steps
    assert "halved" in fit(folder, "all", "--run", "whole", *constant)
    ledger = json.loads((folder / "checkpoints/whole/model/ledger.json").read_text())[-1]
    assert ledger["operations"][0]["op"] == "bitfit"
    assert ledger["operations"][0]["kind"]["description"].endswith("biases trained")
    assert ledger["largest_weight"] > 0
    copy = json.loads((folder / "checkpoints/whole/model-halved/ledger.json").read_text())[-1]
    assert copy["operations"][0]["op"] == "halved"
    assert copy["quality"]["after"]["perplexity"]["value"] == pytest.approx(
        ledger["quality"]["after"]["perplexity"]["value"], rel=0.02
    )
    fit(folder, "all", "--run", "parts", "--trainer.max_steps", "6", *constant)
    fit(folder, "all", "--run", "parts", "--ckpt_path", "last", *constant)
    whole, parts = (
        torch.load(folder / f"checkpoints/{run}/last.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(".bias" in name for name in whole if name.startswith("model."))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    succeed(folder, "report", "checkpoints/whole", "--output", "report")  # without the module
    text = (folder / "report/report.md").read_text()
    assert "biases trained" in text
    assert "stored in bfloat16" in text


@pytest.mark.slow
@pytest.mark.parametrize("config", ["method", "teacher"])
def test_an_objective_and_a_teacher_of_ones_own_in_a_pipeline(folder: Path, config: str) -> None:
    (folder / "chain.yaml").write_text(f"stages:\n  - {{name: {config}, config: {config}.yaml, from: null}}\n")
    environment = {"PYTHONPATH": f"{ROOT}:{folder}"}
    succeed(folder, "pipeline", "chain.yaml", "--run", f"chain-{config}", **environment)
    quality = json.loads((folder / f"checkpoints/chain-{config}/{config}/model/ledger.json").read_text())[-1]["quality"]
    assert quality["after"]["perplexity"]["value"] < quality["before"]["perplexity"]["value"]
    again = succeed(folder, "pipeline", "chain.yaml", "--run", f"chain-{config}", **environment)
    assert "skip" in again


def test_a_mistake_in_a_setting_of_ones_own_is_one_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    wrong = (
        Path("all.yaml").read_text().replace("mine.LongestWeight", "mine.LongestWeight\n      init_args: {digits: 0}")
    )
    Path("wrong.yaml").write_text(wrong)
    with pytest.raises(SystemExit, match="2"):
        verbs.run(["check", "--config", "wrong.yaml", "--run", "wrong"])
    assert "trainer.callbacks.LongestWeight.digits: must be at least 1, got 0; give more" in capsys.readouterr().err
