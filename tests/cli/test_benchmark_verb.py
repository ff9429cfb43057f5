"""`lightgpt2 benchmark` and the callback, through the real command."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightgpt2.models.quality import value_of
from tests.support.cli import ROOT, call, logged, succeed
from tests.support.kill import children
from tests.support.mistakes import Bench
from tests.support.models import write_model
from tests.support.pipelines import wait_for

SHORT = [
    "--rounds", "1", "--new-tokens", "4", "8", "--prompt-tokens", "4", "--batches", "1", "2", "--forward-tokens", "16",
]  # fmt: skip
SETTINGS = {"rounds": 1, "new_tokens": [4, 8], "prompt_tokens": 4, "batches": [1, 2], "forward_tokens": [16]}


@pytest.mark.slow
def test_the_verb_prints_a_table_and_writes_figures_and_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "one")
    broken = write_model(tmp_path / "two") / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:5000])
    output = succeed(tmp_path, "benchmark", "one", "two", *SHORT, "--output", "out/figures.json", "--traces", "traces")
    result = json.loads((tmp_path / "out/figures.json").read_text())
    after = {"prompt_tokens": 4}
    workloads = {"forward 1x16": {}, "forward 2x16": {}, "generate 4": after, "generate 8": after}
    assert result["settings"] == {"rounds": 1, "workloads": workloads}
    assert (result["machine"]["device"], result["machine"]["threads"]) == ("cpu", 1)
    one, two = result["arms"]
    assert (one["name"], one["trace"]) == ("one fp32", "traces/one-fp32.json")
    _, *speeds, spent = (line.split() for line in output.splitlines() if line.strip().startswith("one fp32"))
    assert f"{one['generate']['8']['tokens_per_s']:.1f}" in speeds[3]
    assert f"{one['generate']['8']['cpu_seconds']:.3f}" in spent
    assert f"two fp32: not measured: {two['error']}" in output
    assert json.loads((tmp_path / "traces/one-fp32.json").read_text())["traceEvents"]
    monkeypatch.chdir(tmp_path)
    code, _, errors = call(capsys, "benchmark", "two", *SHORT)
    assert code == 2
    assert "lightgpt2: error: two fp32: MODEL: two is damaged" in errors


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--output", "taken/figures.json"], "--output: taken/figures.json cannot be written, taken does not allow it"),
        (["--output", "folder"], "--output: folder is a folder; give a file"),
        (["--traces", "taken"], "--traces: taken cannot be written, taken does not allow it; give another place"),
        (["--rounds", "1"], "MODEL: ./missing does not exist; give a hub id, a model folder or a .gguf file"),
    ],
)
def test_the_verb_refuses_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file")
    Path("folder").mkdir()
    code, _, errors = call(capsys, "benchmark", "./missing", *args)
    assert code == 2
    assert errors.startswith(f"lightgpt2: error: {message}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "taken"]


def runs(pid: int) -> bool:
    """True if a process is there, and no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_ctrl_c_ends_the_workers(tmp_path: Path) -> None:
    write_model(tmp_path / "one")
    command = [sys.executable, "-m", "lightgpt2", "benchmark", "one", "one", *SHORT, "--rounds", "100000"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # which background processes are made to ignore
    )  # fmt: skip
    wait_for(lambda: len(children(process.pid)) == 2)
    workers = children(process.pid)
    wait_for(lambda: all(imported(pid) for pid in workers))  # the command itself imports nothing any more
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "lightgpt2: stopped; benchmark.json was not written" in errors
    assert "Traceback" not in errors
    wait_for(lambda: not any(runs(pid) for pid in workers), 10)  # one that was asked to end may need a moment for it
    assert not (tmp_path / "benchmark.json").exists()


def imported(pid: int) -> bool:
    """Whether a process has begun to import torch."""
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.slow
def test_the_callback_measures_the_artefact_and_writes_it_down(bench: Bench, tmp_path: Path) -> None:
    """With quantized models beside the artefact, that another callback makes before, though it is named after it."""
    write_model(Path("teacher"), n_embd=64)  # some processors' NF4 kernels take no narrower one
    callbacks = {"InferenceBenchmark": SETTINGS, "PostTrainingQuantization": {"formats": ["nf4", "onnx-int8"]}}
    listed = [{"class_path": f"lightgpt2.callbacks.{name}", "init_args": args} for name, args in callbacks.items()]
    bench.configure({"trainer.callbacks": listed, "trainer.enable_progress_bar": True})
    output = succeed(tmp_path, "fit", "--config", "config.yaml", "--run", "r")
    folder = tmp_path / "checkpoints/r"
    result = json.loads((folder / "benchmark.json").read_text())
    quantized = ["model-nf4 nf4", "model-onnx-int8 onnx-int8"]
    assert [arm["name"] for arm in result["arms"]] == ["model fp32", "model bf16", *quantized]
    assert not [arm for arm in result["arms"] if "error" in arm]
    entry = json.loads((folder / "model/ledger.json").read_text())[-1]
    assert entry["benchmark"] == result
    assert value_of(entry["quality"]["after"]) > 0, "the rest of the entry is as it was"
    assert output.index("perplexity") < output.index("Times as fast as model fp32")
    scalars = logged(tmp_path, "r")
    for arm in result["arms"]:
        name = Path(arm["trace"]).stem
        assert arm["trace"] == f"tb-logs/r/profile/{name}.json"
        assert json.loads((tmp_path / arm["trace"]).read_text())["traceEvents"]
        assert scalars[f"inference/{name}/weights_mb"][3] == pytest.approx(arm["weights_mb"], rel=1e-6)
        speed = arm["generate"]["8"]["tokens_per_s"]
        assert scalars[f"inference/{name}/generate_8_tokens_per_s"][3] == pytest.approx(speed, rel=1e-6)
        ratio = arm["ratio"]["forward 1x16"]["median"]
        assert scalars[f"inference/{name}/forward_1x16_ratio"][3] == pytest.approx(ratio, rel=1e-6)
    events = EventAccumulator(str(tmp_path / "tb-logs/r"))
    events.Reload()
    texts = {"inference/text_summary", "operators/model-fp32/text_summary", "operators/model-nf4-nf4/text_summary"}
    assert texts <= set(events.Tags()["tensors"])
