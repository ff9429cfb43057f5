"""The classes of a classifier: their table, intervals and pictures."""

import copy
from typing import Any

import numpy as np
import pytest

from lightgpt2.models.quality import Metric, quality
from lightgpt2.report.confusion import class_rows, confusion_image, confusion_of, intervals
from lightgpt2.report.document import compose
from lightgpt2.report.plots import confusion_plot
from lightgpt2.report.rows import models
from lightgpt2.report.table import class_table, comparison
from tests.report.chains import Entry, entry

CONFUSION = {"classes": ["bad", "good", "none"], "counts": [[40, 10, 0], [5, 70, 0], [1, 1, 0]]}


def scored(confusion: Any = CONFUSION, right: int = 110, count: int = 127) -> dict[str, Any]:
    numerators = np.array([1.0] * right + [0.0] * (count - right))
    metric = Metric("accuracy", "higher", numerators, np.ones(count), details={"confusion": confusion})
    return quality({"accuracy": metric}, "accuracy", {"examples": count})


def chain(confusion: Any = CONFUSION) -> list[Entry]:
    first = entry("classifier", 0.5, metric="accuracy")
    first["quality"]["after"] = scored(confusion)
    return [first]


def test_a_class_has_its_texts_recall_and_precision() -> None:
    assert class_rows(scored()["accuracy"]) == [
        ["bad", "50", "0.8000", "0.8696"],
        ["good", "75", "0.9333", "0.8642"],
        ["none", "2", "0.0000", "–"],  # never given: it has no precision
    ]


def test_the_terminal_has_both_intervals_and_a_narrow_table() -> None:
    lines = class_table(scored()).splitlines()
    assert lines[2].startswith("95 % of 0.8661 over 127 texts: 0.8")
    assert "(bootstrap)" in lines[2]
    assert "(Wilson)" in lines[2]
    assert lines[4].split() == ["class", "texts", "recall", "precision"]
    assert max(map(len, lines)) <= 100
    header = comparison({"after": scored() | {"parameters": 1, "embedding": 1, "megabytes": 1}}).splitlines()[1]
    assert header.split() == ["accuracy", "95", "%", "interval", "parameters", "embedding", "MB", "on", "disk"]
    assert class_table({"perplexity": {"value": 3.0}, "primary": "perplexity"}) == ""


def test_few_texts_are_said_to_say_little() -> None:
    few = {"classes": ["a", "b"], "counts": [[9, 1], [1, 9]]}
    assert intervals(scored(few, 18, 20)["accuracy"]).endswith("; an interval over so few says little")
    assert "says little" not in intervals(scored()["accuracy"])


def test_the_report_shows_the_last_models_classes() -> None:
    text, plots = compose(models({"checkpoints/classifier/model": chain()}), 2, 10)
    assert "## Classes" in text
    assert "| good | 75 | 0.9333 | 0.8642 |" in text
    (plot,) = (plot for plot in plots if plot.name == "confusion-1")
    assert f"report-plots/{plot.name}.svg" in text
    for number in (40, 10, 70):
        assert f">{number}</text>" in plot.svg
    assert "confusion" not in text.split("## Classes")[0], "no column of the main table"


def test_classifiers_are_drawn_by_accuracy_against_size_speed_and_latency() -> None:
    workloads = {"forward 1x32": {}, "texts batch 16": {"count": 64}}
    stages: list[Entry] = []
    for name, right, ms in (("teacher", 110, 10.0), ("student", 100, 4.0)):
        figures = {"forward": {"1x32": {"p50_ms": ms}}, "texts": {"batch 16": {"texts_per_s": 1000 / ms}}}
        ratio = {key: {"median": 1.0, "low": 1.0, "high": 1.0} for key in workloads}
        arm = {"name": name, "source": f"checkpoints/{name}/model", "precision": "fp32", "ratio": ratio, **figures}
        made = {"machine": {"name": "x"}, "settings": {"rounds": 3, "workloads": workloads}, "arms": [arm]}
        stages.append(entry(name, 0.5, int(1e5 * ms), *stages[-1:], metric="accuracy", benchmark=made))
        stages[-1]["quality"]["after"] = scored(right=right)
    ledgers = {"checkpoints/teacher/model": stages[:1], "checkpoints/student/model": stages}
    plots = {plot.name: plot for plot in compose(models(ledgers), 2, 10)[1]}
    assert [plots[name].title for name in ("size-1", "speed-1", "latency-1")] == [
        "accuracy against MB on disk", "accuracy against texts/s at batch 16", "accuracy against forward 1x32, ms",
    ]  # fmt: skip
    for name in ("size-1", "speed-1", "latency-1"):
        assert plots[name].svg.count("<circle") == 2
        assert all(f">{stage}</text>" in plots[name].svg for stage in ("teacher", "student"))
        assert "accuracy (higher is better)" in plots[name].svg


def test_an_image_has_a_cell_for_each_pair_of_classes() -> None:
    image = confusion_image(scored())
    assert image is not None
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert image.shape[0] > 3 * 40
    assert confusion_image({"primary": "accuracy"}) is None


@pytest.mark.parametrize(
    "damaged",
    [None, [], {"classes": ["a", "b"]}, CONFUSION | {"counts": [[1, 2, 3]]}, CONFUSION | {"counts": [["x"] * 3] * 3}],
)
def test_what_is_no_matrix_is_left_out(damaged: Any) -> None:
    assert confusion_of({"confusion": damaged}) is None
    assert confusion_plot({"confusion": damaged}, "x", "m") is None
    text, _ = compose(models({"checkpoints/classifier/model": copy.deepcopy(chain(damaged))}), 2, 10)
    assert "## Classes" not in text
