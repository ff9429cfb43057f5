"""The acceptance rule: relative, and in pairs."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from lightgpt2.errors import UserError
from lightgpt2.models.quality import Metric, quality, write_scores
from lightgpt2.report.document import compose
from lightgpt2.report.rows import Model, models
from lightgpt2.report.verdicts import Comparison, Rise, compare, judge
from tests.report.chains import Entry, arm, benchmark, chain, entry, foreign, paired, score
from tests.report.test_rows import rows_of

RANKS = ["outside the budget", "does not pay", "quality only", "pays"]


def of(rows: dict[str, Model], name: str, budget: float = 2.0, gain: float = 10.0) -> Comparison:
    return compare(rows[name], budget, gain)


def test_verdicts_of_the_chain() -> None:
    rows = {row.name: row for row in models(chain())}
    assert {name: of(rows, name).verdict for name, row in rows.items() if row.kind != "half precision"} == {
        "baseline": "the start", "distilled": "pays", "adapted": "quality only", "pruned": "does not pay",
        "tuned": "does not pay", "tuned int8": "pays", "tuned nf4": "pays",
    }  # fmt: skip
    assert of(rows, "distilled", budget=1.53).verdict == "outside the budget", "44.9 is 1.54 % more than 44.22"
    assert of(rows, "distilled", budget=1.54).verdict == "pays"
    assert of(rows, "adapted", gain=12.8).verdict == "quality only"
    assert of(rows, "adapted", gain=13).verdict == "does not pay"


def test_a_metric_of_which_more_is_better_may_fall_by_the_budget() -> None:
    _, stage, shrunk = models(foreign())
    found = compare(shrunk, 2, 10)
    assert found.source is not None
    assert found.source.change == pytest.approx(100 * (0.85 / 0.91 - 1))
    assert (compare(stage, 2, 10).verdict, found.verdict) == ("not measured", "outside the budget")
    assert compare(shrunk, 6.6, 10).verdict == "pays", "it is smaller"


def pair_of(
    folder: Path, metric: str, ratio: float, noise: float, label: str = "after", examples: int = 100
) -> dict[str, Model]:
    first, second = folder / "checkpoints/first/model", folder / "checkpoints/second/model"
    start = entry("first", 0) | {"quality": {"after": paired(first, metric, 1.0, 0)}}
    made = entry("second", 0, 50, start)
    made["quality"]["after"] = paired(second, metric, ratio, noise, examples, label)
    return {row.name: row for row in models({str(first): [start], str(second): [start, made]})}


@pytest.mark.parametrize(
    ("metric", "ratio", "noise", "verdict"),
    [
        ("loss", 1.05, 0.0, "outside the budget"),
        ("loss", 1.05, 0.6, "pays"),  # the interval reaches below zero
        ("loss", 1.01, 0.0, "pays"),  # certainly worse, but inside
        ("loss", 0.9, 0.0, "pays"),
        ("accuracy", 0.95, 0.0, "outside the budget"),
        ("accuracy", 0.95, 0.6, "pays"),
        ("accuracy", 1.2, 0.0, "pays"),
    ],
)
def test_only_a_change_that_is_clear_of_zero_condemns(
    tmp_path: Path, metric: str, ratio: float, noise: float, verdict: str
) -> None:
    found = of(pair_of(tmp_path, metric, ratio, noise), "second")
    assert found.source is not None
    assert found.source.interval is not None
    low, high = found.source.interval
    assert low - 1e-9 <= found.source.change <= high + 1e-9
    assert found.verdict == verdict


@pytest.mark.parametrize(("lost", "shown"), [(6, True), (5, False)])
def test_a_share_is_worse_where_mcnemars_test_says_so(tmp_path: Path, lost: int, shown: bool) -> None:
    """Of 100 texts: 6 right ones lost and none won has p = 0.031, 5 has 0.0625."""
    first, second = entry("first", 0), entry("second", 0, 50, entry("first", 0))
    for made, right in ((first, 90), (second, 90 - lost)):
        folder = tmp_path / "checkpoints" / made["stage"] / "model"
        folder.mkdir(parents=True)
        metric = Metric("accuracy", "higher", np.array([1.0] * right + [0.0] * (100 - right)), np.ones(100))
        write_scores(folder, {"after": {"accuracy": metric}})
        made["quality"]["after"] = quality({"accuracy": metric}, "accuracy", {"examples": 100})
    folders = [str(tmp_path / f"checkpoints/{name}/model") for name in ("first", "second")]
    ledgers = {folders[0]: [first], folders[1]: [first, second]}
    found = of({row.name: row for row in models(ledgers)}, "second")
    assert found.source is not None
    assert found.source.shown == shown
    assert found.verdict == ("outside the budget" if shown else "pays")
    assert ("no difference)" in compose(models(ledgers), 2, 10)[0]) == (not shown)


def test_without_scores_of_the_same_examples_the_change_alone_decides(tmp_path: Path) -> None:
    found = of(pair_of(tmp_path / "a", "loss", 1.05, 0.6, label="another"), "second")
    assert found.source is not None
    assert (found.source.interval, found.verdict) == (None, "outside the budget")
    rows = pair_of(tmp_path / "b", "loss", 1.05, 0.6)
    Path(rows["second"].score.folder, "scores.npz").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"scores.npz: damaged .*; restore it, or remove it"):
        of(rows, "second")
    Path(rows["second"].score.folder, "scores.npz").unlink()
    assert of(rows, "second").verdict == "outside the budget"
    assert of(pair_of(tmp_path / "c", "loss", 1.05, 0.6, examples=99), "second").verdict == "not measured"


def test_scores_on_two_texts_are_not_compared() -> None:
    first = entry("first", 40)
    moved = entry("moved", 12, 100, first)
    moved["data"] |= {"sha256": "another"}
    moved["quality"]["before"] = score(55.0)
    after = entry("after", 12.5, 100, moved, data=moved["data"])
    rows = rows_of([first], [first, moved], [first, moved, after])
    for found in (of(rows, "moved"), of(rows, "after")):
        assert found.source is not None
        assert found.source.change == pytest.approx(100 * ((found.model.score.value or 0) / 55 - 1))
    assert of(rows, "after").source_name == "first"
    assert of(rows, "moved").before == of(rows, "moved").source
    del moved["quality"]["before"]
    rows = rows_of([first], [first, moved], [first, moved, after])
    assert of(rows, "moved").before is None
    assert of(rows, "after").verdict == "not measured"


def test_a_stage_of_another_task_is_compared_with_what_it_was_given() -> None:
    first = entry("first", 40)
    tuned = entry("tuned", 0.9, 100, first, metric="accuracy")
    tuned["quality"]["before"] = score(0.5, "accuracy")
    found = of(rows_of([first], [first, tuned]), "tuned")
    assert found.source is not None
    assert found.source.change == pytest.approx(80.0)
    assert found.verdict == "quality only"


@pytest.mark.parametrize("key", ["name", "device", "threads"])
def test_figures_of_two_machines_are_not_compared(key: str) -> None:
    ledgers = chain()
    machine = ledgers["checkpoints/q/distilled/model"][-1]["benchmark"]["machine"]
    machine[key] = "another"
    found = of({row.name: row for row in models(ledgers)}, "distilled")
    assert [name for name, gain in found.gains.items() if gain is not None] == ["disk"]
    machine |= {"name": "AMD EPYC", "device": "cpu", "threads": 1, "versions": {"torch": "3"}}
    assert None not in of({row.name: row for row in models(ledgers)}, "distilled").gains.values()
    both = benchmark(*(arm(f"q/{name}", "model", "fp32", 9, 9, 9) for name in ("baseline", "distilled")))
    machine[key] = "another"
    found = of({row.name: row for row in models(ledgers, [both])}, "distilled")
    assert found.gains["weights"] == 0, "a benchmark of both compares them"


CASES = [*itertools.product(
    [None, -40.0, 0.0, 5.0, 60.0],  # gain of one resource
    [None, 0.0, 12.0],  # of another
    [None, -3.0, 0.0, 0.5, 2.0, math.inf, math.nan],  # how much worse than the source
    [None, -5.0, 0.0, 5.0, 30.0],  # how much better than before
    [True, False],
)]  # fmt: skip
BUDGETS, GAINS = (0, 0.5, 1, 3, 1e9), (0, 1, 5, 10, 12, 50, 1e9)


def test_a_larger_budget_never_worsens_a_verdict_and_asking_for_more_gain_never_betters_it() -> None:
    for first, second, worse, drop, trained in CASES:
        gains = {"a": first, "b": second}
        source = None if worse is None else Rise(worse, worse)
        before = None if drop is None else Rise(-drop, -drop)
        best = max((value for value in (first, second) if value is not None), default=-1)
        for gain in (0.0, 5.0, 50.0):
            verdicts = [judge(gains, source, before, trained, budget, gain) for budget in BUDGETS]
            inside = [worse is not None and math.isfinite(worse) and worse <= budget for budget in BUDGETS]
            if worse is not None:
                assert [each != "outside the budget" for each in verdicts] == inside
            assert len({*verdicts} - {"outside the budget"}) <= 1, "inside the budget its size changes nothing"
        verdicts = [judge(gains, source, before, trained, 1.0, gain) for gain in GAINS]
        ranks = [RANKS.index(each) if each in RANKS else 1 for each in verdicts]
        assert ranks == sorted(ranks, reverse=True)
        assert "does not pay" not in verdicts or None not in (first, second)
        assert "quality only" not in verdicts or (trained and drop is not None and drop > 0)
        pays = [inside[2] and best > 0 and best >= gain for gain in GAINS]
        assert [each == "pays" for each in verdicts] == pays


def test_scores_that_are_infinite_or_not_a_number() -> None:
    for value in (math.inf, math.nan):
        first, lost = entry("first", 40), entry("lost", value, 100, entry("first", 40))
        assert of(rows_of([first], [first, lost]), "lost").verdict == "outside the budget"
        start = entry("lost", value)
        saved: Entry = entry("saved", 41, 100, start)
        expected = "quality only" if value == math.inf else "outside the budget"
        assert of(rows_of([start], [start, saved]), "saved").verdict == expected
