"""Ledgers as finished runs leave them, made up, so that every figure is known."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from lightgpt2.models.operations import KINDS, Operation, OperationKind
from lightgpt2.models.quality import Metric, quality, write_scores

Entry = dict[str, Any]
_AFTER = {"prompt_tokens": 32}
WORKLOADS = {"forward 1x128": {}, "forward 16x128": {}, "generate 128": _AFTER, "generate 256": _AFTER}


def score(value: float, metric: str = "perplexity") -> dict[str, Any]:
    """A quality with an interval that only it has: of language models, or of classifiers by their accuracy."""
    about = {"value": value, "interval_95": [value * 0.9, value * 1.1], "better": "lower", "link": "exp", "digits": 2}
    if metric == "perplexity":
        bits = {"value": value / 40, "interval_95": None, "better": "lower", "link": "identity", "digits": 4}
        return {metric: about, "bits_per_byte": bits, "primary": metric, "tokens": 136774, "documents": 200}
    return {metric: about | {"better": "higher", "link": "identity", "digits": 3}, "primary": metric, "texts": 872}


def arm(stage: str, folder: str, precision: str, weights: float, forward: float, tokens: float, **more: Any) -> Entry:
    """What a benchmark measured of one model."""
    spent = {"first_token_ms": forward / 2, "seconds": 128 / tokens, "cpu_seconds": 115 / tokens, "cpu_percent": 90.0}
    made: Entry = {"name": f"{folder} {precision}", "source": f"checkpoints/{stage}/{folder}", "precision": precision}
    made |= {"weights_mb": weights, "peak_memory_mb": weights + 340, "peak_reserved_mb": None, "trace": "trace.json"}
    return made | {
        "attention_kernel": "aten::_scaled_dot_product_flash",
        "forward": {
            "1x128": {"p50_ms": forward, "p95_ms": forward * 1.1},
            "16x128": {"p50_ms": 14 * forward, "p95_ms": 15 * forward},
        },
        "generate": {"128": {"tokens_per_s": tokens} | spent, "256": {"tokens_per_s": tokens * 0.95} | spent},
        "load_seconds": 0.25,
        "ratio": {key: {"median": 1.02, "low": 0.97, "high": 1.08} for key in WORKLOADS},
        "operators": [{"name": "aten::addmm", "calls": 24, "self_ms": forward / 2, "share": 0.5, "device": "cpu"}],
        **more,
    }


def benchmark(*arms: Entry) -> Entry:
    """A benchmark of some arms on the one machine."""
    machine = {"name": "AMD EPYC", "device": "cpu", "threads": 1, "versions": {"torch": "2.13.0+cpu"}}
    return {"machine": machine, "settings": {"rounds": 5, "workloads": WORKLOADS}, "arms": [*copy.deepcopy(arms)]}


def entry(stage: str, value: float, parameters: int = 100, before: Entry | None = None, **more: Any) -> Entry:
    """A stage's entry; its parent is the model of the entry before it, or random weights."""
    parent, scores = {"source": "config", "sha256": ""}, {"after": score(value, more.pop("metric", "perplexity"))}
    if before:
        parent = {"source": f"checkpoints/{before['stage']}/model", "sha256": f"{before['stage']}-hash"}
        scores["before"] = copy.deepcopy(before["quality"]["after"])
    data = {"source": "news", "sha256": "6710af74acb2", "splits": {"valid": {"documents": 200}}, "sequence_length": 128}
    made: Entry = {"stage": stage, "method": "FineTune", "parent": parent, "operations": [], "data": data, "seed": 7}
    made |= {"steps": 600, "seconds": 412.5, "quality": scores, "config_sha256": f"{stage}-config"}
    return made | {
        "sizes": {"parameters": parameters, "nonzero": parameters, "megabytes": parameters * 4 / 1e6},
        **more,
    }


def copied(before: Entry, operation: Operation, value: float, megabytes: float, **more: Any) -> Entry:
    """The entry of a copy in another format."""
    made = entry(before["stage"], value, before["sizes"]["parameters"], before, operations=[operation], **more)
    return made | {"sizes": before["sizes"] | {"megabytes": megabytes}, "method": "Conversion"}


def chain() -> dict[str, list[Entry]]:
    """A pipeline: a model from scratch, distilled, adapted, pruned and tuned, then quantized in two ways."""

    def add(name: str, value: float, before: Entry | None, *arms: Entry, **more: Any) -> Entry:
        full = arm(f"q/{name}", "model", "fp32", 327.7 if before else 497.8, *speeds[name])
        made = entry(f"q/{name}", value, 81912576 if before else 124439808, before, **more)
        return made | {"benchmark": benchmark(full, *arms)}

    speeds = {"baseline": (41.0, 24.5), "distilled": (21.3, 47.0), "adapted": (21.6, 46.6), "pruned": (21.2, 46.9)}
    speeds["tuned"] = (21.4, 47.2)
    lora, merge = KINDS["lora"].record(r=8), KINDS["merge"].record(dense=True)
    l1 = KINDS["global_l1"].record(criterion="l1", targets="lora", adapters=True, achieved=0.80000135)
    layers = KINDS["extract_layers"].record(layers=[0, 2, 4, 7, 9, 11])
    baseline = add("baseline", 44.22, None, curve=[[100, 310.4], [600, 44.22]])
    baseline["samples"] = [{"prompt": "A", "before": None, "after": "one"}]
    teacher = {"source": "checkpoints/q/baseline/model", "sha256": "q/baseline-hash"}
    half = arm("q/distilled", "model", "bf16", 163.9, 30.1, 41.2)
    distilled = add("distilled", 44.9, baseline, half, operations=[layers], teacher=teacher)
    distilled["quality"] |= {"before": score(float("inf")), "teacher": score(44.22)}
    adapted = add("adapted", 39.1, distilled, operations=[lora, merge])
    pruned = add("pruned", 39.6, adapted, operations=[lora, l1, merge])
    arms = {"l1": [score(39.1), score(40.2)], "random": [score(39.1), score(52.5)]}
    pruned["sweeps"] = {"sparsity": {"key": "sparsity", "values": [0, 0.8], "arms": arms}}
    tuned = add(
        "tuned", 38.2, pruned,
        arm("q/tuned", "model", "bf16", 204.8, 30.2, 41.4),
        arm("q/tuned", "model-nf4", "fp32", 180.2, 52.0, 22.1),
        arm("q/tuned", "model-int8", "fp32", 190.9, 18.2, 61.0),
        {"name": "fp16", "source": "checkpoints/q/tuned/model", "precision": "fp16", "error": "ran out of memory"},
        curve=[[100, 39.0], [600, 38.2]], samples=[{"prompt": "A", "before": "x", "after": "two"}],
    )  # fmt: skip
    history = [baseline, distilled, adapted, pruned, tuned]
    ledgers = {f"checkpoints/{e['stage']}/model": history[: i + 1] for i, e in enumerate(history)}
    for form, value, megabytes in (("nf4", 38.9, 141.3), ("int8", 38.3, 154.0)):
        rounded = copied(tuned, KINDS[form].record(matched=24, linears=25), value, megabytes)
        ledgers[f"checkpoints/q/tuned/model-{form}"] = [*history, rounded]
    return {name: copy.deepcopy(entries) for name, entries in ledgers.items()}  # each a file


def foreign() -> dict[str, list[Entry]]:
    """A classifier that a stage and a conversion of another package made smaller."""
    halve = OperationKind("halve", changes_start=True, describe=lambda o: f"{o['share']:.0%} of the layers halved")
    shrink = OperationKind("shrink", conversion="quantized", describe=lambda o: "shrunk to 3 bits")
    given = {"source": "hub/classifier", "sha256": ""}
    stage = entry("small", 0.9, 1000, metric="accuracy", parent=given, operations=[halve.record(share=0.5)])
    stage["quality"] |= {"before": score(0.5, "accuracy"), "source": score(0.91, "accuracy")}
    copy = copied(stage, shrink.record(), 0.85, 0.0001, metric="accuracy")
    return {"checkpoints/small/model": [stage], "checkpoints/small/model-shrunk": [stage, copy]}


def write(folder: Path, ledgers: dict[str, list[Entry]]) -> Path:
    """Writes ledgers where the runs would have left them."""
    for name, entries in ledgers.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "ledger.json").write_text(json.dumps(entries))
    return folder


def paired(folder: Path, metric: str, ratio: float, noise: float, examples: int = 100, label: str = "after") -> Entry:
    """Writes the scores of a model, `ratio` times as large in all and with noise in each example; gives its quality."""
    generator = np.random.default_rng(0)
    base, spread = generator.uniform(1, 9, examples), generator.normal(0, noise, examples)
    spread -= (base * spread).sum() / base.sum()
    made = Metric(metric, "lower" if metric == "loss" else "higher", base * (ratio + spread), base)
    folder.mkdir(parents=True, exist_ok=True)
    write_scores(folder, {label: {metric: made}})
    return quality({metric: made}, metric, {"examples": examples})
