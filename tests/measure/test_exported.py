"""Exported folders as arms of a benchmark: what is asked of them, what is measured, what is refused."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightgpt2.callbacks import InferenceBenchmark
from lightgpt2.conversions.export import export
from lightgpt2.conversions.onnx.writer import Forms
from lightgpt2.conversions.target import Target
from lightgpt2.data.validation import validation_data
from lightgpt2.errors import UserError
from lightgpt2.measure.arms import Arm
from lightgpt2.measure.benchmark import measure
from lightgpt2.measure.onnx_worker import OnnxWorker, profiled
from lightgpt2.measure.plan import plan
from lightgpt2.models.workloads import Forward, Generation, Workload, random_tokens
from lightgpt2.report.table import benchmark_table, operators_markdown
from lightgpt2.runs.run import Run
from lightgpt2.runtime.onnx_engine import OnnxEngine
from tests.support.models import make_restless_model, write_corpus, write_model
from tests.support.onnx_client import write_onnx
from tests.support.onnx_decoder import seal, write_decoder

SETTINGS: dict[str, Any] = {"prompt_tokens": 4, "new_tokens": [4, 8], "forward_tokens": [16], "batches": [1, 2]}
WORKLOADS: list[Workload] = [Forward(1, 16), Forward(2, 16), Generation(4, 4), Generation(4, 8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2, exported in INT8 and as GGUF."""
    made = tmp_path_factory.mktemp("exported")
    write_model(made / "gpt2", n_embd=128)
    corpus = write_corpus(made / "corpus", documents=24)
    data = validation_data(str(made / "gpt2"), str(corpus))
    for form in ("onnx-int8", "gguf"):
        export(str(made / "gpt2"), Target(form), made / f"gpt2-{form}", data)
    return made


def worker_of(folder: Path, device: str) -> OnnxWorker:
    arm = Arm("a", str(folder / "gpt2-onnx-int8"), "onnx-int8", "graph")
    return OnnxWorker(arm, WORKLOADS, device)


def test_an_exported_folder_is_an_arm_as_it_is(folder: Path) -> None:
    exported = str(folder / "gpt2-onnx-int8")
    arms, _ = plan([str(folder / "gpt2"), exported, str(folder / "gpt2-gguf")], None, ["sdpa", "eager"], SETTINGS)
    assert [arm.name for arm in arms] == [
        "gpt2 fp32 sdpa", "gpt2 fp32 eager", "gpt2-onnx-int8 onnx-int8", "model.gguf fp32 sdpa", "model.gguf fp32 eager",
    ]  # fmt: skip
    assert arms[2] == Arm("gpt2-onnx-int8 onnx-int8", exported, "onnx-int8", "graph")
    for wanted in ("fp32", "int8"):
        with pytest.raises(UserError, match=rf"^--precision: must be onnx-int8 for .*, got {wanted}; leave it out"):
            plan([exported], [wanted], ["sdpa"], SETTINGS)
    with pytest.raises(UserError) as caught:
        plan([exported], None, ["sdpa"], SETTINGS, device="cuda:0")
    assert caught.value.problems == [
        f"--device: {exported} is exported for processors, and its figures would not be CUDA's; give --device cpu"
    ]
    with pytest.raises(UserError, match=r"is exported for processors"):
        worker_of(folder, "cuda:0").load()
    long = {"prompt_tokens": 4, "new_tokens": [61], "forward_tokens": [16]}
    with pytest.raises(UserError, match=r"^--new-tokens: must be within .* 64 positions after a prompt of 4, got 61"):
        plan([exported], None, ["sdpa"], long)


def test_the_callback_measures_each_copy_that_computes_in_its_own_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    callback = InferenceBenchmark(attention=["sdpa", "eager"])
    assert callback.attach(Run("r")) == []
    write_model(Run("r").model)
    write_model(Run("r").sibling("packed"))  # it computes as the artefact does
    write_decoder(Run("r").sibling("onnx"))
    seal(write_model(Run("r").sibling("gguf")), {"format": "gguf"})
    Run("r").sibling("empty").mkdir()
    arms = {arm.name: arm.attention for arm in callback._arms(False)}
    names = {"model fp32": "sdpa", "model fp32 eager": "eager", "model bf16": "sdpa"}
    assert arms == {**names, "model-onnx onnx": "graph"}
    assert [problem.key for problem in InferenceBenchmark(attention=[]).attach(Run("r"))] == ["attention"]


def test_a_damaged_export_is_refused_before_anything_is_measured(folder: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(folder / "gpt2-onnx-int8", tmp_path / "cut")
    weights = cut / "model.onnx_data"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"^MODEL: model.onnx_data in .*cut is not what was written"):
        plan([str(cut)], None, ["sdpa"], SETTINGS)


@pytest.mark.slow
def test_it_is_measured_beside_the_others(folder: Path) -> None:
    arms, workloads = plan([str(folder / "gpt2"), str(folder / "gpt2-onnx-int8")], None, ["sdpa"], SETTINGS)
    assert workloads == WORKLOADS
    result = measure(arms, workloads, 2, "cpu", folder / "traces", bar=False)
    plain, mine = result["arms"]
    assert "error" not in mine, mine
    assert {"embedding_mb": None, "attention_kernel": "GroupQueryAttention"}.items() <= mine.items()
    sizes = [(folder / "gpt2-onnx-int8" / name).stat().st_size for name in ("model.onnx", "model.onnx_data")]
    assert mine["weights_mb"] == pytest.approx(sum(sizes) / 1e6, abs=1e-4)
    assert mine.keys() == plain.keys()
    assert mine["generate"].keys() == plain["generate"].keys()
    assert 0 < mine["peak_above_start_mb"] < mine["peak_memory_mb"]
    assert "onnxruntime" in result["machine"]["versions"]
    table = benchmark_table(result)
    assert "gpt2-onnx-int8 onnx-int8" in table
    assert "| GroupQueryAttention |" in operators_markdown(mine)
    # In the table and in the trace: 3 steps of a forward pass and 4 tokens through 4 layers.
    calls = {op["name"]: op["calls"] for op in mine["operators"]}
    assert calls["GroupQueryAttention"] == 3 * (1 + 4) * 4
    events = json.loads(Path(mine["trace"]).read_text())["traceEvents"]
    named = [event for event in events if event["args"].get("op_name") == "GroupQueryAttention"]
    assert len(named) == calls["GroupQueryAttention"]
    own = sum(event["dur"] for event in named) / 1e3
    assert own == pytest.approx(
        next(o["self_ms"] for o in mine["operators"] if o["name"] == named[0]["args"]["op_name"])
    )


def test_a_profile_is_of_the_graph_that_reads_and_of_the_one_that_steps(tmp_path: Path) -> None:
    graph = write_onnx(make_restless_model("gpt2"), tmp_path / "out", Forms("int4", "int4", prefill=[])) / "model.onnx"
    ids = np.ones((1, 8), np.int64)

    def step(engine: OnnxEngine) -> None:
        engine.logits(ids, np.ones_like(ids))
        engine.prefill(ids[:, :4], np.ones((1, 4), np.int64), 5)
        for _ in range(4):
            engine.decode(np.ones(1, np.int64))

    def opened(prefix: str) -> OnnxEngine:
        return OnnxEngine(graph, 64, 1, profile=prefix)

    operators, attention = profiled(opened, step, tmp_path / "trace.json")
    calls = {name: count for name, count, _ in operators}
    reads, steps, products = 3 * 2, 3 * 4, 4 * 4 + 16  # of each pass: four in each of 4 layers, and the head's 16 parts
    assert calls["DynamicQuantizeMatMul"] == reads * products
    assert calls["MatMulNBits"] == steps * products
    assert attention == "GroupQueryAttention"
    runs = sorted(
        (event["ts"], event["dur"])
        for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        if event["name"] == "model_run"
    )
    assert len(runs) == reads + steps
    for (start, duration), (following, _) in pairwise(runs):
        assert following > start + 0.9 * duration, "one after the other, on one clock"


def test_its_tokens_are_the_likeliest_ones_and_as_many_as_asked(folder: Path) -> None:
    worker = worker_of(folder, "cpu")
    worker.load()
    steps: list[Any] = []
    decode = worker.engine.decode
    worker.engine.decode = lambda tokens: steps.append(tokens.copy()) or decode(tokens)  # type: ignore[method-assign]
    measured = worker.round()
    assert [len(measured[f"generate {count}"]["others"]) for count in (4, 8)] == [3, 7]
    ids = np.concatenate([random_tokens(worker, 1, 4).numpy(), np.array(steps[-7:]).T], axis=1)
    again = worker.engine.logits(ids, np.ones_like(ids))[0].argmax(axis=1)
    assert (again[3:-1] == ids[0, 4:]).mean() >= 5 / 7, "greedy, but for rounding"
