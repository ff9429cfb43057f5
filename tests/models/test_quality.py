"""Metrics: values, intervals, pairs, and what a ledger keeps of them."""

import math
from pathlib import Path

import numpy as np
import pytest

from lightgpt2.models.quality import Metric, metric_names, quality, read_scores, value_of, write_scores


def perplexity(nll: np.ndarray, tokens: np.ndarray) -> Metric:
    return Metric("perplexity", "lower", nll, tokens.astype(float), "exp", 2)


def accuracy(right: np.ndarray) -> Metric:
    return Metric("accuracy", "higher", right.astype(float), np.ones(len(right)))


def test_two_models_are_compared_on_examples_in_pairs() -> None:
    """Documents that differ a hundredfold say nothing about two models of which one is worse by the same on each."""
    tokens = np.array([100, 200, 50, 400])
    better = perplexity(np.array([1.0, 5.0, 2.0, 0.1]) * tokens, tokens)
    worse = perplexity(better.numerators + math.log(1.25) * tokens, tokens)
    change = worse.against(better)
    assert change.ratio == pytest.approx(1.25)
    assert change.interval_95 == pytest.approx((1.25, 1.25))
    low, high = better.interval() or (0, 0)
    assert low < better.value() / 2
    assert high > better.value() * 2
    with pytest.raises(ValueError, match="paired"):
        worse.against(perplexity(np.ones(3), np.ones(3)))


def test_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    tokens = np.full(60, 50)
    hits = 0
    for _ in range(60):
        low, high = perplexity(generator.normal(3.0, 0.5, 60) * tokens, tokens).interval() or (0, 0)
        hits += low <= math.exp(3.0) <= high
    assert 52 <= hits <= 60


def test_interval_of_equal_examples_is_the_point_and_of_one_there_is_none() -> None:
    tokens = np.full(5, 10)
    assert perplexity(tokens * 2.0, tokens).interval() == pytest.approx((math.exp(2), math.exp(2)))
    assert perplexity(tokens * 1e5, tokens).value() == math.inf
    assert perplexity(tokens[:1] * 2.0, tokens[:1]).interval() is None
    assert accuracy(np.array([1, 0, 1, 1])).value() == 0.75


def test_quality_describes_itself_and_is_read_again_example_by_example(tmp_path: Path) -> None:
    metrics = {"loss_of": perplexity(np.array([3.0, 4.0]), np.array([2, 2])), "accuracy": accuracy(np.array([1, 0]))}
    scored = quality(metrics, "accuracy", {"texts": 2})
    assert metric_names(scored) == ["accuracy", "loss_of"]
    assert value_of(scored) == 0.5
    assert scored["accuracy"]["better"] == "higher"
    write_scores(tmp_path, {"after": metrics, "before": {"accuracy": accuracy(np.array([0, 0]))}})
    again = read_scores(tmp_path, "after", scored)
    assert {name: metric.value() for name, metric in again.items()} == {n: m.value() for n, m in metrics.items()}
    assert again["accuracy"].against(metrics["accuracy"]).ratio == 1
    assert list(read_scores(tmp_path, "before", scored)) == ["accuracy"]
    assert read_scores(tmp_path / "elsewhere", "after", scored) == {}


def test_a_share_has_wilsons_interval_and_other_metrics_have_none() -> None:
    """Of 10 with 9 right: (0.596, 0.982), as in Wilson (1927) and every table of it."""
    assert accuracy(np.array([1] * 9 + [0])).wilson() == pytest.approx((0.5958, 0.9821), abs=1e-4)
    low, high = accuracy(np.zeros(50)).wilson() or (1, 0)
    assert (low, high) == pytest.approx((0, 0.0714), abs=1e-4), "wider than a point"
    assert low == 0, "inside 0 to 1, however it is rounded"
    assert perplexity(np.ones(5), np.ones(5)).wilson() is None
    assert Metric("rouge", "higher", np.array([0.5, 1.0]), np.ones(2)).wilson() is None
    assert "wilson_95" in accuracy(np.array([1, 0])).as_dict()


def test_shares_are_compared_by_mcnemars_exact_test() -> None:
    """Of 10 texts that one model alone has right, 9 are the first's: p = 2 (1 + 10) / 2^10."""
    first, second = np.array([1] * 9 + [0] + [1] * 30), np.array([0] * 9 + [1] + [1] * 30)
    assert accuracy(first).against(accuracy(second)).p == pytest.approx(22 / 1024)
    assert accuracy(first).against(accuracy(first)).p == 1
    one_more = np.array([1] + [0] * 39), np.zeros(40)
    assert accuracy(one_more[0]).against(accuracy(one_more[1])).p == 1
    thousands = np.arange(6000) % 2
    assert accuracy(thousands).against(accuracy(1 - thousands)).p == 1
    assert perplexity(np.ones(5), np.ones(5)).against(perplexity(np.ones(5), np.ones(5))).p is None


def test_what_else_a_metric_says_is_kept() -> None:
    metric = Metric("accuracy", "higher", np.ones(2), np.ones(2), details={"confusion": {"counts": [[2]]}})
    about = metric.as_dict()
    assert about["confusion"] == {"counts": [[2]]}
    again = Metric.restored("accuracy", about, [1, 1], [1, 1])
    assert again.details == metric.details
    assert again.as_dict() == about
