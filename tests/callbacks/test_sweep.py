"""The sparsity sweep: its 0 % point, its control, and a model that it leaves alone; with a task of another kind."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from lightgpt2.callbacks.sweep import SparsitySweep
from lightgpt2.errors import UserError
from lightgpt2.functional.pruning import Masks
from lightgpt2.methods.method import Method
from lightgpt2.models.pruning import prunable
from lightgpt2.models.quality import Metric, quality, value_of
from lightgpt2.models.saving import save_model
from lightgpt2.runs import sweep
from lightgpt2.runs.run import Run
from tests.support.models import make_model, write_tokenizer


class Kept:
    """A task whose metric is the mean size of the weights of one matrix."""

    primary = "kept"

    def evaluate(self, model: Any, data: Any, split: str, label: str) -> dict[str, Metric]:
        assert (data.name, split) == ("data", "valid")
        sizes = dict(model.named_parameters())["transformer.h.0.mlp.c_fc.weight"].detach().double().abs().sum(1).numpy()
        return {"kept": Metric("kept", "higher", sizes, np.ones_like(sizes))}

    def quality(self, metrics: dict[str, Metric]) -> dict[str, Any]:
        return quality(metrics, self.primary, {"rows": len(metrics["kept"].numerators)})


@pytest.fixture
def method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "sweep_table", lambda found: f"largest {found['largest_inside_budget']}")
    monkeypatch.setattr(sweep, "sweep_plot", lambda *_: None)
    made = MagicMock(spec=Method)
    made.model, made.task = make_model("gpt2"), Kept()
    made.held = SimpleNamespace(masks=Masks())
    made.device_mesh, made.trust_remote_code = None, False
    made.save = lambda folder, tokenizer, weights: save_model(made.model, tokenizer, folder, weights)
    return made


def swept(method: MagicMock, **settings: Any) -> dict[str, Any]:
    """What a sweep of a finished run `r` finds."""
    callback = SparsitySweep(**settings)
    assert callback.phase == 3
    assert callback.attach(Run("r")) == []
    Run("r").model.mkdir(parents=True)
    (Run("r").model / "ledger.json").write_text('[{"quality": {"after": {"kept": {"value": 1}, "primary": "kept"}}}]')
    method.data = SimpleNamespace(name="data", tokenizer=write_tokenizer(Path("tokenizer")))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(is_global_zero=True, strategy=strategy, loggers=[], global_step=0)
    callback.on_fit_start(trainer, method)
    callback.on_fit_end(trainer, method)
    found = json.loads(Path("checkpoints/r/sweep.json").read_text())
    assert json.loads((Run("r").model / "ledger.json").read_text())[-1]["sweeps"] == {"sparsity": found}
    assert not list(Path("checkpoints/r").glob(".*"))
    return found


def test_sweep_scores_each_level_and_its_control(method: MagicMock, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: p.clone() for name, p in method.model.named_parameters()}
    found = swept(method, levels=[0.1, 0.9], budget=5.0)
    assert all(torch.equal(p, before[name]) for name, p in method.model.named_parameters())
    assert (found["key"], found["targets"], found["values"]) == ("sparsity", "linear", [0.0, 0.1, 0.9])
    points = {arm: [value_of(row) for row in rows] for arm, rows in found["arms"].items()}
    whole = before["transformer.h.0.mlp.c_fc.weight"].double().abs().sum(1).mean()
    assert points["l1"][0] == points["random"][0] == pytest.approx(float(whole))
    assert all(l1 > random for l1, random in zip(points["l1"][1:], points["random"][1:], strict=True))
    for arm, rows in found["arms"].items():
        for row in rows:
            assert row["rows"] == 32
            assert row["ratio"] == pytest.approx(value_of(row) / points[arm][0])
            assert row["ratio_95"][0] <= row["ratio"] <= row["ratio_95"][1]
    assert (found["budget_percent"], found["largest_inside_budget"]) == (5.0, 0.1)
    assert "largest 0.1" in capsys.readouterr().out


def test_adapters_are_pruned_where_there_are_any(method: MagicMock) -> None:
    inject_adapter_in_model(LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True), method.model)
    assert SparsitySweep()._chosen(method)[0] == "lora"
    targets, chosen = SparsitySweep(targets=r"\.1\..*lora_B")._chosen(method)
    assert targets == r"\.1\..*lora_B"
    assert [*chosen] == ["transformer.h.1.attn.c_attn.lora_B.default.weight"]


def test_sweep_of_a_pruned_model_begins_at_its_own_sparsity(method: MagicMock) -> None:
    chosen = prunable(method.model, "linear", "targets")
    kept = {name: torch.arange(len(p))[:, None].expand_as(p) >= len(p) // 4 * 3 for name, p in chosen.items()}
    method.held.masks.set(kept)
    assert swept(method, levels=[0.5, 0.9])["values"] == [0.75, 0.9]


def test_targets_that_match_nothing_are_refused_before_training(method: MagicMock) -> None:
    with pytest.raises(
        UserError, match=r"^trainer.callbacks.SparsitySweep.targets: 'lora' matches no trainable matrix"
    ):
        SparsitySweep(targets="lora").on_fit_start(MagicMock(), method)
