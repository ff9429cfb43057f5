"""`lightgpt2 sweep`: over one fit or many; with the stand-in for `fit`, and through the real command."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightgpt2.models.quality import value_of
from lightgpt2.runs import sweep
from tests.support.cli import succeed, write_config
from tests.support.mistakes import spoilt
from tests.support.models import write_corpus, write_model
from tests.support.pipelines import Chain, starts


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(values: list[float], better: str = "lower") -> list[dict[str, Any]]:
    return [{"m": {"value": value, "better": better}, "primary": "m"} for value in values]


@pytest.mark.parametrize(
    ("figures", "better", "budget", "largest"),
    [
        ([10, 10.1, 10.2, 10.3], "lower", 2.0, 0.2),
        ([10, 12, 10.1, 10.1], "lower", 2.0, 0.0),  # not beyond a level that is outside
        ([10, 9, 10, 9], "lower", 0.0, 0.3),
        ([0.5, 0.495, 0.49, 0.48], "higher", 2.0, 0.2),
        ([-0.5, -0.505, -0.6, -0.4], "higher", 2.0, 0.1),
        ([float("inf"), 1, 1, 1], "lower", 0.0, 0.3),
        ([float("nan"), 1, 1, 1], "lower", 2.0, None),
    ],
)
def test_largest_value_inside_a_budget_in_per_cent(
    figures: list[float], better: str, budget: float, largest: float | None
) -> None:
    assert sweep.largest_inside([0.0, 0.1, 0.2, 0.3], rows(figures, better), budget) == largest


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No table and no picture, which are the report's."""
    monkeypatch.setattr(sweep, "sweep_table", lambda found: f"largest {found['largest_inside_budget']}")
    monkeypatch.setattr(sweep, "sweep_plot", lambda *_: None)


@pytest.mark.usefixtures("quiet")
def test_a_number_is_swept_by_a_fit_for_each_value(pipe: Chain) -> None:
    command = "sweep --config first.yaml --key trainer.max_steps --values 5 2 5 --set model.lr=2"
    code, out, err = pipe.call(command)
    assert (code, err) == (0, "")
    group = Path("checkpoints/first-trainer.max_steps")
    found = read(group / "sweep.json")
    assert (found["key"], found["values"], found["budget_percent"]) == ("trainer.max_steps", [2.0, 5.0], 2.0)
    assert found["largest_inside_budget"] == 5, "fewer errors than in the first row"
    assert "largest 5" in out
    for value, row in zip(("2", "5"), found["arms"]["fit"], strict=True):
        assert row == read(group / value / "model/ledger.json")[-1]["quality"]["after"]
        assert yaml.safe_load((group / f"{value}.yaml").read_text())["model"]["init_args"]["lr"] == 2
    assert read(group / "2/model/ledger.json")[-1]["sweeps"]["trainer.max_steps"] == found
    pipe.call(command)
    assert starts() == []


def test_sparsity_is_swept_over_one_fit(pipe: Chain) -> None:
    for start in ("new", "last"):
        code, _, err = pipe.call("sweep --config first.yaml --values 0.8 --run group/own --budget 3")
        assert (code, err, starts()) == (0, "", [f"group/own {start}"])
    (callback,) = yaml.safe_load(Path("checkpoints/group/own-sweep.yaml").read_text())["trainer"]["callbacks"]
    assert callback["class_path"] == "lightgpt2.callbacks.SparsitySweep"
    assert callback["init_args"] == {"targets": None, "budget": 3.0, "levels": [0.8]}
    code, _, err = pipe.call("sweep --config first.yaml --set trainer.fail_at=1")
    assert code == 2
    assert "the fit of first failed; see its message above" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--values 1.0", "--values: must be in [0, 1), got 1"),
        ("--key model.rank", "--key: the configuration has no model.rank; give one that it sets, such as model.lr"),
        ("--key data.source", "--key: must be that of a number, got data.source: 'text'; give one such as model.lr"),
        ("--key model.lr", "--values: give the values of model.lr"),
        ("--set trainer.max_steps", "--set: must be key=value, got trainer.max_steps"),
        ("--set run=x", "run: the pipeline sets it itself"),
    ],
)
def test_wrong_sweeps_give_one_message(pipe: Chain, options: str, words: str) -> None:
    code, _, err = pipe.call(f"sweep --config first.yaml {options}")
    assert code == 2
    assert err.startswith(f"lightgpt2: error: {words}")
    assert err.count("\n") == 1
    assert not Path("checkpoints").exists()


# -- the real command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sweep")
    write_corpus(made / "corpus")
    write_model(made / "base")
    init = {"model": "base", "lora": {"r": 4}, "optimizer": {"lr": 1.0e-2}}
    changes = {"model": {"class_path": "lightgpt2.methods.LoRA", "init_args": init}, "trainer.max_steps": 12}
    write_config(made / "lora.yaml", spoilt(changes))
    return made


@pytest.mark.slow
def test_a_real_sweep_of_sparsity(folder: Path) -> None:
    command = ["sweep", "--config", "lora.yaml", "--values", "0.5", "0.8", "--budget", "1000"]
    shown = succeed(folder, *command)
    run = folder / "checkpoints/lora"
    found, entry = read(run / "sweep.json"), read(run / "model/ledger.json")[-1]
    assert (found["values"], found["targets"]) == ([0.0, 0.5, 0.8], "lora")
    assert found["largest_inside_budget"] == 0.8
    assert "0.8" in shown
    assert entry["sweeps"]["sparsity"] == found
    assert value_of(found["arms"]["l1"][0]) == pytest.approx(value_of(entry["quality"]["after"]), rel=1e-6)
    assert (run / "sweep.svg").read_text().startswith("<svg")
    model = (run / "model/model.safetensors").stat().st_mtime_ns
    again = succeed(folder, *command, "--set", "trainer.max_steps=12")
    assert (run / "model/model.safetensors").stat().st_mtime_ns == model, "what is fitted is not fitted again"
    assert read(run / "sweep.json") == found, again


@pytest.mark.slow
def test_a_real_sweep_of_a_number(folder: Path) -> None:
    command = ["sweep", "--config", "lora.yaml", "--key", "model.lora.r", "--values", "4", "1"]
    succeed(folder, *command, "--set", "trainer.max_steps=6")
    group = folder / "checkpoints/lora-model.lora.r"
    for value, row in zip(("1", "4"), read(group / "sweep.json")["arms"]["fit"], strict=True):
        entry = read(group / value / "model/ledger.json")[-1]
        assert row == entry["quality"]["after"]
        assert (entry["operations"][0]["r"], entry["steps"]) == (int(value), 6)
