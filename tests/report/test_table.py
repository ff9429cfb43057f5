"""Tables and lines in the terminal."""

from pathlib import Path

import pytest

from lightgpt2.report.table import (
    benchmark_table,
    comparison,
    encoder_line,
    exported_line,
    operators_markdown,
    precisions,
    sweep_table,
)
from tests.report.chains import arm, benchmark, score


def test_the_table_of_a_run_is_that_of_its_metrics() -> None:
    sizes = {"parameters": 1124480, "embedding": 262144, "megabytes": 4.4986}
    figures = {"before": score(8123.456) | sizes, "after": score(78.5) | sizes}
    figures["after"]["perplexity"]["interval_95"] = None
    assert comparison(figures).splitlines() == [
        "",
        "        perplexity      95 % interval  bits/byte  parameters  embedding  MB on disk",
        "-----------------------------------------------------------------------------------",
        "before     8123.46  7311.11 - 8935.80   203.0864   1,124,480    262,144        4.50",
        "after        78.50                        1.9625   1,124,480    262,144        4.50",
    ]
    header = comparison({"after": score(0.9, "accuracy") | sizes}).splitlines()[1]
    assert header == "       accuracy  95 % interval  parameters  embedding  MB on disk"


def test_the_table_of_precisions_has_the_primary_metric_only() -> None:
    rows = {
        "bf16": score(40.0) | {"memory": 2.0, "megabytes": None},
        "nf4": score(41.0) | {"memory": None, "megabytes": 1.0, "quantized": "8/9"},
    }
    assert precisions(rows).splitlines()[1:] == [
        "      perplexity  95 % interval  weights MB  MB on disk  linear layers quantized",
        "--------------------------------------------------------------------------------",
        "bf16       40.00  36.00 - 44.00        2.00                                 none",
        "nf4        41.00  36.90 - 45.10                    1.00                      8/9",
    ]


@pytest.mark.parametrize(
    ("largest", "said"), [(0.5, "the largest value inside it is 0.5"), (None, "no value is inside it")]
)
def test_the_table_of_a_sweep_ends_with_the_largest_value_inside_the_budget(largest: float | None, said: str) -> None:
    point = score(0.9, "accuracy") | {"ratio": 1.0, "ratio_95": None}
    found = {"key": "sparsity", "values": [0.0, 0.5], "arms": {"l1": [point, point], "random": [point, point]}}
    found |= {"budget_percent": 2.0, "largest_inside_budget": largest}
    _, header, _, *rows, _, verdict = sweep_table(found).splitlines()
    assert header == "sparsity  l1 accuracy  95 % interval  random accuracy  95 % interval"
    assert rows[1] == "0.5             0.900  0.810 - 0.990            0.900  0.810 - 0.990"
    assert verdict == f"With a budget of 2 % {said}."


def test_a_benchmark_has_a_row_for_each_arm_and_a_line_for_each_failure() -> None:
    failed = {"name": "broken", "error": "ran out of memory"}
    result = benchmark(arm("a", "model", "fp32", 10, 20.5, 30), failed)
    shown = benchmark_table(result)
    faster = ["1.02", "(0.97", "-", "1.08)"]
    assert [line.split()[2:] for line in shown.splitlines() if line.strip().startswith("model fp32")] == [
        ["10.0", "350.0", "0.25", "flash"],
        ["20.50", "22.55", *faster],
        ["287.00", "307.50", *faster],
        ["10.25", "30.0", "tokens", *faster],
        ["10.25", "28.5", "tokens", *faster],
        ["4.267", "3.833", "90", "4.267", "3.833", "90"],
    ]
    assert "generate: prompt tokens 32" in shown
    assert "Times as fast as model fp32" in shown
    assert shown.splitlines()[-1] == "broken: not measured: ran out of memory"
    assert benchmark_table(benchmark(failed)) == "\nbroken: not measured: ran out of memory"
    assert "| aten::addmm | 24 | 10.250 | 50.0% | cpu |" in operators_markdown(result["arms"][0])


def test_a_model_that_takes_most_of_a_card_is_named() -> None:
    found = benchmark(arm("a", "big", "fp32", 10, 20, 30), arm("b", "small", "fp32", 10, 20, 30))
    found["machine"]["memory_mb"] = 1000.0
    for each, reserved in zip(found["arms"], (810.0, 790.0), strict=True):
        each["peak_reserved_mb"] = reserved
    assert benchmark_table(found).splitlines()[-1] == "big fp32: it reserved 81% of the card's memory"
    found["arms"].pop(0)
    assert "reserved" not in benchmark_table(found)


def test_an_export_is_told_in_one_line() -> None:
    about = {"bytes": {"a": 2_000_000, "b": 345_000}, "validation": "news", "agreement": {"source": 0.98, "cache": 1.0}}
    quality = {"before": score(40.0), "after": score(41.0)}
    assert exported_line(Path("m"), about | {"quality": quality}) == (
        "m: 2.35 MB; perplexity 41.00, the source's 40.00 (136774 tokens of news); outputs as in PyTorch 98.0%, "
        "as without the cache 100.0%"
    )
    quality = {"before": score(0.9, "accuracy"), "after": score(0.8, "accuracy")}
    assert exported_line(Path("m"), about | {"quality": quality, "agreement": {}}) == (
        "m: 2.35 MB; accuracy 0.800, the source's 0.900 (872 texts of news)"
    )
    cosine = {"mean": 0.99999, "least": 0.9, "texts": 7}
    assert encoder_line(Path("m"), about | {"cosine": cosine}) == (
        "m: 2.35 MB; cosine to PyTorch 0.99999, 0.90000 at least (7 texts of news)"
    )
