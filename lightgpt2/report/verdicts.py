"""What each stage bought: its model against the one before it and against the source, and whether that paid."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lightgpt2.report.figures import SIZES, better, change, is_latency, is_throughput
from lightgpt2.report.rows import Model, Score

_LEVEL = 0.05  # of the test
Verdict = Literal["the start", "pays", "quality only", "does not pay", "outside the budget", "not measured"]


@dataclass(frozen=True)
class Rise:
    """How a primary metric differs from another model's on the same text, in per cent."""

    change: float  # of the value
    worse: float  # the same, negative where it is better
    interval: tuple[float, float] | None = None  # of `change`, paired, 95 %; None where single scores were not at hand
    p: float | None = None  # of a share: by McNemar's exact test

    @property
    def shown(self) -> bool:
        """Whether the examples show a difference, by the test if there is one; True where single scores were not at hand."""
        if self.p is not None:
            return self.p < _LEVEL
        return self.interval is None or not self.interval[0] <= 0 <= self.interval[1]

    def within(self, budget: float) -> bool:
        """True if it is at most `budget` worse, or if no difference is shown."""
        return self.worse <= budget or not self.shown


@dataclass(frozen=True)
class Comparison:
    """A model against the one before it and against its chain's source."""

    model: Model
    source_name: str = ""  # the model whose quality it is held against
    source: Rise | None = None  # its primary metric against that; None where one text measured not both
    before: Rise | None = None  # the same against the model before it
    gains: dict[str, float | None] = field(default_factory=dict)  # per cent by which a resource is better than before
    verdict: Verdict = "the start"


def rise(score: Score, other: Score) -> Rise | None:
    """A score against another, in pairs where single scores are at hand; None where they are not of one text."""
    difference = change(other.value, score.value) if score.text == other.text else None
    if difference is None:
        return None
    worse = -difference if score.about.get("better") == "higher" else difference
    mine, theirs = score.examples(), other.examples()
    if not (mine and theirs and len(mine.numerators) == len(theirs.numerators)):
        return Rise(difference, worse)
    found = mine.against(theirs)
    bounds = found.interval_95
    return Rise(difference, worse, (100 * (bounds[0] - 1), 100 * (bounds[1] - 1)) if bounds else None, found.p)


def judge(gains: Mapping[str, float | None], source: Rise | None, before: Rise | None, trained: bool,
          budget: float, gain: float) -> Verdict:  # fmt: skip
    """Whether a stage paid; quality alone is worth something only if it trained."""

    def enough(per_cent: float | None) -> bool:
        return per_cent is not None and per_cent >= gain and per_cent > 0

    if source is None:
        return "not measured"
    if not source.within(budget):
        return "outside the budget"
    if any(map(enough, gains.values())):
        return "pays"
    if trained and before and before.shown and enough(-before.worse):
        return "quality only"
    return "not measured" if None in gains.values() or (trained and before is None) else "does not pay"


def resources(*models: Model) -> list[str]:
    """The figures that a stage can pay in: sizes, and the first latency and throughput that a benchmark has."""
    speeds = [key for model in models for each in model.speeds.values() for key in each]
    first = (next(filter(kind, speeds), None) for kind in (is_latency, is_throughput))
    return ["disk", "weights", *filter(None, first)]


def pair(key: str, model: Model, other: Model) -> tuple[float | None, float | None]:
    """The other's figure and the model's, as one machine measured both; twice None where none did."""
    if key in SIZES:
        return other.figures.get(key), model.figures.get(key)
    for machine, mine in model.speeds.items():
        theirs = other.speeds.get(machine, {})
        if machine and key in mine and key in theirs:
            return theirs[key], mine[key]
    return None, None


def reference(model: Model) -> tuple[Score, str]:
    """The score that a model's score is compared with, and whose it is: the first model's of its chain.

    Scores are comparable on one text only: after a change of text, the model that the first stage on the new text started from.
    """
    top = model
    while top.parent is not None and top.score.text == top.parent.score.text:
        top = top.parent
    return (top.score, top.name) if top.parent is None else (top.start, top.parent.name)


def _given(model: Model, parent: Model) -> Score:
    """The score of the model that a stage was given; the stage's own of it where the other's text or single scores differ."""
    known = parent.score.folder and parent.score.text == model.score.text
    return parent.score if known or model.start.value is None else model.start


def compare(model: Model, budget: float, gain: float) -> Comparison:
    """A stage's model or a copy against those before it, by a budget and a gain in per cent."""
    score, name = reference(model)
    parent = model.parent
    if parent is None:
        return Comparison(model, name)
    given = _given(model, parent)
    source = rise(model.score, given if score is parent.score else score)
    before = rise(model.score, given)
    gains = {key: better(key, *pair(key, model, parent)) for key in resources(model, parent)}
    verdict = judge(gains, source, before, model.kind == "stage", budget, gain)
    return Comparison(model, name, source, before, gains, verdict)
