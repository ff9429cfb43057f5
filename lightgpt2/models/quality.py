"""Metrics with their intervals, and how a model folder keeps them, example by example."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightgpt2.errors import UserError
from lightgpt2.models.files import atomic_file
from lightgpt2.models.ledger import SCORES

FEW = 100  # examples below which an interval says little
_RESAMPLES = 2000
_Z = 1.959964  # 95 % of a normal distribution lie within this many standard deviations
_KNOWN = ("value", "interval_95", "wilson_95", "better", "link", "digits")  # of a metric, in a ledger

Better = Literal["lower", "higher"]
Link = Literal["identity", "exp"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """A metric's value as a multiple of another model's on the same examples."""

    ratio: float  # 1 where both are equal
    interval_95: tuple[float, float] | None  # by paired bootstrap; None for fewer than two examples
    p: float | None = None  # of shares: how likely models that are equally good differ as much (McNemar 1947, exact)


@dataclass(frozen=True)
class Metric:
    """A ratio of sums over examples, through one monotone function: perplexity, accuracy and ROUGE alike.

    `value = link(sum(numerators) / sum(denominators))`
    """

    name: str  # in tables and ledgers
    better: Better
    numerators: Floats  # one value an example `[N]`
    denominators: Floats  # likewise
    link: Link = "identity"  # `exp` for a perplexity
    digits: int = 4  # after the point in tables
    details: Mapping[str, Any] = field(default_factory=dict)  # what else a ledger keeps of it, as plain values

    @property
    def is_share(self) -> bool:
        """True if it is the share of examples that are right."""
        whole = len(self.numerators) > 1 and bool((self.denominators == 1).all())
        return whole and self.link == "identity" and bool(np.isin(self.numerators, (0, 1)).all())

    def value(self) -> float:
        return self._linked(self.numerators.sum() / max(self.denominators.sum(), 1.0))

    def interval(self) -> tuple[float, float] | None:
        """The 95 % bootstrap percentile interval over examples (Efron 1979), with a fixed seed; None for fewer than two."""
        if len(self.numerators) < 2:
            return None
        low, high = np.quantile([self._ratio(draw) for draw in self._draws()], [(1 - 0.95) / 2, (1 + 0.95) / 2])
        return self._linked(low), self._linked(high)

    def wilson(self) -> tuple[float, float] | None:
        """The 95 % interval of a share by Wilson's score (1927): without a seed, and inside 0 to 1; None for other metrics."""
        if not self.is_share:
            return None
        count, right = len(self.numerators), float(self.numerators.sum())
        centre = (right + _Z**2 / 2) / (count + _Z**2)
        half = _Z / (count + _Z**2) * (right * (count - right) / count + _Z**2 / 4) ** 0.5
        return max(0.0, centre - half), min(1.0, centre + half)  # what rounding leaves beyond

    def against(self, other: "Metric") -> Change:
        """This metric as a multiple of another model's; a ValueError if the two have not the same number of examples."""
        if len(self.numerators) != len(other.numerators):
            raise ValueError(f"{len(self.numerators)} examples cannot be paired with {len(other.numerators)}")
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = float(np.float64(self.value()) / other.value())
            if len(self.numerators) < 2:
                return Change(ratio, None)
            pairs = ((self._ratio(draw), other._ratio(draw)) for draw in self._draws())
            ratios = [np.float64(self._linked(mine)) / other._linked(theirs) for mine, theirs in pairs]
            low, high = np.quantile(ratios, [0.025, 0.975])
        p = _mcnemar(self.numerators, other.numerators) if self.is_share and other.is_share else None
        return Change(ratio, (float(low), float(high)), p)

    def as_dict(self) -> dict[str, Any]:
        """The metric as a ledger keeps it."""
        wilson = {"wilson_95": bounds} if (bounds := self.wilson()) else {}
        about = {"better": self.better, "link": self.link, "digits": self.digits}
        return {"value": self.value(), "interval_95": self.interval(), **wilson, **about, **self.details}

    @classmethod
    def restored(cls, name: str, about: Mapping[str, Any], numerators: Any, denominators: Any) -> "Metric":
        """The metric that `as_dict` described, with its examples."""
        arrays = (np.asarray(numerators, np.float64), np.asarray(denominators, np.float64))
        details = {key: value for key, value in about.items() if key not in _KNOWN}
        return cls(name, about["better"], *arrays, about.get("link", "identity"), about.get("digits", 4), details)

    def _draws(self) -> Any:
        """Counts of each example in one resample after another; all at once they would take 16 KB an example."""
        generator, count = np.random.default_rng(0), len(self.numerators)
        return (generator.multinomial(count, np.full(count, 1 / count)) for _ in range(_RESAMPLES))

    def _ratio(self, draw: NDArray[Any]) -> float:
        return float(draw @ self.numerators) / max(1.0, float(draw @ self.denominators))

    def _linked(self, ratio: float) -> float:
        if self.link == "identity":
            return float(ratio)
        with np.errstate(over="ignore"):  # infinite where a model knows nothing
            return float(np.exp(ratio))


def _mcnemar(mine: Floats, theirs: Floats) -> float:
    """The two-sided p-value of McNemar's exact test: a binomial test of the examples that only one model has right."""
    first, second = int((mine > theirs).sum()), int((mine < theirs).sum())
    count, ways, tail = first + second, 1, 0
    for k in range(min(first, second) + 1):
        tail, ways = tail + ways, ways * (count - k) // (k + 1)
    return float(min(Fraction(1), Fraction(2 * tail, 2**count)))


def quality(metrics: Mapping[str, Metric], primary: str, counts: Mapping[str, int]) -> dict[str, Any]:
    """What a ledger says about a model's quality, so that a reader needs to know no task.

    `primary` is the metric that picks checkpoints, budgets and verdicts; `counts` says what was scored: `{"tokens": 9000}`.
    """
    return {**{name: metric.as_dict() for name, metric in metrics.items()}, "primary": primary, **counts}


def metric_names(scored: Mapping[str, Any]) -> list[str]:
    """The metrics that a ledger's quality has, the primary one first."""
    names = [name for name, about in scored.items() if isinstance(about, dict) and "value" in about]
    return sorted(names, key=lambda name: name != scored.get("primary"))


def value_of(scored: Mapping[str, Any], name: str | None = None) -> float:
    """The value of a metric in a ledger's quality; by default of the primary metric."""
    return float(scored[name or scored["primary"]]["value"])


def write_scores(folder: Path, scored: Mapping[str, Mapping[str, Metric]]) -> None:
    """Write metrics example by example into a model folder, so that two models can be compared in pairs later.

    `scored` has them by the label of the model that was scored (`after`, `before`, `teacher`).
    """
    arrays: dict[str, Any] = {}
    for label, metrics in scored.items():
        for name, metric in metrics.items():
            arrays[f"{label}/{name}/numerators"] = metric.numerators
            arrays[f"{label}/{name}/denominators"] = metric.denominators
    with atomic_file(folder / SCORES) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def add_scores(folder: Path, quality: Mapping[str, Any], label: str, metrics: Mapping[str, Metric]) -> None:
    """Add metrics under a label to those that a folder has; `quality` is what its ledger says about each label."""
    write_scores(folder, {name: read_scores(folder, name, quality[name]) for name in quality} | {label: metrics})


def read_scores(folder: Path, label: str, scored: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics that `write_scores` wrote for a label; `scored` is what the ledger says about that model's quality.

    Raises:
        UserError: The file is damaged.
    """
    path, found = folder / SCORES, dict[str, Metric]()
    if not os.path.lexists(path):
        return found
    try:
        with np.load(path) as arrays:
            for name in metric_names(scored):
                if (at := f"{label}/{name}") + "/numerators" in arrays:
                    parts = arrays[f"{at}/numerators"], arrays[f"{at}/denominators"]
                    found[name] = Metric.restored(name, scored[name], *parts)
    except Exception as error:  # numpy and zipfile let through what their many parts raise
        fix = "restore it, or remove it and compare models without their examples"
        raise UserError(f"{path}: damaged ({' '.join(str(error).split())}); {fix}") from error
    return found
