"""Classifiers as arms of a benchmark: in PyTorch, with its dynamic INT8, with adapters beside them, and as graphs."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import lightgpt2
from lightgpt2.conversions.onnx.decoder import Forms
from lightgpt2.conversions.onnx.encoder import write_encoder
from lightgpt2.errors import UserError
from lightgpt2.measure.base import Worker
from lightgpt2.measure.plan import plan
from lightgpt2.measure.worker import worker_of
from lightgpt2.models.quantization import DYNAMIC, load_for_inference
from lightgpt2.models.workloads import Forward, Texts, Workload
from lightgpt2.report.table import benchmark_table
from tests.support.cli import succeed, write_config
from tests.support.mistakes import spoilt
from tests.support.models import make_classifier, write_classifier, write_model
from tests.support.onnx_decoder import seal

SETTINGS: dict[str, Any] = {"forward_tokens": [8], "batches": [2], "concurrency": [2]}
WORKLOADS: list[Workload] = [Forward(1, 8, 40), Texts((5, 9, 3, 7), 2), Texts((5, 9, 3, 7), threads=2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT and a GPT-2 that classify, the BERT's graph, and a GPT-2 that writes."""
    folder = tmp_path_factory.mktemp("classifiers")
    for family in ("bert", "gpt2"):
        make_classifier(family).save_pretrained(folder / family)
    write_model(folder / "writer")
    model = make_classifier("bert")
    (folder / "graph").mkdir()
    write_encoder(model, folder / "graph", Forms())
    model.config.save_pretrained(folder / "graph")
    seal(folder / "graph", {"format": "onnx", "bytes": {"model.onnx": 1000}})
    return folder


def test_the_arms_of_classifiers_read_texts(folder: Path) -> None:
    models = [str(folder / "bert"), str(folder / "graph")]
    arms, workloads = plan(models, None, ["sdpa"], SETTINGS)
    assert [arm.name for arm in arms] == ["bert fp32", "graph onnx"]
    assert [work.key for work in workloads] == ["forward 1x8", "texts batch 2", "texts 2 threads"]
    _, (*_, texts) = plan(models[:1], None, ["sdpa"], SETTINGS | {"batches": [128]})
    assert isinstance(texts, Texts)
    assert len(texts.lengths) == 128  # so many that the batch is full
    arms, _ = plan(models[:1], ["fp32", DYNAMIC], ["sdpa"], SETTINGS)
    assert [arm.precision for arm in arms] == ["fp32", DYNAMIC]


def test_what_a_classifier_does_not_do_and_models_of_two_tasks_are_refused(folder: Path) -> None:
    bert, writer = str(folder / "bert"), str(folder / "writer")
    with pytest.raises(UserError, match=r"^--new-tokens: has no meaning for Classification; remove it$"):
        plan([bert], None, ["sdpa"], {"new_tokens": [4], "prompt_tokens": None})
    with pytest.raises(UserError, match=r"^--concurrency: has no meaning for LanguageModeling; remove it$"):
        plan([writer], None, ["sdpa"], SETTINGS | {"batches": None})
    with pytest.raises(
        UserError, match=r"^MODEL: the models have different tasks: .*bert \(Classification\), .*writer"
    ):
        plan([bert, writer], None, ["sdpa"], {})
    with pytest.raises(UserError, match=r"^--precision: must be fp32 or bf16 or fp16 or nf4 or int8 for"):
        plan([bert], [DYNAMIC], ["sdpa"], SETTINGS, device="cuda:0")


@pytest.mark.parametrize(
    ("model", "precision", "attention", "kernel", "product"),
    [
        ("bert", "fp32", "sdpa", "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::addmm"),
        ("bert", DYNAMIC, "sdpa", "aten::_scaled_dot_product_flash_attention_for_cpu", "quantized::linear_dynamic"),
        ("gpt2", "fp32", "eager", "eager", "aten::addmm"),
        ("graph", "onnx", "graph", "Attention", "Conv"),
    ],
)
def test_each_is_measured_and_profiled(
    folder: Path, tmp_path: Path, model: str, precision: str, attention: str, kernel: str, product: str
) -> None:
    (arm,) = (each for each in plan([str(folder / model)], [precision], [attention], SETTINGS)[0])
    worker: Worker = worker_of(arm, WORKLOADS, "cpu")
    sizes = worker.load()
    assert sizes["weights_mb"]
    found = worker.round()
    assert len(found["forward 1x8"]) == 40
    assert len(found["texts batch 2"]["calls"]) == 2
    assert len(found["texts 2 threads"]["calls"]) == 4
    profile = worker.profile(tmp_path / "trace.json")
    assert (tmp_path / "trace.json").stat().st_size
    assert profile["attention_kernel"] == kernel
    names = {operator["name"] for operator in profile["operators"]}
    assert product in names


def test_dynamic_int8_leaves_the_head_and_takes_a_quarter_of_the_layers(folder: Path) -> None:
    plain, rounded = (load_for_inference(str(folder / "bert"), "m", p, "sdpa", "cpu") for p in ("fp32", DYNAMIC))
    assert isinstance(rounded.classifier, torch.nn.Linear)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected, found = plain(ids).logits, rounded(ids).logits
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))
    with pytest.raises(UserError, match=r"^dynamic-int8: PyTorch quantizes nn.Linear, and .* is Conv1D; choose"):
        load_for_inference(str(folder / "gpt2"), "m", DYNAMIC, "sdpa", "cpu")


def write_adapters(folder: Path, base: str, saved: list[str], **settings: Any) -> peft.PeftModel:
    """The adapters of a classifier of three classes, trained to something, with the modules that are saved whole."""
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    made = {"target_modules": "all-linear", "init_lora_weights": False, "task_type": "SEQ_CLS", **settings}
    adapted = peft.get_peft_model(model, peft.LoraConfig(modules_to_save=saved, **made))
    adapted.save_pretrained(str(folder))
    return adapted.eval()


def test_adapters_are_measured_beside_their_base_with_the_head_that_they_brought(tmp_path: Path) -> None:
    base = str(tmp_path / "base")
    make_classifier("bert", hidden_size=64, intermediate_size=128).base_model.save_pretrained(base)
    adapted = write_adapters(tmp_path / "adapter", base, ["classifier", "bert.pooler"])
    adapter, ids = str(tmp_path / "adapter"), torch.arange(5, 25)[None]
    arms, workloads = plan([adapter], ["fp32", "nf4", DYNAMIC], ["sdpa"], SETTINGS)
    assert [arm.name for arm in arms] == ["adapter fp32", "adapter nf4", f"adapter {DYNAMIC}"]
    assert workloads == plan([adapter], None, ["sdpa"], SETTINGS)[1]
    with torch.no_grad():
        expected = adapted(ids).logits
        for arm, near in zip(arms, (1e-6, 0.5, 0.1), strict=True):
            model = load_for_inference(adapter, "MODEL", arm.precision, "sdpa", "cpu")
            assert any(".lora_A." in name for name, _ in model.named_parameters()), "they are not merged"
            torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=near * float(expected.abs().max()))
    half = load_for_inference(adapter, "MODEL", "bf16", "sdpa", "cpu")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_adapters_that_make_no_model_of_their_base_are_refused(tmp_path: Path) -> None:
    base = str(tmp_path / "base")
    make_classifier("bert").base_model.save_pretrained(base)
    write_adapters(tmp_path / "a", base, ["bert.pooler"])
    with pytest.raises(UserError, match=r"^MODEL: .*a is a folder of adapters; give the model that they are merged"):
        lightgpt2.load(str(tmp_path / "a"), key="MODEL")
    about = tmp_path / "a" / "adapter_config.json"
    weights = tmp_path / "a" / "adapter_model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if "classifier" not in name}
    save_file(kept, weights)
    with pytest.raises(UserError, match=r"^MODEL: .*a and .*base have no classifier; give adapters with a head$"):
        plan([str(tmp_path / "a")], None, ["sdpa"], SETTINGS)
    about.write_text(json.dumps(json.loads(about.read_text()) | {"task_type": "TOKEN_CLS"}))
    with pytest.raises(
        UserError, match=r"^MODEL: .*a: task_type in its .* must be CAUSAL_LM or SEQ_CLS or SEQ_2_SEQ_LM, got TOKEN"
    ):
        plan([str(tmp_path / "a")], None, ["sdpa"], SETTINGS)


@pytest.mark.slow
def test_the_callback_measures_adapters_merged_and_as_they_were_trained(tmp_path: Path) -> None:
    write_classifier(tmp_path / "teacher", hidden_size=64, intermediate_size=128)
    settings = SETTINGS | {"rounds": 1, "half": None}
    task = {"class_path": "lightgpt2.tasks.Classification"}
    method = {"class_path": "lightgpt2.methods.QLoRA", "init_args": {"task": task, "model": "teacher"}}
    data = {"class_path": "lightgpt2.data.ClassificationData"}
    data["init_args"] = {"source": "requirements:200", "max_length": 32}  # type: ignore[assignment]
    benchmark = {"class_path": "lightgpt2.callbacks.InferenceBenchmark", "init_args": settings}
    config = spoilt({"model": method, "data": data, "trainer.max_steps": 2, "trainer.callbacks": [benchmark]})
    succeed(tmp_path, "fit", "--config", str(write_config(tmp_path / "c.yaml", config)), "--run", "r")
    merged, unmerged = json.loads((tmp_path / "checkpoints/r/benchmark.json").read_text())["arms"]
    assert [merged["name"], unmerged["name"]] == ["model fp32", "adapter nf4"]
    assert unmerged["weights_mb"] < merged["weights_mb"]
    assert unmerged["ratio"].keys() == merged["ratio"].keys()
    readme = (tmp_path / "checkpoints/r/adapter/README.md").read_text()
    assert "AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=classes)" in readme


def test_the_table_has_a_block_for_each_workload_and_no_generation() -> None:
    figures = {"1x8": {"p50_ms": 1.25, "p95_ms": 2.5}}
    texts = {"batch 16": {"texts_per_s": 810.0, "p50_ms": 20.0, "p95_ms": 30.0}}
    arm = {
        "name": "m fp32", "weights_mb": 9.0, "peak_memory_mb": 99.0, "load_seconds": 0.5, "forward": figures,
        "texts": texts, "ratio": {key: {"median": 1, "low": 1, "high": 1} for key in ("forward 1x8", "texts batch 16")},
    }  # fmt: skip
    about = {"count": 64, "tokens": 1400, "longest": 60}
    result = {
        "machine": {"name": "x", "threads": 2, "versions": {"torch": "2"}},
        "settings": {"rounds": 3, "workloads": {"forward 1x8": {}, "texts batch 16": about, "texts 1 thread": about}},
        "arms": [arm],
    }
    lines = benchmark_table(result).splitlines()
    assert [line for line in lines if line.startswith(("forward", "texts"))] == [
        "forward 1x8", "texts batch 16", "texts: count 64, tokens 1400, longest 60",
    ]  # fmt: skip
    rows = [line.split() for line in lines if line.startswith("  m fp32")]
    assert rows == [
        ["m", "fp32", "1.25", "2.50", "1.00", "(1.00", "-", "1.00)"],
        ["m", "fp32", "20.00", "30.00", "810.0", "texts", "1.00", "(1.00", "-", "1.00)"],
    ]
    assert max(map(len, lines)) <= 100
