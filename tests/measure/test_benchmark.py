"""Speed and memory of models, each in a fresh process."""

import json
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig

from lightgpt2.errors import UserError
from lightgpt2.measure import benchmark
from lightgpt2.measure.arms import Arm
from lightgpt2.measure.benchmark import measure, ratios, speeds_of, summary
from lightgpt2.measure.child import ArmFailed, Child, Children, _reason, turns
from lightgpt2.measure.plan import plan
from lightgpt2.measure.torch_worker import TorchWorker, attention_kernel, residency_problem
from lightgpt2.models.quantization import load_for_inference
from lightgpt2.models.workloads import Forward, Generation, Workload
from lightgpt2.report.table import benchmark_table
from tests.support.models import write_model

WORKER = "lightgpt2.measure.worker"
SETTINGS: dict[str, Any] = {"prompt_tokens": 4, "new_tokens": [4, 8], "forward_tokens": [16], "batches": [1, 2]}
WORKLOADS: list[Workload] = [Forward(1, 16), Forward(2, 16), Generation(4, 4), Generation(4, 8)]
FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 that can be quantized, a Llama, and a damaged model."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "gpt2", n_embd=128)
    write_model(folder / "llama", "llama")
    damaged = write_model(folder / "damaged") / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    """Three arms that run and one that does not."""
    arms = [
        Arm("plain", str(folder / "gpt2"), "fp32", "sdpa"),
        Arm("broken", str(folder / "damaged"), "fp32", "sdpa"),
        Arm("small", str(folder / "gpt2"), "nf4", "flash"),
        Arm("slow", str(folder / "gpt2"), "bf16", "eager"),
    ]
    return measure(arms, WORKLOADS, 2, "cpu", folder / "traces", bar=False)


def arm(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(arm for arm in result["arms"] if arm["name"] == name)


def worker(model: Path, workloads: list[Workload] = WORKLOADS) -> TorchWorker:
    return TorchWorker(Arm("a", str(model), "fp32", "sdpa"), workloads, "cpu")


# -- figures -----------------------------------------------------------------------------------------------------------------


def test_ratios_are_taken_inside_the_rounds() -> None:
    """The second round's machine is ten times slower for both: ratios of medians over rounds would not be 2 and 3."""
    speeds = {"base": {"x": [100.0, 10.0]}, "other": {"x": [200.0, 30.0]}}
    assert ratios(speeds) == {
        "base": {"x": {"median": 1.0, "low": 1.0, "high": 1.0}},
        "other": {"x": {"median": 2.5, "low": 2.0, "high": 3.0}},
    }
    assert [*turns("abc", 3)] == [*"abccbaabc"]


def a_round(forward: list[float], first: float, others: list[float], peak: float) -> dict[str, Any]:
    return {
        "forward 1x16": forward, "generate 4": {"first": first, "others": others, "cpu_seconds": first / 2e3},
        "peaks": {"peak_memory_mb": peak, "peak_above_start_mb": peak - 1, "peak_reserved_mb": None},
    }  # fmt: skip


def test_speed_leaves_the_first_token_out_and_percentiles_are_over_all_samples() -> None:
    rounds = [a_round([1.0, 2.0, 9.0], 50.0, [10.0, 20.0], 5.0), a_round([4.0, 4.0, 4.0], 70.0, [40.0, 40.0], 7.0)]
    workloads = [Forward(1, 16), Generation(4, 4)]
    assert speeds_of(rounds, workloads) == {
        "forward 1x16": [500.0, 250.0],
        "generate 4": pytest.approx([2000 / 30, 25.0]),
    }
    figures = summary(rounds, workloads)
    times = [1.0, 2.0, 9.0, 4.0, 4.0, 4.0]
    assert figures["forward"]["1x16"] == {"p50_ms": 4.0, "p95_ms": pytest.approx(np.quantile(times, 0.95))}
    assert figures["generate"]["4"] == {
        "first_token_ms": 60.0,
        "tokens_per_s": pytest.approx((2000 / 30 + 25) / 2),
        "token_p50_ms": 30.0,
        "token_p95_ms": 40.0,
        "seconds": pytest.approx((0.080 + 0.150) / 2),
        "cpu_seconds": pytest.approx((0.025 + 0.035) / 2),
        "cpu_percent": pytest.approx((25 / 80 + 35 / 150) / 2 * 100),
    }
    assert figures["peak_memory_mb"] == 7.0


def test_residency_and_attention_are_read_from_what_ran() -> None:
    there, ran = {"a": "cuda", "b": "cuda"}, {"aten::mm": 12.5}
    assert residency_problem("cpu", {"a": "cpu"}, {"aten::mm": 0.0}) is None
    assert residency_problem("cuda:0", there, ran) is None
    elsewhere = "2 of 4 tensors are not on CUDA, first c on cpu"
    assert residency_problem("cuda:0", {**there, "c": "cpu", "d": "meta"}, ran) == elsewhere
    idle = "no CUDA kernels were seen for bitsandbytes::gemv_4bit"
    assert residency_problem("cuda:0", there, {**ran, "bitsandbytes::gemv_4bit": 0.0}) == idle
    assert attention_kernel(["aten::mm", "aten::scaled_dot_product_attention", FLASH, FLASH]) == FLASH
    both = [FLASH, "aten::_scaled_dot_product_efficient_attention"]
    assert attention_kernel(both) == "aten::_scaled_dot_product_efficient_attention, " + FLASH
    assert attention_kernel(["aten::softmax", "aten::bmm"]) == "eager"


# -- a whole run -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_are_counted_as_they_are_stored_and_what_ran_is_what_was_asked_for(
    result: dict[str, Any], folder: Path
) -> None:
    stored = load_file(folder / "gpt2" / "model.safetensors")  # tied weights are in it once
    plain, half, small = arm(result, "plain"), arm(result, "slow"), arm(result, "small")
    assert plain["weights_mb"] == pytest.approx(sum(t.numel() * 4 for t in stored.values()) / 1e6, abs=1e-4)
    assert half["weights_mb"] == pytest.approx(plain["weights_mb"] / 2, abs=1e-4)
    embedding = stored["transformer.wte.weight"].numel() * 4 / 1e6
    assert plain["embedding_mb"] == small["embedding_mb"] == pytest.approx(embedding, abs=1e-4)
    # NF4 takes half a byte a weight and, its scales quantized too, 1 byte and a bit for 64 of them: 0.52 bytes.
    linear = sum(t.numel() for name, t in stored.items() if ".h." in name and t.ndim == 2)
    expected = plain["weights_mb"] - linear * (4 - 0.52) / 1e6
    assert expected < small["weights_mb"] < expected + 16 * 1400 / 1e6, "and code tables of 16 layers"
    for each in (plain, half, small):
        assert 0 < each["load_mb"] <= each["peak_above_start_mb"] < each["peak_memory_mb"]
    assert [each["attention_kernel"] for each in (plain, small, half)] == [FLASH, FLASH, "eager"]
    assert any(op["name"].startswith("bitsandbytes::") for op in small["operators"])


@pytest.mark.slow
def test_a_damaged_model_is_reported_and_the_others_go_on(result: dict[str, Any]) -> None:
    broken = arm(result, "broken")
    assert set(broken) == {"name", "source", "precision", "attention", "error"}
    assert "damaged" in broken["error"]
    assert [a["name"] for a in result["arms"]] == ["plain", "broken", "small", "slow"]
    table = benchmark_table(result)
    assert f"broken: not measured: {broken['error']}" in table
    assert "Times as fast as plain" in table
    for each in (each for each in result["arms"] if each is not broken):
        assert (set(each["forward"]), set(each["generate"])) == ({"1x16", "2x16"}, {"4", "8"})
        for ratio in each["ratio"].values():
            assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
        for spent in each["generate"].values():
            threads = result["machine"]["threads"]
            assert 0 < spent["cpu_seconds"] <= threads * spent["seconds"] * 1.1 + 0.02
            assert spent["seconds"] > spent["first_token_ms"] / 1e3
    assert set(arm(result, "small")["ratio"]) == {"forward 1x16", "forward 2x16", "generate 4", "generate 8"}
    assert all(ratio["median"] == 1.0 for ratio in arm(result, "plain")["ratio"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "small"])
def test_the_table_of_operators_agrees_with_the_trace(result: dict[str, Any], name: str) -> None:
    measured = arm(result, name)
    times = defaultdict(list)
    for event in json.loads(Path(measured["trace"]).read_text())["traceEvents"]:
        if event.get("cat") == "cpu_op":
            times[event["name"]].append(event["dur"] / 1e3)
    spent = [op["self_ms"] for op in measured["operators"]]
    assert len(spent) == 10
    assert spent == sorted(spent, reverse=True)
    assert 0.5 < sum(op["share"] for op in measured["operators"]) <= 1
    for op in measured["operators"]:
        assert (op["calls"], op["device"]) == (len(times[op["name"]]), "cpu")
        assert 0 < op["self_ms"] <= sum(times[op["name"]]) + 0.01
    assert len(times[FLASH]) == 3 * (1 + 4) * 4, "3 steps of a forward pass and 4 tokens through 4 layers"


# -- one worker --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
def test_cpu_time_is_what_all_threads_spend_up_to_the_last_token(folder: Path, busy: bool) -> None:
    """One that waits for its tokens spends next to none; what it does after the last token is not the generation's."""
    measured = worker(folder / "llama")
    measured.load()

    def burn(seconds: float = 0.02) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    def generate(prompt: Tensor, *, generation_config: Any, streamer: Any, **_: Any) -> Tensor:
        streamer.put(prompt)
        for _ in range(generation_config.max_new_tokens):
            other = threading.Thread(target=burn if busy else time.sleep, args=(0.02,))
            other.start()
            other.join()
            streamer.put(prompt)
        burn(0.3)
        return torch.cat([prompt, prompt.new_zeros(1, generation_config.max_new_tokens)], dim=1)

    measured.model.generate = generate
    found = measured.round()["generate 8"]
    seconds = (found["first"] + sum(found["others"])) / 1e3
    assert 8 * 0.02 <= found["cpu_seconds"] < 0.3 if busy else found["cpu_seconds"] < seconds / 4


def test_end_of_text_stops_nothing(tmp_path: Path) -> None:
    """Every token ends the text, and the folder's own settings slow and shorten what is generated."""
    model = write_model(tmp_path / "llama", "llama")
    GenerationConfig(eos_token_id=list(range(300)), max_length=5, num_beams=2, do_sample=True).save_pretrained(model)
    measured = worker(model)
    measured.load()
    found = measured.round()
    assert [len(found[f"generate {count}"]["others"]) for count in (4, 8)] == [3, 7]


# -- processes ---------------------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_reported_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Child.ask
    asked: list[tuple[int, str]] = []

    def killing(self: Child, do: str, **request: Any) -> dict[str, Any]:
        asked.append((self.process.pid, do))
        if do == "round" and asked.count((self.process.pid, do)) == 2 and self.process.pid == asked[0][0]:
            os.kill(self.process.pid, signal.SIGKILL)
        return ask(self, do, **({} if do == "load" else request))

    monkeypatch.setattr(Child, "ask", killing)
    monkeypatch.setattr(benchmark, "Children", lambda _, names: Children("tests.support.worker", names))
    arms = [Arm(name, "a model", "fp32", "sdpa") for name in ("first", "second")]
    result = measure(arms, WORKLOADS[:1], 2, "cpu", tmp_path, bar=False)
    assert arm(result, "first")["error"] == "killed (SIGKILL), as the system does when memory runs out"
    # The first that could be measured takes the place of the baseline.
    assert all(ratio["median"] == 1.0 for ratio in arm(result, "second")["ratio"].values())
    assert "Times as fast as second" in benchmark_table(result)
    for pid in {pid for pid, _ in asked}:
        assert not Path(f"/proc/{pid}").exists()


def test_a_child_that_ends_by_itself_says_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\necho nothing >&2\necho 'no such module' >&2\nexit 3\n")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    child = Child(WORKER)
    with pytest.raises(ArmFailed, match="ended with exit code 3: no such module"):
        child.ask("load", padding="x" * 100_000)
    child.close()


@pytest.mark.slow
def test_a_child_does_not_inherit_its_parents_peak(folder: Path) -> None:
    ballast = torch.ones(250_000_000)  # 1 GB
    child = Child(WORKER)
    llama = Arm("a", str(folder / "llama"), "fp32", "sdpa")
    child.ask("load", arm=llama, workloads=WORKLOADS, device="cpu")
    peaks = child.ask("round")["peaks"]
    assert peaks["peak_memory_mb"] < ballast.numel() * 4 / 1e6
    assert peaks["peak_reserved_mb"] is None
    child.close()


def test_memory_that_ran_out_is_said_to_have(folder: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        worker(folder / "llama", [Forward(10**10, 64)]).load()
    assert _reason(error.value) == "ran out of memory"


# -- the plan ----------------------------------------------------------------------------------------------------------------


def test_names_tell_all_arms_apart(folder: Path) -> None:
    other = write_model(folder / "again" / "gpt2")
    models = [str(folder / "gpt2"), str(other), str(folder / "llama"), str(folder / "llama")]
    names = [each.name for each in plan(models, ["fp32", "bf16"], ["sdpa"], SETTINGS)[0]]
    assert len(set(names)) == len(names) == 8
    assert names[0] == f"{folder}/gpt2 fp32"
    assert names[4:] == ["llama fp32", "llama bf16", "llama fp32 (2)", "llama bf16 (2)"]
    names = [each.name for each in plan([str(folder / "llama")], None, ["sdpa", "flash"], SETTINGS)[0]]
    assert names == ["llama fp32 sdpa", "llama fp32 flash"]


def test_all_mistakes_are_named_at_once(folder: Path) -> None:
    gpt2, llama = str(folder / "gpt2"), str(folder / "llama")
    settings = {"prompt_tokens": 32, "new_tokens": [1, 40], "forward_tokens": [65], "batches": None}
    with pytest.raises(UserError) as caught:
        plan(["nowhere/at/all", gpt2], ["fp32"], ["sdpa"], settings)
    assert caught.value.problems == [
        "MODEL: nowhere/at/all does not exist; give a hub id, a model folder or a .gguf file",
        f"--forward-tokens: must be within {gpt2}'s 64 positions, got 65; give at most 64",
        "--new-tokens: must be at least 2, got 1; the first token is timed apart from the others",
        f"--new-tokens: must be within {gpt2}'s 64 positions after a prompt of 32, got 40; give at most 32",
    ]
    settings = {"prompt_tokens": 63, "new_tokens": [2], "forward_tokens": [1]}
    with pytest.raises(UserError, match=r"--prompt-tokens: must leave room for new tokens in .*; give at most 62"):
        plan([llama], None, ["sdpa"], settings)


@pytest.mark.slow
def test_what_is_quantized_is_measured_as_it_is_and_not_quantized_again(folder: Path, tmp_path: Path) -> None:
    stored = tmp_path / "model-nf4"
    load_for_inference(str(folder / "gpt2"), "MODEL", "nf4", "sdpa", "cpu").save_pretrained(stored)
    arms, _ = plan([str(folder / "gpt2"), str(stored)], None, ["sdpa"], SETTINGS)
    assert [each.name for each in arms] == ["gpt2 fp32", "model-nf4 nf4"]
    assert [each.precision for each in plan([str(stored)], ["nf4"], ["sdpa"], SETTINGS)[0]] == ["nf4"]
    for wanted in (["nf4", "int8"], ["fp32"]):
        message = rf"^--precision: must be nf4 for .*model-nf4, which is nf4, got {wanted[-1]}; leave it out"
        with pytest.raises(UserError, match=message):
            plan([str(stored)], wanted, ["sdpa"], SETTINGS)
