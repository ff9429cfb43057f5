"""The sparsity sweep: its 0 % point, its control, and an artefact that it leaves alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightgpt2.callbacks.sweep import largest_inside
from tests.methods.test_lora import config as lora_config
from tests.support.cli import logged
from tests.support.mistakes import Bench


def sweep(**settings: Any) -> dict[str, Any]:
    return {"class_path": "lightgpt2.callbacks.SparsitySweep", "init_args": settings}


def test_sweep_scores_each_level_and_its_control_from_disk(bench: Bench) -> None:
    model = lora_config("teacher")["model"]
    bench.configure({"model": model, "trainer.max_steps": 30})
    bench.succeed("fit")
    before = Path("checkpoints/r/model/model.safetensors").read_bytes()
    bench.configure(
        {
            "model": model,
            "trainer.max_steps": 30,
            "trainer.callbacks": [sweep(targets="lora", levels=[0.5, 0.9], budget=2.0)],
        }
    )
    shown = bench.succeed("fit", "--ckpt_path", "last")  # a finished run: nothing is trained
    assert Path("checkpoints/r/model/model.safetensors").read_bytes() == before
    entry = json.loads(Path("checkpoints/r/model/ledger.json").read_text())[-1]
    found = json.loads(Path("checkpoints/r/sweep.json").read_text())
    assert entry["sweeps"]["sparsity"] == found
    assert found["values"] == [0.0, 0.5, 0.9], "the 0 % point is always there"
    points = {name: [row["perplexity"] for row in rows] for name, rows in found["arms"].items()}
    assert points["l1"][0] == points["random"][0] == pytest.approx(entry["quality"]["after"]["perplexity"], rel=1e-6)
    assert len({row["tokens"] for rows in found["arms"].values() for row in rows}) == 1, "always the full split"
    assert found["arms"]["l1"][0]["tokens"] == entry["quality"]["after"]["tokens"]
    assert points["l1"][1] < points["random"][1]
    assert points["l1"][2] < points["random"][2]
    for rows in found["arms"].values():
        for row in rows:
            assert row["ratio"] == pytest.approx(row["perplexity"] / rows[0]["perplexity"])
    assert found["largest_inside_budget"] == largest_inside(found["values"], points["l1"], 2.0)
    assert f"the largest value inside it is {found['largest_inside_budget']:g}" in shown
    curve = logged(Path(), "r")["sweep/l1"]
    assert curve == {100 * level: pytest.approx(p) for level, p in zip(found["values"], points["l1"], strict=True)}


@pytest.mark.parametrize(
    ("figures", "budget", "largest"),
    [
        ([10, 10.5, 11, 12], 1.0, 0.2),
        ([10, 12, 10.5, 10.5], 1.0, 0.0),  # not beyond a level that is outside
        ([10, 10.5, 10.8, 10.9], 1.0, 0.3),
        ([float("inf"), 1, 1, 1], 1.0, 0.3),
        ([float("nan"), 1, 1, 1], 1.0, None),
    ],
)
def test_largest_level_inside_the_budget(figures: list[float], budget: float, largest: float | None) -> None:
    assert largest_inside([0.0, 0.1, 0.2, 0.3], figures, budget) == largest


def test_targets_that_match_nothing_are_refused_before_training(bench: Bench) -> None:
    bench.configure({"model": lora_config("teacher")["model"], "trainer.callbacks": [sweep(targets="linear")]})
    (message,) = bench.refuse("fit", touches=True)
    assert message.startswith("trainer.callbacks.SparsitySweep.targets: 'linear' matches no trainable matrix")


def test_sweep_of_a_pruned_model_begins_at_its_own_sparsity(bench: Bench) -> None:
    pruned = {"class_path": "lightgpt2.callbacks.GlobalL1Pruning", "init_args": {"targets": "lora", "amount": 0.75}}
    callbacks = [pruned, sweep(targets="lora", levels=[0.5, 0.9])]
    bench.configure({"model": lora_config("teacher")["model"], "trainer.callbacks": callbacks})
    bench.succeed("fit")
    assert json.loads(Path("checkpoints/r/sweep.json").read_text())["values"] == [0.75, 0.9]


def test_check_sees_what_fit_would_refuse(bench: Bench) -> None:
    bench.configure({"model": lora_config("teacher")["model"], "trainer.callbacks": [sweep(targets="linear")]})
    (message,) = bench.refuse("check")
    assert message.startswith("trainer.callbacks.SparsitySweep.targets: ")
