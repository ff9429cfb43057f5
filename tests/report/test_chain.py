"""Ledgers to rows, comparisons and verdicts."""

import copy
import itertools
import math
import random
from typing import Any

import pytest

from lightgpt2.report.chain import Model, models
from lightgpt2.report.savings import savings, sentences
from lightgpt2.report.verdicts import Comparison, compare, judge
from lightgpt2.report.words import dense_note, overall, sentence
from tests.report.chains import Entry, arm, benchmark, chain, entry, quantized, score

RANKS = ["outside the budget", "does not pay", "quality only", "pays"]


def rows_of(*histories: list[Entry]) -> dict[str, Model]:
    """The rows by name of runs whose histories are given."""
    return {
        row.name: row
        for row in models({f"checkpoints/{history[-1].get('stage')}/model": history for history in histories})
    }


def of(rows: dict[str, Model], name: str, budget: float = 1.0, gain: float = 10.0) -> Comparison:
    return compare(rows[name], budget, gain)


@pytest.fixture
def rows() -> dict[str, Model]:
    return {row.name: row for row in models(chain())}


# -- rows ------------------------------------------------------------------------------------------------------------------


def test_rows_stand_in_the_order_of_the_chain_whatever_the_order_of_folders() -> None:
    expected = [
        "baseline",
        "distilled",
        "distilled bf16",
        "adapted",
        "pruned",
        "tuned",
        "tuned bf16",
        "tuned int8",
        "tuned nf4",
    ]
    ledgers = list(chain().items())
    for seed in range(5):
        random.Random(seed).shuffle(ledgers)
        assert [row.name for row in models(dict(ledgers))] == expected


def test_stages_of_one_depth_stand_in_the_order_in_which_they_ended() -> None:
    first = entry("first", "FineTune", 40, 100)
    late = entry("a", "FineTune", 39, 100, first, finished="2025-01-02T00:00:00")
    early = entry("b", "FineTune", 38, 100, first, finished="2025-01-01T00:00:00")
    assert list(rows_of([first], [first, late], [first, early])) == ["first", "b", "a"]


def test_branches_are_compared_with_their_own_parent() -> None:
    first = entry("first", "FineTune", 40, 100)
    a, b = entry("a", "FineTune", 50, 100, first), entry("b", "FineTune", 20, 100, first)
    rows = rows_of([first], [first, a], [first, b])
    assert list(rows) == ["first", "a", "b"]
    assert rows["b"].parent is rows["a"].parent is rows["first"]
    assert of(rows, "b").before == 40


def test_figures_come_from_the_arm_of_the_model_and_precision(rows: dict[str, Model]) -> None:
    weights = {name: row.figures.get("weights") for name, row in rows.items() if row.stage.name == "tuned"}
    assert weights == {"tuned": 327.7, "tuned bf16": 204.8, "tuned int8": 190.9, "tuned nf4": 180.2}
    assert rows["tuned nf4"].figures["forward 16x128"] == 14 * 52.0
    assert rows["tuned nf4"].figures["first token"] == 26.0
    assert rows["tuned nf4"].figures["tokens 256"] == pytest.approx(22.1 * 0.95)
    assert rows["distilled"].figures["training memory"] == 2710.0
    assert "training memory" not in rows["tuned"].figures
    assert "tuned fp16" not in rows, "it ran out of memory"


def test_ancestors_without_a_folder_are_rows_and_the_newest_copy_of_an_entry_counts() -> None:
    ledgers = {k: v for k, v in chain().items() if "tuned" in k}
    assert [row.name for row in models(ledgers)][:3] == ["baseline", "distilled", "distilled bf16"]
    ledgers = chain()
    for entries in ledgers.values():  # benchmarked after its descendants were made
        for copied in entries[:-1]:
            copied.pop("benchmark", None)
    assert {row.name: row for row in models(ledgers)}["distilled"].figures["weights"] == 327.7


def test_a_descendant_of_an_earlier_fit_is_not_compared_with_the_newer_one() -> None:
    first, again = entry("first", "FineTune", 40, 100), entry("first", "FineTune", 30, 100, seconds=99.0)
    rows = rows_of([again], [first, entry("next", "FineTune", 35, 100, first)])
    assert set(rows) == {"first", "first (an earlier fit)", "next"}
    assert rows["next"].parent is rows["first (an earlier fit)"]
    assert of(rows, "next").before == 40


def test_the_untouched_source_is_a_row_only_where_it_was_scored() -> None:
    tuned = entry("tuned", "FineTune", 30, 100, parent={"source": "gpt2", "sha256": ""})
    assert list(rows_of([tuned])) == ["gpt2 (untouched)", "tuned"]
    tuned["quality"]["before"] = score(33.5)
    rows = rows_of([tuned])
    assert rows["gpt2 (untouched)"].figures["perplexity"] == 33.5
    assert of(rows, "tuned").source == of(rows, "tuned").before == 33.5
    fresh = entry("fresh", "FineTune", 30, 100)
    fresh["quality"]["before"] = score(2000.0)
    rows = rows_of([fresh])
    assert list(rows) == ["fresh"]
    assert of(rows, "fresh").verdict == "the start"


def test_a_model_with_fewer_layers_is_not_its_source() -> None:
    hub = {"source": "gpt2", "sha256": ""}
    cut = entry("cut", "Distill", 30, 100, parent=hub, operations=[{"op": "extract_layers", "layers": [0, 3]}])
    cut["quality"] |= {"before": score(9000.0), "teacher": score(25.0)}
    assert of(rows_of([cut]), "cut").source is None, "nobody says that the teacher is the source"
    cut["teacher"] = hub
    assert of(rows_of([cut]), "cut").source == 25.0


def test_perplexities_of_two_texts_are_not_compared() -> None:
    first = entry("first", "FineTune", 40, 100)
    moved = entry("moved", "FineTune", 12, 100, first)
    moved["data"] |= {"sha256": "another"}
    moved["quality"]["before"] = score(55.0)
    after = entry("after", "FineTune", 12.5, 100, moved, data=moved["data"])
    rows = rows_of([first], [first, moved], [first, moved, after])
    assert of(rows, "moved").before == of(rows, "moved").source == of(rows, "after").source == 55.0
    assert of(rows, "after").before == 12
    del moved["quality"]["before"]
    rows = rows_of([first], [first, moved], [first, moved, after])
    assert of(rows, "moved").before is None
    assert of(rows, "after").verdict == "not measured"


@pytest.mark.parametrize("key", ["name", "device", "threads"])
def test_figures_of_two_machines_are_not_compared(key: str) -> None:
    ledgers = chain()
    ledgers["checkpoints/quick/distilled/model"][-1]["benchmark"]["machine"][key] = "another"
    rows = {row.name: row for row in models(ledgers)}
    compared = of(rows, "distilled")
    assert [k for k, gain in compared.gains.items() if gain is not None] == ["disk"]
    assert "not compared" in sentence(compared, 1, 10)
    versions: dict[str, Any] = ledgers["checkpoints/quick/distilled/model"][-1]["benchmark"]["machine"]
    versions |= {"name": "AMD EPYC", "device": "cpu", "threads": 1, "versions": {"torch": "3"}}
    assert None not in of({row.name: row for row in models(ledgers)}, "distilled").gains.values()


# -- verdicts --------------------------------------------------------------------------------------------------------------


def test_verdicts_of_the_chain(rows: dict[str, Model]) -> None:
    verdicts = {name: of(rows, name).verdict for name, row in rows.items() if row.kind != "half precision"}
    assert verdicts == {
        "baseline": "the start",
        "distilled": "pays",
        "adapted": "quality only",
        "pruned": "does not pay",
        "tuned": "does not pay",
        "tuned int8": "pays",
        "tuned nf4": "pays",
    }
    assert of(rows, "distilled", budget=0.67).verdict == "outside the budget"
    assert of(rows, "distilled", budget=0.69).verdict == "pays"
    assert of(rows, "adapted", gain=12.8).verdict == "quality only"
    assert of(rows, "adapted", gain=13).verdict == "does not pay"


CASES = list(
    itertools.product(
        [None, -40.0, 0.0, 5.0, 60.0],  # gain of one resource
        [None, 0.0, 12.0],  # of another
        [None, -3.0, 0.0, 0.5, 2.0, math.inf, math.nan],  # rise of the perplexity
        [None, -5.0, 0.0, 5.0, 30.0],  # its drop
        [True, False],
    )
)


@pytest.mark.parametrize("gain", [0.0, 5.0, 50.0])
def test_a_larger_budget_never_worsens_a_verdict(gain: float) -> None:
    for first, second, rise, drop, trained in CASES:
        verdicts = [
            judge({"a": first, "b": second}, rise, drop, trained, budget, gain) for budget in (0, 0.5, 1, 3, 1e9)
        ]
        if rise is None:
            assert set(verdicts) == {"not measured"}
            continue
        left = [v for v in verdicts if v != "outside the budget"]
        assert verdicts == ["outside the budget"] * (5 - len(left)) + left
        assert len(set(left)) <= 1, "inside the budget its size changes nothing"
        assert len(left) == (0 if not math.isfinite(rise) else sum(rise <= b for b in (0, 0.5, 1, 3, 1e9)))


@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_asking_for_more_gain_never_betters_a_verdict(budget: float) -> None:
    for first, second, rise, drop, trained in CASES:
        resources = {"a": first, "b": second}
        verdicts = [judge(resources, rise, drop, trained, budget, gain) for gain in (0, 1, 5, 10, 12, 50, 1e9)]
        ranks = [RANKS.index(v) if v in RANKS else 1 for v in verdicts]
        assert ranks == sorted(ranks, reverse=True)
        assert "does not pay" not in verdicts or None not in resources.values()
        assert "quality only" not in verdicts or (trained and drop is not None and drop > 0)
        best = max((v for v in resources.values() if v is not None), default=-1)
        inside = rise is not None and rise <= budget
        assert [v == "pays" for v in verdicts] == [
            inside and best > 0 and best >= g for g in (0, 1, 5, 10, 12, 50, 1e9)
        ]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_perplexities_that_are_no_numbers(value: float) -> None:
    first = entry("first", "FineTune", 40, 100)
    lost = entry("lost", "FineTune", value, 100, first)
    rescued = entry("rescued", "FineTune", 41, 100, lost)
    rows = rows_of([first], [first, lost], [first, lost, rescued])
    assert of(rows, "lost").verdict == "outside the budget"
    assert ("infinite" if value == math.inf else "not a number") in sentence(of(rows, "lost"), 1, 10)
    sentence(of(rows, "rescued"), 1, 10)
    assert of(rows, "rescued", budget=math.inf).source == 40
    lost["parent"] = {"source": "config"}
    assert of(rows_of([lost], [lost, rescued]), "rescued").verdict == (
        "quality only" if value == math.inf else "outside the budget"
    )


def test_a_model_that_was_worth_nothing_and_learns_bought_quality() -> None:
    first = entry("first", "FineTune", math.inf, 100)
    rescued = entry("rescued", "FineTune", 41, 100, first)
    for e in (first, rescued):
        e["benchmark"] = benchmark(arm(e["stage"], "model", "fp32", 10, 10, 10))
    rows = rows_of([first], [first, rescued])
    assert of(rows, "rescued").verdict == "quality only"


# -- sentences -------------------------------------------------------------------------------------------------------------


def test_savings_are_split_between_half_precision_and_the_rest(rows: dict[str, Model]) -> None:
    disk, memory = savings(rows["tuned nf4"], list(rows.values()))
    assert memory.half == 204.8
    assert memory.total == pytest.approx(100 * (1 - 180.2 / 327.7))
    assert memory.by_half == pytest.approx(100 * (1 - 204.8 / 327.7))
    assert memory.total == pytest.approx(memory.by_half + memory.rest)
    assert memory.against_half == pytest.approx(100 * (1 - 180.2 / 204.8))
    assert disk.half == pytest.approx(2 * 81912576 / 1e6)


def test_savings_without_a_half_precision_arm_say_so() -> None:
    ledgers = chain()
    for entries in ledgers.values():
        for e in entries:
            if "benchmark" in e:
                e["benchmark"]["arms"] = [a for a in e["benchmark"]["arms"] if a["precision"] == "fp32"]
    rows = models(ledgers)
    memory = savings(next(row for row in rows if row.name == "tuned nf4"), rows)[1]
    assert memory.total is not None
    assert (memory.half, memory.rest, memory.against_half) == (None, None, None)


def test_a_quantized_model_that_half_precision_beats_is_called_that() -> None:
    ledgers = chain()
    measured = ledgers["checkpoints/quick/tuned/model"][-1]["benchmark"]["arms"]
    measured[1]["weights_mb"] = 163.8
    rows = models(ledgers)
    text = sentences(next(row for row in rows if row.name == "tuned nf4"), rows)
    assert "half precision alone (tuned bf16, 163.8 MB) does as well or better: it saves 50.0 %" in text
    measured[2]["weights_mb"] = 400.0
    rows = models(ledgers)
    text = sentences(next(row for row in rows if row.name == "tuned nf4"), rows)
    assert "NF4 takes 22.1 % more of the weights' memory against FP32 (327.7 to 400.0 MB)" in text


def test_sentences_say_why_and_at_what_cost(rows: dict[str, Model]) -> None:
    assert "**does not pay**: nothing is better by 10 %. " in sentence(of(rows, "tuned"), 1, 10)
    assert "**quality only**: its perplexity is at least 10 % lower, and nothing" in sentence(
        of(rows, "adapted"), 1, 10
    )
    first, second = (entry(name, "FineTune", 40, size) for name, size in (("first", 100), ("second", 200)))
    second["parent"] = {"source": "checkpoints/first/model", "sha256": "x"}
    worse = of(rows_of([first], [first, second]), "second")
    assert "**not measured**; worse by at least 10 %: MB on disk." in sentence(worse, 1, 10)


def test_stages_beside_the_last_one_are_not_counted_as_its_making() -> None:
    first = entry("first", "FineTune", 40, 100)
    a, b = entry("a", "FineTune", 50, 100, first), entry("b", "FineTune", 20, 100, first)
    chain_rows = list(rows_of([first], [first, a], [first, b]).values())
    compared = [compare(row, 1, 10) for row in chain_rows]
    assert overall(chain_rows, compared).startswith(
        "2 stages made **b**, beginning with first; 1 more on other branches."
    )


def test_only_pruned_and_merged_adapters_are_called_dense() -> None:
    lora, merge = {"op": "lora"}, {"op": "merge", "dense": True}
    pruned, linear = {"op": "global_l1", "targets": "lora"}, {"op": "global_l1", "targets": "linear"}
    for operations, dense in (
        ([lora, pruned, merge], True),
        ([lora, merge], False),
        ([lora, pruned], False),
        ([linear], False),
    ):
        assert ("dense" in dense_note({"operations": operations})) is dense


def test_entries_without_what_newer_ones_have() -> None:
    bare = {"stage": "bare", "method": "FineTune", "parent": {"source": "config"}}
    hollow: Entry = {
        "benchmark": None,
        "quality": {"after": {"perplexity": None}},
        "sizes": [],
        "operations": 3,
        "data": "x",
    }
    child = hollow | {"stage": "child", "teacher": 1, "sweeps": 2, "curve": {}}
    rows = rows_of([bare], [bare, child], [{}], [bare, {"benchmark": {"arms": [1, {}], "machine": 3}}])
    for row in rows.values():
        assert sentence(compare(row, 1, 10), 1, 10)
    assert of(rows, "child").verdict == "not measured"


def test_a_quantized_copy_of_an_earlier_fit_is_not_compared_with_the_new_model() -> None:
    old = entry("run", "FineTune", 40, 100)
    new = copy.deepcopy(old) | {"config_sha256": "new"}
    nf4 = quantized(old, "nf4", 41, 0.1)
    rows = {row.name: row for row in models({"checkpoints/run/model": [new], "checkpoints/run/model-nf4": [old, nf4]})}
    assert rows["run nf4"].parent is rows["run (an earlier fit)"]
