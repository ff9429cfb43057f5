"""Lightning's own callbacks, loggers and trainer settings: each works and leaves the run as it is, or is refused in a line."""

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler

from lightgpt2.callbacks import run_callbacks
from lightgpt2.data import LanguageModelingData
from lightgpt2.errors import UserError
from lightgpt2.methods import FineTune
from lightgpt2.methods.callbacks import callback_problems
from lightgpt2.tasks import LanguageModeling
from tests.support.mistakes import Bench

_CALLBACKS = "lightning.pytorch.callbacks."
TUNED: dict[str, Any] = {"model": {"class_path": "lightgpt2.methods.FineTune", "init_args": {"model": "teacher"}}}


def listed(**callbacks: Any) -> list[dict[str, Any]]:
    return [{"class_path": _CALLBACKS + name, "init_args": init} for name, init in callbacks.items()]


def weights(path: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


WORKING = {
    "Timer": {"duration": "00:01:00:00"},
    "EarlyStopping": {"monitor": "val/perplexity", "patience": 9},
    "ModelCheckpoint": {"monitor": "val/loss", "every_n_train_steps": 1, "save_top_k": 2, "dirpath": "kept"},
    "LearningRateMonitor": {},
    "DeviceStatsMonitor": {"cpu_stats": True},
    "ThroughputMonitor": {"batch_size_fn": "builtins.len"},
    "ModelSummary": {},
}


def test_callbacks_work_and_leave_the_run_as_it_is(finished: Bench) -> None:
    Path("checkpoints/r").rename("checkpoints/plain")
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "csv"}}
    changes = {"trainer.callbacks": listed(**WORKING), "trainer.logger": logger}
    finished.configure({**changes, "trainer.max_steps": 2})
    finished.succeed("fit")
    finished.configure(changes)
    finished.succeed("fit", "--ckpt_path", "last", "--model.optimizer.decay", "cosine")
    resolved = yaml.safe_load(Path("checkpoints/r/config.yaml").read_text())
    assert [each["class_path"] for each in resolved["trainer"]["callbacks"]] == [_CALLBACKS + name for name in WORKING]
    rows = [row for file in Path("csv").rglob("metrics.csv") for row in csv.DictReader(file.open())]
    assert sorted(int(row["step"]) for row in rows if row.get("train/loss")) == [1, 2, 3]
    assert list(Path("kept").glob("*.ckpt"))


def test_weights_are_those_without_callbacks(finished: Bench) -> None:
    Path("checkpoints/r").rename("checkpoints/plain")
    finished.configure({"trainer.callbacks": listed(**WORKING)})
    finished.succeed("fit")
    one, other = (weights(f"checkpoints/{run}/last.ckpt") for run in ("plain", "r"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("bar", ["RichProgressBar", "TQDMProgressBar"])
def test_a_progress_bar_takes_the_place_of_the_usual_one(bench: Bench, bar: str) -> None:
    changes = {"trainer.callbacks": listed(**{bar: {}}), "trainer.enable_progress_bar": True, "trainer.max_steps": 1}
    bench.configure({**TUNED, **changes})
    bench.succeed("fit")
    assert json.loads(Path("checkpoints/r/model/ledger.json").read_text())[-1]["steps"] == 1


def test_a_callback_that_needs_a_logger_says_so(bench: Bench) -> None:
    bench.configure({**TUNED, "trainer.callbacks": listed(LearningRateMonitor={}), "trainer.logger": False})
    assert "has no logger" in bench.refused("fit", touches=True)


def test_early_stopping_stops(bench: Bench) -> None:
    stopping = {"monitor": "val/perplexity", "patience": 1, "mode": "max"}  # which falls
    steps = {"trainer.max_steps": 40, "trainer.val_check_interval": 1}
    bench.configure({**TUNED, **steps, "trainer.callbacks": listed(EarlyStopping=stopping)})
    bench.succeed("fit")
    assert json.loads(Path("checkpoints/r/model/ledger.json").read_text())[-1]["steps"] == 2


def test_a_timer_stops(bench: Bench) -> None:
    bench.configure({**TUNED, "trainer.max_steps": 40, "trainer.callbacks": listed(Timer={"duration": "00:00:00:00"})})
    bench.succeed("fit")
    assert json.loads(Path("checkpoints/r/model/ledger.json").read_text())[-1]["steps"] < 3


@pytest.mark.parametrize(
    ("name", "init", "words"),
    [
        ("GradientAccumulationScheduler", {"scheduling": {0: 4}}, "set trainer.accumulate_grad_batches"),
        ("LearningRateFinder", {}, "set model.optimizer.lr"),
        ("BatchSizeFinder", {}, "set data.batch_size"),
        ("StochasticWeightAveraging", {"swa_lrs": 0.01}, "not built yet"),
        ("WeightAveraging", {}, "from its own weights"),
        ("EMAWeightAveraging", {}, "from its own weights"),
        ("ModelPruning", {"pruning_fn": "l1_unstructured"}, "use lightgpt2.callbacks.GlobalL1Pruning"),
        ("BackboneFinetuning", {}, "no backbone"),
        ("BaseFinetuning", {}, "no backbone"),
        ("SpikeDetection", {}, "when a run is resumed"),
        ("OnExceptionCheckpoint", {"dirpath": "d"}, "a run that fails keeps last.ckpt"),
        ("EarlyStopping", {"monitor": "val/nothing"}, "must be one of loss, tokens/s, val/loss, val/perplexity"),
        ("EarlyStopping", {"monitor": "train/loss"}, "got train/loss"),
        ("ModelCheckpoint", {"monitor": "perplexity"}, "got perplexity"),
    ],
)
def test_what_a_run_cannot_have_is_refused(bench: Bench, name: str, init: dict[str, Any], words: str) -> None:
    bench.configure({"trainer.callbacks": listed(**{name: init})})
    message = bench.refused("fit")
    assert message.startswith(f"trainer.callbacks.{name}")
    assert words in message
    assert bench.refused("check") == message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainer.callbacks": listed(Timer={"duration": "soon"})}, "`Timer(duration='soon')` is not a valid duration"),
        ({"trainer.callbacks": listed(EarlyStopping={"monitor": "val/loss", "mode": "up"})}, "`mode` can be min, max"),
        (
            {"trainer.callbacks": listed(RichProgressBar={}, TQDMProgressBar={}), "trainer.enable_progress_bar": True},
            "multiple",
        ),
        ({"trainer.val_check_interval": 0}, "trainer.val_check_interval: must be above 0, got 0"),
        ({"trainer.val_check_interval": -0.5}, "trainer.val_check_interval: must be above 0, got -0.5"),
        ({"trainer.val_check_interval": "soon"}, "Invalid time format for `val_check_interval`"),
        ({"trainer.check_val_every_n_epoch": 0}, "trainer.check_val_every_n_epoch: must be above 0, got 0"),
        ({"trainer.accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches: must be above 0, got 0"),
        (
            {"trainer.precision": "16-true"},
            "trainer.precision: 16-true has no numbers as small as AdamW needs; give bf16-mixed",
        ),
        ({"trainer.gradient_clip_val": -1}, "trainer.gradient_clip_val: must be at least 0, got -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(bench: Bench, changes: dict[str, Any], words: str) -> None:
    bench.configure(changes)
    assert words in bench.refused("fit")


@pytest.mark.parametrize(("name", "package"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow")])
def test_a_logger_works_or_its_package_is_named(
    bench: Bench, name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}.items():
        monkeypatch.setenv(variable, value)
    init = {"WandbLogger": {"offline": True}, "MLFlowLogger": {"tracking_uri": "file:./mlruns"}}[name]
    logger = {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": init}
    bench.configure({**TUNED, "trainer.max_steps": 1, "trainer.logger": logger})
    try:
        __import__(package)
    except ImportError:
        assert package in bench.refused("fit")
    else:
        bench.succeed("fit")


def test_validation_may_follow_a_clock(bench: Bench) -> None:
    bench.configure({**TUNED, "trainer.max_steps": 1, "trainer.val_check_interval": "00:00:00:00"})
    bench.succeed("fit")
    assert json.loads(Path("checkpoints/r/model/ledger.json").read_text())[-1]["steps"] == 1


# -- a plain trainer ---------------------------------------------------------------------------------------------------


class Changing(Callback):
    """Changes the accumulation when the second epoch begins."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.accumulate_grad_batches = 1 + trainer.current_epoch


def plain(*callbacks: Callback, **settings: Any) -> tuple[Trainer, FineTune, LanguageModelingData]:
    data = LanguageModelingData("corpus", sequence_length=32, batch_size=16, seed=7)
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    trainer = Trainer(accelerator="cpu", callbacks=[*callbacks], **{**quiet, **settings})
    return trainer, FineTune("teacher"), data


@pytest.mark.usefixtures("bench")
def test_a_plain_trainer_refuses_the_same() -> None:
    trainer, method, data = plain(GradientAccumulationScheduler({0: 4}), max_steps=1)
    with pytest.raises(UserError, match=r"trainer.callbacks.GradientAccumulationScheduler: .* for one number"):
        trainer.fit(method, datamodule=data)


@pytest.mark.usefixtures("bench")
def test_accumulation_that_anything_changes_is_refused() -> None:
    trainer, method, data = plain(Changing(), max_epochs=2)
    with pytest.raises(UserError, match=r"trainer.accumulate_grad_batches: must stay 1; remove what changes it"):
        trainer.fit(method, datamodule=data)
    assert trainer.current_epoch == 1, "before a step of the epoch that would be otherwise"


def test_metrics_of_ones_own_callbacks_may_be_watched() -> None:
    watching = EarlyStopping("val/mine")
    assert len([*callback_problems([watching], LanguageModeling())]) == 1
    assert [*callback_problems([watching, Changing()], LanguageModeling())] == []


def test_checkpoints_load_and_go_on_in_a_plain_trainer_without_warnings(finished: Bench) -> None:
    finished.configure({**TUNED, "trainer.max_steps": 2})
    finished.succeed("fit", "--run", "tuned")
    path, ours = "checkpoints/tuned/last.ckpt", []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for options in ({}, {"weights_only": True}):
            found = FineTune.load_from_checkpoint(path, **options)
            assert all(torch.equal(value, found.state_dict()[name]) for name, value in weights(path).items())
        trainer, method, data = plain(max_steps=3)
        data.batch_size = 4
        trainer.fit(method, datamodule=data, ckpt_path=path)
        assert trainer.global_step == 3
        data.trainer = None
        method, again = FineTune("teacher"), LanguageModelingData("corpus", sequence_length=32, batch_size=4, seed=7)
        trainer, _, _ = plain(*run_callbacks("on", method, again), max_steps=3, enable_checkpointing=True)
        trainer.fit(method, datamodule=again, ckpt_path=path)
        ours = [str(each.message) for each in seen if "callbacks" in str(each.message)]
    assert ours == []
    assert len(json.loads(Path("checkpoints/on/model/ledger.json").read_text())[-1]["quality"]) == 2
