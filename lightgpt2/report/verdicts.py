"""What each stage bought: its model against the one before it and against the source, and whether that paid."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lightgpt2.report.chain import Model, is_converted, start_quality, text_of
from lightgpt2.report.figures import better, change, number

Verdict = Literal["the start", "pays", "quality only", "does not pay", "outside the budget", "not measured"]


@dataclass(frozen=True)
class Comparison:
    """A model against the one before it and against its chain's source.

    Attributes:
        model: The model.
        before: The perplexity of the model before it, on the same text.
        source: The perplexity of the chain's source, on the same text.
        source_name: What `source` was measured of.
        gains: By how many per cent each resource is better than the model before's; None where that was not measured.
        same_machine: Whether speed and memory of the two were measured alike, if both were.
        verdict: Whether it paid.
    """

    model: Model
    before: float | None
    source: float | None
    source_name: str
    gains: dict[str, float | None] = field(default_factory=dict)
    same_machine: bool = True
    verdict: Verdict = "not measured"

    @property
    def perplexity(self) -> float | None:
        """The model's own perplexity."""
        return self.model.figures.get("perplexity")

    @property
    def rise(self) -> float | None:
        """How much its perplexity lies above the source's."""
        return None if self.perplexity is None or self.source is None else self.perplexity - self.source


def counts(per_cent: float | None, gain: float) -> bool:
    """Whether a figure is better by enough; what is no better is not, whatever is asked for."""
    return per_cent is not None and per_cent >= gain and per_cent > 0


def judge(
    gains: Mapping[str, float | None], rise: float | None, drop: float | None, trained: bool, budget: float, gain: float
) -> Verdict:
    """Whether a stage paid.

    Args:
        gains: By how many per cent each resource is better than before; None where that was not measured.
        rise: How much the perplexity lies above the source's; None where that was not measured.
        drop: By how many per cent the perplexity is lower than before; None where that was not measured.
        trained: Whether the stage trained, so that a lower perplexity alone is worth something.
        budget: How much the perplexity may lie above the source's.
        gain: By how many per cent something must be better.
    """
    if rise is None:
        return "not measured"
    if not rise <= budget:  # not-a-number is outside
        return "outside the budget"
    if any(counts(per_cent, gain) for per_cent in gains.values()):
        return "pays"
    if trained and counts(drop, gain):
        return "quality only"
    return "not measured" if None in gains.values() or (trained and drop is None) else "does not pay"


def resources(model: Model) -> list[str]:
    """The figures that a stage can pay in: one batch size and one length, the smallest that were measured."""
    batches = [key for key in model.figures if key.startswith("forward ")]
    lengths = [key for key in model.figures if key.startswith("tokens ")]
    forward = min(
        batches, key=lambda key: [int(n) for n in key.split()[1].split("x") if n.isdigit()], default="forward 1x128"
    )
    tokens = min(lengths, key=lambda key: int(key.split()[1]), default="tokens 128")
    return ["disk", "weights", forward, tokens]


def comparable(key: str, model: Model, other: Model) -> bool:
    """Whether a figure of two models was measured alike."""
    return key in ("disk", "parameters", "embedding", "nonzero") or (
        bool(model.machine) and model.machine == other.machine
    )


def against(key: str, model: Model, other: Model | None) -> float | None:
    """By how many per cent a model's figure is more than another's; None where that cannot be said."""
    if other is None or not comparable(key, model, other):
        return None
    return change(other.figures.get(key), model.figures.get(key))


def _same_text(model: Model, other: Model) -> bool:
    return text_of(model) == text_of(other)


def _start(model: Model) -> float | None:
    """The perplexity of the model that a stage was given, on that stage's own text."""
    return number(start_quality(model.entry).get("perplexity"))


def before(model: Model) -> float | None:
    """The perplexity of the model that this one was made of, on the text that this one was scored on."""
    if model.parent is None:
        return None
    return model.parent.figures.get("perplexity") if _same_text(model, model.parent) else _start(model)


def source(model: Model) -> tuple[float | None, str]:
    """The perplexity that a model's is held against, and the name of the model that it was measured of.

    That is the beginning of its chain; after a change of text the model that was given to the first stage on the new one,
    since perplexities of two texts say nothing about each other.
    """
    top = model
    while top.parent is not None and _same_text(top, top.parent):
        top = top.parent
    if top.parent is None:
        return top.figures.get("perplexity"), top.name
    return _start(top), top.parent.name


def drop(comparison: Comparison) -> float | None:
    """By how many per cent the perplexity is lower than before; any number is wholly lower than infinity."""
    if comparison.before == math.inf and comparison.perplexity is not None and math.isfinite(comparison.perplexity):
        return 100.0
    return better("perplexity", comparison.before, comparison.perplexity)


def compare(model: Model, budget: float, gain: float) -> Comparison:
    """A model against those before it.

    Args:
        model: What a stage made, or a quantized copy of it.
        budget: How much the perplexity may lie above the source's.
        gain: By how many per cent something must be better.
    """
    parent = model.parent
    reference, name = source(model)
    if parent is None:
        return Comparison(model, None, reference, name, verdict="the start")
    gains = {
        key: better(key, parent.figures.get(key), model.figures.get(key)) if comparable(key, model, parent) else None
        for key in resources(model)
    }
    alike = not (model.machine and parent.machine) or model.machine == parent.machine
    made = Comparison(model, before(model), reference, name, gains, alike)
    trained = not is_converted(model.entry)
    verdict = judge(gains, made.rise, drop(made), trained, budget, gain)
    return Comparison(model, made.before, reference, name, gains, alike, verdict)
