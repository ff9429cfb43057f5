"""`--logger`: each logger, with its real package, shows what TensorBoard shows; what cannot be had is one message."""

import csv
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.cli import call, logged
from tests.support.mistakes import Bench
from tests.support.pipelines import wait_for
from tests.support.stages import callback, stage

TASK = {"class_path": "lightgpt2.tasks.LanguageModeling", "init_args": {"samples": 1, "sample_tokens": 2}}
MOVEMENT = stage("MovementPruning", pruning={"attention": 0.5}, task=TASK) | {"trainer.max_steps": 6}
COMPARED = {  # what two runs are compared in: loss, quality, size, throughput, memory
    "train/loss", "val/perplexity", "final/perplexity", "final/megabytes", "final/parameters", "train/tokens_per_s",
    "train/memory_mb", "generation/model/repeated",
}  # fmt: skip


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a person may have set is out of the way, and nothing is sent anywhere."""
    for name in ("WANDB_PROJECT", "WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(name, value)


def test_no_chart_of_tensorboard_is_empty_and_two_runs_have_the_same(bench: Bench) -> None:
    """Its scalars panel shows nothing of several runs with one point each."""
    check = callback("GenerationCheck", samples=2, prompt_tokens=4, new_tokens=4)
    bench.configure({"trainer.callbacks": [check]})
    for run in ("r", "other"):
        bench.succeed("fit", "--run", run)
    one, other = (points(run) for run in ("r", "other"))
    assert COMPARED <= set(one) == set(other)
    for name, steps in one.items():
        assert len(steps) > 1, name
        assert name.startswith(("train/", "val/")) or {*steps} == {3}, name
    values = [value for curve in logged(Path(), "r").values() for value in curve.values()]
    assert all(map(math.isfinite, values))


def points(run: str) -> dict[str, list[int]]:
    """The steps of all points of each curve in TensorBoard."""
    events = EventAccumulator(f"tb-logs/{run}", size_guidance={"scalars": 0})
    events.Reload()
    return {name: [point.step for point in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_csv_has_the_same_values_and_goes_on_in_a_new_file(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.succeed("fit", "--run", "other")
    assert "curves: tb-logs/r/version_0/metrics.csv" in bench.succeed("fit", "--logger", "csv")
    bench.succeed("fit", "--logger", "csv", "--ckpt_path", "last", "--trainer.max_steps", "4")
    assert not [*Path("tb-logs/r").glob("events*")]
    files = [Path(f"tb-logs/r/version_{i}/metrics.csv") for i in (0, 1)]
    rows, more = ([*csv.DictReader(file.open())] for file in files)
    assert [row["step"] for row in more if row["train/loss"]] == ["4"]
    board = logged(Path(), "other")
    assert set(board) == {key for row in rows for key in row} - {"step"}
    losses = {int(row["step"]): float(row["train/loss"]) for row in rows if row["train/loss"]}
    assert losses == pytest.approx(board["train/loss"], abs=1e-6)
    settings = yaml.safe_load((files[1].parent / "hparams.yaml").read_text())
    assert settings["data.batch_size"] == 4
    _, shown, _ = call(capsys, "show", "r")
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("curves")] == [*map(str, files)]
    bench.succeed("fit", "--logger", "csv", "--trainer.max_steps", "1")
    assert len([*Path("tb-logs/r").iterdir()]) == 1, "what a finished run that is done again has left is replaced"


@pytest.mark.usefixtures("home")
def test_wandb_offline_has_what_tensorboard_shows(bench: Bench) -> None:
    pytest.importorskip("wandb")
    bench.configure(MOVEMENT)
    bench.succeed("fit", "--run", "other")
    out = bench.succeed("fit", "--logger", "wandb")
    (folder,) = Path("tb-logs/wandb").glob("offline-run-*")
    assert f"curves: wandb sync {folder}" in out
    history, settings = wandb_records(folder)
    names = {key for row in history for key in row}
    assert {*logged(Path(), "other"), "samples", "pruning/attention/scores", "pruning/attention/layers"} <= names
    losses = {row["trainer/global_step"]: row["train/loss"] for row in history if "train/loss" in row}
    assert losses == pytest.approx(logged(Path(), "other")["train/loss"], abs=1e-6)
    assert settings["data.batch_size"] == 4
    assert [*folder.rglob("media/images/pruning/attention/*.png")]
    bench.succeed("fit", "--logger", "wandb", "--run", "again")
    assert len([*Path("tb-logs/wandb").glob("offline-run-*")]) == 2, "a run of its own in the same process"


def wandb_records(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows and the settings in the file of an offline run, which its own package only sends."""
    from wandb.proto.wandb_internal_pb2 import Record

    def read() -> list[Any]:
        (path,) = folder.glob("*.wandb")
        return [*map(Record.FromString, logged_records(path.read_bytes()))]

    wait_for(lambda: any(record.HasField("exit") for record in read()))  # another process writes it
    rows, settings = list[dict[str, Any]](), dict[str, Any]()
    for record in read():
        if record.history.item:
            rows.append({each.nested_key[0]: json.loads(each.value_json) for each in record.history.item})
        settings |= {each.key: json.loads(each.value_json) for each in record.config.update}
    return rows, settings


def logged_records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, behind a header of 7 bytes: in blocks of 32 KiB, cut where one ends."""
    place, record = 7, b""
    while place + 7 < len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of its pieces
            yield record
            record = b""


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_mlflow_in_a_file_has_what_tensorboard_shows(bench: Bench) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    bench.configure(MOVEMENT)
    bench.succeed("fit", "--run", "other")
    out = bench.succeed("fit", "--logger", "mlflow")
    assert "curves: mlflow ui --backend-store-uri sqlite:///tb-logs/mlflow.db" in out
    client = mlflow.MlflowClient("sqlite:///tb-logs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("lightgpt2").experiment_id])
    assert (run.info.run_name, run.info.status) == ("r", "FINISHED")
    board = logged(Path(), "other")
    assert set(run.data.metrics) == set(board)
    losses = {each.step: each.value for each in client.get_metric_history(run.info.run_id, "train/loss")}
    assert losses == pytest.approx(board["train/loss"], abs=1e-6)
    assert run.data.params["data.batch_size"] == "4"
    shown = {path.name for path in Path("tb-logs/mlflow").rglob("*") if path.is_file()}
    assert {"0.md", "2.md", "6.md"} <= shown
    assert any(name.startswith("pruning") and "layers" in name and name.endswith(".png") for name in shown)


def test_what_cannot_log_is_one_message(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    names = "must be one of tensorboard, csv, wandb, mlflow or null, got 'tensorbord'"
    assert bench.refused("fit", "--logger", "tensorbord").startswith(f"logger: {names}")
    bench.configure(
        {"trainer.logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "x"}}}
    )
    said = "logger: trainer.logger is given too; remove one of them"
    assert bench.refused("fit", "--logger", "csv") == bench.refused("check", "--logger", "csv") == said
    bench.configure()
    monkeypatch.setattr("lightgpt2.cli.loggers.find_spec", lambda name: None)
    for verb in ("fit", "check"):
        message = bench.refused(verb, "--logger", "wandb")
        assert message == "logger: the package wandb is not installed; pip install wandb, or give another"


@pytest.mark.usefixtures("home")
def test_what_does_not_begin_is_one_message(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere:there")
    message = bench.refused("fit", "--logger", "mlflow")
    assert message.startswith("logger: mlflow begins no run (")
    assert message.endswith("install mlflow, or set MLFLOW_TRACKING_URI")
