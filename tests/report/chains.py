"""Ledgers as finished runs leave them, made up, so that every figure is known."""

import copy
import json
import math
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
MACHINE = {"name": "AMD EPYC", "device": "cpu", "threads": 1, "versions": {"torch": "2.13.0+cpu"}}
SETTINGS = {"prompt_tokens": 32, "new_tokens": [128, 256], "forward_tokens": 128, "batches": [1, 16], "rounds": 5}


def score(perplexity: float) -> dict[str, Any]:
    """A score with an interval that only it has."""
    return {
        "perplexity": perplexity,
        "interval_95": [perplexity * 0.9, perplexity * 1.1],
        "bits_per_byte": perplexity / 40,
        "tokens": 136774,
        "documents": 200,
    }


def arm(stage: str, folder: str, precision: str, weights: float, forward: float, tokens: float, **more: Any) -> Entry:
    """What a benchmark measured of one model."""
    operators = [
        {"name": name, "calls": 24, "self_ms": share * forward, "share": share, "device": "cpu"}
        for name, share in (("aten::addmm", 0.55), ("aten::_softmax", 0.2), ("aten::copy_", 0.1), ("aten::mul", 0.05))
    ]
    return {
        "name": f"{folder} {precision}",
        "source": f"checkpoints/{stage}/{folder}",
        "precision": precision,
        "attention": "sdpa",
        "attention_kernel": "flash",
        "weights_mb": weights,
        "embedding_mb": 113.25 if precision == "fp32" else 56.62,
        "load_mb": weights + 210,
        "peak_memory_mb": weights + 340,
        "peak_above_start_mb": weights + 60,
        "peak_reserved_mb": None,
        "load_seconds": 0.8,
        "forward": {
            "1x128": {"p50_ms": forward, "p95_ms": forward * 1.1},
            "16x128": {"p50_ms": 14 * forward, "p95_ms": 15 * forward},
        },
        "generate": {
            n: {
                "first_token_ms": forward / 2,
                "tokens_per_s": tokens * share,
                "token_p50_ms": 900 / tokens,
                "token_p95_ms": 1100 / tokens,
                "seconds": int(n) / tokens,
                "cpu_seconds": 0.9 * int(n) / tokens,
                "cpu_percent": 90.0,
            }
            for n, share in (("128", 1.0), ("256", 0.95))
        },
        "ratio": {"forward 1x128": {"median": 1.02, "low": 0.97, "high": 1.08}},
        "operators": operators,
        "trace": "tb-logs/x/trace.json",
    } | more


def benchmark(*arms: Entry) -> Entry:
    """A benchmark of some arms on the one machine."""
    return {"machine": copy.deepcopy(MACHINE), "settings": copy.deepcopy(SETTINGS), "arms": list(arms)}


def entry(
    stage: str, method: str, perplexity: float, parameters: int, before: Entry | None = None, **more: Any
) -> Entry:
    """A stage's entry; its parent is the model of the entry before it, or random weights."""
    parent = {"source": "config", "sha256": ""}
    quality = {"after": score(perplexity)}
    if before:
        parent = {"source": f"checkpoints/{before['stage']}/model", "sha256": f"{before['stage']}-hash"}
        quality["before"] = score(before["quality"]["after"]["perplexity"])
    sizes = {"parameters": parameters, "nonzero": parameters - 12, "embedding": 28311552}
    return {
        "stage": stage,
        "method": method,
        "config": {"model": {"class_path": method}},
        "parent": parent,
        "operations": [],
        "data": {
            "source": "news",
            "sha256": "6710af74acb2b25b1de0",
            "splits": {"train": {"documents": 1516, "tokens": 1110322}, "valid": {"documents": 200, "tokens": 136974}},
            "sequence_length": 128,
            "stride": 64,
            "mode": "packed",
        },
        "seed": 7,
        "steps": 600,
        "seconds": 412.5,
        "quality": quality,
        "sizes": sizes | {"megabytes": parameters * 4 / 1e6},
        "teacher": None,
        "versions": {"lightgpt2": "0.1.0", "torch": "2.13.0+cpu"},
        "config_sha256": f"{stage}-config",
    } | more


def quantized(before: Entry, op: str, perplexity: float, megabytes: float) -> Entry:
    """The entry of a quantized copy."""
    return entry(before["stage"], "PostTrainingQuantization", perplexity, before["sizes"]["parameters"], before) | {
        "operations": [{"op": op, "matched": 24, "linears": 25, "kept": {"lm_head": "tied to the embedding"}}],
        "sizes": before["sizes"] | {"megabytes": megabytes},
        "steps": 0,
        "seconds": 3.1,
        "config_sha256": f"{before['stage']}-{op}",
    }


def chain() -> dict[str, list[Entry]]:
    """A pipeline: a model from scratch, distilled, adapted, pruned and tuned, then quantized in two ways."""
    baseline = entry("quick/baseline", "FineTune", 44.22, 124439808, finished="2025-11-03T10:00:00+00:00")
    baseline["benchmark"] = benchmark(arm("quick/baseline", "model", "fp32", 497.8, 41.0, 24.5))
    baseline["curve"] = [[100, 310.4], [200, 120.7], [400, 60.2], [600, 44.22]]
    teacher = {"source": "checkpoints/quick/baseline/model", "sha256": "quick/baseline-hash"}
    layers: Entry = {"op": "extract_layers", "layers": [0, 2, 4, 7, 9, 11]}
    distilled = entry("quick/distilled", "Distill", 44.9, 81912576, baseline, operations=[layers], teacher=teacher)
    distilled["quality"] |= {"before": score(math.inf), "teacher": score(44.22)}
    distilled["benchmark"] = benchmark(
        arm("quick/distilled", "model", "fp32", 327.7, 21.3, 47.0),
        arm("quick/distilled", "model", "bf16", 163.9, 30.1, 41.2),
    )
    distilled["curve"] = [[100, 201.0], [300, 61.3], [600, 44.9]]
    distilled["training"] = {"peak_memory_mb": 2710.0}
    lora: Entry = {"op": "lora", "r": 8, "alpha": 32, "matched": 6, "trainable": 147456, "parameters": 82060032}
    merge: Entry = {"op": "merge", "matched": 6, "dense": True}
    adapted = entry("quick/adapted", "LoRA", 39.1, 81912576, distilled, operations=[lora, merge])
    adapted["benchmark"] = benchmark(arm("quick/adapted", "model", "fp32", 327.7, 21.6, 46.6))
    adapted["sweeps"] = {
        "model.lora.r": {
            "key": "model.lora.r", "values": [2, 4, 8],
            "arms": {"fit": [score(40.9), score(39.7), score(39.1)]}, "budget": 1.0, "largest_inside_budget": 8,
        }
    }  # fmt: skip
    l1: Entry = {"op": "global_l1", "criterion": "l1", "targets": "lora", "amount": 0.8, "tensors": 12, "weights": 147456,
                 "pruned": 117965, "achieved": 0.80000135}  # fmt: skip
    pruned = entry("quick/pruned", "LoRA", 39.6, 81912576, adapted, operations=[lora, l1, merge])
    pruned["benchmark"] = benchmark(arm("quick/pruned", "model", "fp32", 327.7, 21.2, 46.9))
    values = [0, 0.2, 0.4, 0.6, 0.8, 0.9]
    pruned["sweeps"] = {
        "sparsity": {
            "key": "sparsity", "values": values,
            "arms": {"l1": [score(39.1 + 2 * v**3) for v in values], "random": [score(39.1 + 9 * v) for v in values]},
            "budget": 1.0, "largest_inside_budget": 0.6,
        }
    }  # fmt: skip
    tuned = entry("quick/tuned", "FineTune", 38.2, 81912576, pruned, finished="2025-11-03T14:00:00+00:00")
    tuned["benchmark"] = benchmark(
        arm("quick/tuned", "model", "fp32", 327.7, 21.4, 47.2),
        arm("quick/tuned", "model", "bf16", 204.8, 30.2, 41.4),
        arm("quick/tuned", "model-nf4", "fp32", 180.2, 52.0, 22.1, embedding_mb=113.25),
        arm("quick/tuned", "model-int8", "fp32", 190.9, 18.2, 61.0, embedding_mb=113.25),
        {
            "name": "model fp16",
            "source": "checkpoints/quick/tuned/model",
            "precision": "fp16",
            "error": "ran out of memory",
        },
    )
    tuned["curve"] = [[100, 39.0], [600, 38.2]]
    history = [baseline, distilled, adapted, pruned, tuned]
    ledgers = {f"checkpoints/{e['stage']}/model": history[: i + 1] for i, e in enumerate(history)}
    ledgers["checkpoints/quick/tuned/model-nf4"] = [*history, quantized(tuned, "nf4", 38.9, 141.3)]
    ledgers["checkpoints/quick/tuned/model-int8"] = [*history, quantized(tuned, "int8", 38.3, 154.0)]
    return {name: copy.deepcopy(entries) for name, entries in ledgers.items()}  # each a file of its own


def write(folder: Path, ledgers: dict[str, list[Entry]]) -> Path:
    """Writes ledgers where the runs would have left them."""
    for name, entries in ledgers.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "ledger.json").write_text(json.dumps(entries))
    return folder
