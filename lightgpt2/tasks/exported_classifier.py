"""What was exported, held against the classifier that it was made from."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from lightgpt2.errors import Problem, UserError
from lightgpt2.models.quality import value_of
from lightgpt2.tasks.base import Row

# By how much the accuracy may be below the source's, beside one text; and the margin from which on a text must keep its class,
# as a share of the typical one. (A text's margin is the difference of its two largest logits, the typical one their root mean
# square.)
BOUNDS = {"fp32": (0.0, 0.02), "int8": (0.02, 0.5), "int4": (0.1, 1.0)}
# By how much a text's logits may be off, as a share of how much the logits of texts differ.
_ERROR = {"fp32": 0.01}
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

Logits = NDArray[np.floating[Any]]


@torch.inference_mode()
def verify(
    task: Any,
    engine: Any,
    model: PreTrainedModel,
    data: Any,
    documents: int | None,
    precision: str,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Score what was exported, and say what is out of bounds; see `Task.verify`. The engine is a `Classifier` of `runtime`."""
    pairs = list[tuple[Logits, Logits]]()
    rows: dict[str, list[Row]] = {"before": [], "after": []}
    for batch in tqdm(data.scoring_loader("valid"), desc="Scoring the export", leave=False, disable=None):
        kept = batch["example"] < (math.inf if documents is None else documents)
        texts = {name: value[kept] for name, value in batch.items() if isinstance(value, Tensor) and value.ndim}
        if not kept.any():
            continue
        found = engine.logits({name: texts[name].numpy() for name in _INPUTS if name in texts})
        wanted = task.predictions(model, texts).logits(slice(None), torch.float32)
        pairs.append((found, wanted.numpy()))
        rows["before"] += task.scored(wanted, texts)
        rows["after"] += task.scored(torch.from_numpy(found).float(), texts)
    if not rows["after"]:
        raise UserError(Problem("", f"no text of {data.source} to verify with", "give another with --data"))
    metrics = {label: task.metrics(scored) for label, scored in rows.items()}
    after, source = (task.quality(metrics[label]) for label in ("after", "before"))
    if before is not None:
        source = before
        del metrics["before"]
    agreement = _agreement(*(np.concatenate(each).astype(np.float64) for each in zip(*pairs, strict=True)))
    quality = {"before": source, "after": after, "ratio": value_of(after) / max(value_of(source), 1e-9)}
    problems = [*_problems(precision, value_of(source) - value_of(after), task.primary, agreement)]
    return {"quality": quality, "agreement": agreement, "problems": problems, "metrics": metrics}


def _agreement(found: Logits, wanted: Logits) -> dict[str, float]:
    """How far logits `[N, C]` are from PyTorch's.

    `same` is the share of texts with the same class; `margin` the largest margin of a text with another one, as a share of the
    typical; `error` the largest distance of a text's logits, as a share of how much those of texts differ (L2).
    """
    second, first = np.sort(wanted, axis=1)[:, -2:].T
    other = found.argmax(axis=1) != wanted.argmax(axis=1)
    typical = _size(first - second)
    off, spread = (each - each.mean(axis=1, keepdims=True) for each in (found - wanted, wanted))
    if len(spread) > 1:  # what all texts have in common hides nothing
        spread = spread - spread.mean(axis=0)
    return {
        "same": float(1 - other.mean()),
        "margin": float((first - second)[other].max(initial=0.0) / typical),
        "typical_margin": typical,
        "error": float(np.linalg.norm(off, axis=1).max() / _size(np.linalg.norm(spread, axis=1))),
        "texts": len(found),
    }


def _size(values: Logits) -> float:
    return max(float(np.sqrt(np.square(values).mean())), float(np.finfo(np.float32).tiny))


def _problems(precision: str, lost: float, primary: str, agreement: dict[str, float]) -> list[str]:
    """What is out of bounds; NaN is."""
    (most, margin), found = BOUNDS[precision], []
    if not lost <= most + 1 / agreement["texts"]:
        found.append(f"its {primary} is {lost:.1%} below the source's; at most {most:.1%} and one text are allowed")
    if not agreement["margin"] <= margin:
        what = (
            f"a text whose margin is {agreement['margin']:.2f} times the typical one gets another class than in PyTorch"
        )
        found.append(f"{what}; above {margin:.2f} none may")
    if not agreement["error"] <= (allowed := _ERROR.get(precision, math.inf)):
        said = "not finite" if math.isnan(agreement["error"]) else f"up to {agreement['error']:.2%} off PyTorch's"
        found.append(f"its logits are {said}; at most {allowed:.0%} is allowed")
    return found
