"""What the verification of an exported classifier finds, on logits that are given."""

from typing import Any

import numpy as np
import pytest
import torch

from lightgpt2.tasks import Classification, Predictions
from lightgpt2.tasks.exported_classifier import BOUNDS, verify

TEXTS, CLASSES = 40, 3


class Data:
    """A split of texts that are numbers."""

    source = "numbers"

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels

    def scoring_loader(self, split: str) -> Any:
        for rows in torch.arange(TEXTS).split(16):
            labels = torch.from_numpy(self.labels)[rows]
            yield {
                "input_ids": rows[:, None],
                "attention_mask": torch.ones(len(rows), 1),
                "example": rows,
                "labels": labels,
            }


class Given(Classification):
    """PyTorch's logits."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = torch.from_numpy(logits).float()

    def predictions(self, model: Any, batch: Any, states: Any = ()) -> Predictions:
        return Predictions(self.logits[batch["example"]], torch.eye(CLASSES), batch["labels"])


class Engine:
    """The export's logits."""

    def __init__(self, logits: np.ndarray) -> None:
        self.given = logits.astype(np.float32)

    def logits(self, batch: Any) -> np.ndarray:
        return self.given[batch["input_ids"][:, 0]]


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(TEXTS, CLASSES)) * 4


def found(wanted: np.ndarray, exported: np.ndarray, precision: str, documents: int | None = None, **more: Any) -> Any:
    data = Data(wanted.argmax(axis=1))
    return verify(Given(wanted), Engine(exported), None, data, documents, precision, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", BOUNDS)
def test_equal_logits_pass(logits: np.ndarray, precision: str) -> None:
    result = found(logits, logits + 5, precision)  # what all classes have in common says nothing
    assert result["problems"] == []
    assert result["agreement"]["same"] == 1.0
    assert result["quality"]["after"]["accuracy"]["value"] == result["quality"]["ratio"] == 1.0
    assert [*result["metrics"]] == ["before", "after"]


def test_a_known_quality_is_kept_and_the_first_texts_only_are_scored(logits: np.ndarray) -> None:
    before = found(logits, logits, "fp32", 20)["quality"]["before"]
    result = found(logits, logits, "fp32", 20, before=before)
    assert result["quality"]["before"] is before
    assert [*result["metrics"]] == ["after"]
    assert result["agreement"]["texts"] == result["quality"]["after"]["examples"] == 20


@pytest.mark.parametrize("precision", BOUNDS)
def test_a_text_with_a_wide_margin_keeps_its_class(logits: np.ndarray, precision: str) -> None:
    """One with a narrow margin may lose it."""
    second, first = np.sort(logits, axis=1)[:, -2:].T
    margins = first - second
    bound = BOUNDS[precision][1] * float(np.sqrt((margins**2).mean()))
    for row, refused in ((int(margins.argmax()), True), (int(margins.argmin()), margins.min() > bound)):
        exported = logits.copy()
        order = exported[row].argsort()
        exported[row, order[-2:]] = exported[row, order[-2:][::-1]]
        result = found(logits, exported, precision)
        assert result["agreement"]["margin"] == pytest.approx(margins[row] / (bound / BOUNDS[precision][1]), rel=1e-3)
        said = [problem for problem in result["problems"] if "gets another class" in problem]
        assert bool(said) == refused


def test_lost_accuracy_errors_and_what_is_not_finite_are_said(logits: np.ndarray) -> None:
    exported = logits.copy()
    exported[:, 1] += 0.5
    said = found(logits, exported, "fp32")["problems"]
    assert any("off PyTorch's; at most 1% is allowed" in problem for problem in said)
    assert any("accuracy is" in problem for problem in found(logits, logits[:, ::-1].copy(), "int4")["problems"])
    exported[3] = np.nan
    for precision in BOUNDS:
        assert any("not finite" in problem for problem in found(logits, exported, precision)["problems"])
