"""Sentences: what each stage did and what that bought, from figures only."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from lightgpt2.report.chain import Entry, Model, is_converted, operations, part
from lightgpt2.report.figures import (
    change,
    escape,
    listing,
    more_is_better,
    name_of,
    number,
    phrase,
    write,
    write_change,
)
from lightgpt2.report.verdicts import Comparison, comparable, counts, resources

_METHODS = {
    "FineTune": "trained with cross-entropy",
    "Distill": "distilled",
    "QAT": "trained with rounded weights",
    "Trim": "trained after the cut",
    "MovementPruning": "trained while it was pruned",
    "LoRA": "trained through LoRA adapters",
    "QLoRA": "trained through LoRA adapters on a quantized base",
    "PostTrainingQuantization": "quantized after training",
}


def rule(budget: float, gain: float) -> str:
    """The acceptance rule, as `verdicts.judge` applies it."""
    return (
        f"**The rule.** A stage *pays* when its perplexity is at most {budget:g} above that of its chain's source, and at "
        f"least one of four figures is at least {gain:g} % better than the model's before it: MB on disk, weights in memory, "
        "forward p50 at the smallest batch, tokens/s at the smallest number of new tokens. A stage that trains, stays inside "
        "that budget and betters none of the four that was measured, but has a perplexity at least "
        f"{gain:g} % lower than the model before it, bought *quality only*. Over the budget it is *outside the budget*, "
        "whatever else it bought. *Does not pay*: all that this asks for was measured, and nothing is better by that much. "
        "*Not measured*: what was measured decides nothing. Perplexities are compared on one text only: where a stage changed "
        "the text, the model that it was given, scored on the new text, stands for the source. Speed and memory are compared "
        "only where the same machine and settings measured both."
    )


# -- what a stage did ------------------------------------------------------------------------------------------------------


def did(entry: Entry) -> str:
    """What a stage did to the model, as a clause."""
    if is_converted(entry):
        return ", ".join(_conversion(o) for o in operations(entry)) or "quantized"
    done = [clause for operation in operations(entry) if (clause := _clause(operation))]
    method = _METHODS.get(str(entry.get("method")), f"made by {escape(entry.get('method', 'an unnamed method'))}")
    return ", ".join(["not trained" if entry.get("steps") == 0 else method, *done])


def quantizer(operation: dict[str, Any]) -> str:
    """A quantization's name, or that of packing or of an export."""
    match operation:
        case {"op": "packed"}:
            return "packed"
        case {"op": "export", "type": kind}:
            return f"GGUF {escape(kind)}"
        case {"op": "export"}:
            return f"ONNX {escape(str(operation.get('layers', '')).upper())}"
    return escape(str(operation.get("op", "")).upper())


def _conversion(operation: dict[str, Any]) -> str:
    """What a conversion did, as a clause."""
    name = quantizer(operation)
    if operation.get("op") != "export":
        return name
    details = []
    if operation.get("embeddings") not in (None, operation.get("layers")):
        details.append(f"embeddings in {escape(str(operation['embeddings']).partition('-')[0].upper())}")
    if operation.get("scales") == "trained":
        details.append("with the scales that were trained")
    return f"exported as {name}" + (f" ({', '.join(details)})" if details else "")


def _clause(operation: dict[str, Any]) -> str:
    match operation:
        case {"op": "extract_layers", "layers": list(layers)}:
            return f"with layers {', '.join(escape(layer) for layer in layers)} of what it was made of"
        case {"op": "trim"}:
            sizes = {"width": "wide", "heads": "heads", "ffn": "neurons a layer"}
            shape = ", ".join(
                f"{write('parameters', number(operation.get(key)))} {word}" for key, word in sizes.items()
            )
            return f"cut down to {shape} (by {escape(operation.get('importance', ''))})"
        case {"op": "trim_vocabulary"}:
            before, after = (write("parameters", number(operation.get(key))) for key in ("before", "after"))
            return f"with the {after} of {before} tokens that its text needs (over which its source is scored too)"
        case {"op": "remove"}:
            parts = [_removed(part(operation, kind), word) for kind, word in (("heads", "heads"), ("ffn", "neurons"))]
            return f"{' and '.join(filter(None, parts))} removed ({escape(operation.get('criterion', ''))})"
        case {"op": "global_l1" | "movement"}:
            achieved = number(operation.get("achieved"))
            share = write("per cent", None if achieved is None else 100 * achieved)
            targets, criterion = escape(operation.get("targets", "")), escape(operation.get("criterion", ""))
            if operation.get("held"):
                return f"with {share} % of the {targets} weights held at zero, as an earlier stage had pruned them"
            return f"{share} % of the {targets} weights pruned ({criterion})"
        case {"op": "integers"}:
            return f"saved as {_integers(operation)}"
        case {"op": "dequantize"}:
            return f"on a base in {escape(str(operation.get('from', '')).upper())}, dequantized to merge into"
        case {"op": "merge"}:
            return "adapters merged"
    return ""


def _removed(counts: dict[str, Any], word: str) -> str:
    gone, whole = number(counts.get("removed")), number(counts.get("of"))
    if not gone or not whole:
        return ""
    return f"{write('parameters', gone)} of {write('parameters', whole)} {word} ({write('per cent', 100 * gone / whole)} %)"


def _integers(operation: dict[str, Any]) -> str:
    group = number(operation.get("group"))
    share = "output channel" if group is None else f"group of {write('parameters', group)} inputs"
    extent = "embeddings included" if operation.get("embeddings") else "embeddings in full precision"
    inputs = ", the layers' inputs rounded to INT8" if operation.get("activations") else ""
    return f"INT{escape(operation.get('bits', ''))} with a scale for each {share}, {extent}{inputs}"


def integers_note(entry: Entry) -> str:
    """That stored integers are weights in full precision again once they are loaded."""
    parameters = number(part(entry, "sizes").get("parameters"))
    if parameters is None or not any(o.get("op") == "integers" for o in operations(entry)):
        return ""
    return (
        "Its file holds integers; loaded, they are multiplied with their scales and are FP32 weights of "
        f"{write('disk', 4 * parameters / 1e6)} MB: smaller on disk, neither smaller in memory nor faster."
    )


def export_note(entry: Entry) -> str:
    """How many of an exported model's greedy tokens are the source's, where that was measured."""
    for operation in operations(entry):
        found = part(operation, "agreement")
        tokens, source, cache = (number(found.get(key)) for key in ("tokens", "source", "cache"))
        if operation.get("op") == "export" and None not in (tokens, source, cache):
            shares = [write("per cent", None if share is None else 100 * share) for share in (source, cache)]
            return (
                f"Of {write('parameters', tokens)} greedy tokens {shares[0]} % are those of PyTorch, and {shares[1]} % those "
                "that come without the cache."
            )
    return ""


def collapse_note(entry: Entry) -> str:
    """That what a model writes has collapsed, where it was looked at and has.

    By a rule: of its tokens twice as many as of the text's repeat others, and 20 % more of all; or half as many of its pairs of
    tokens are different ones.
    """
    found = part(entry, "generation")
    shares = [number(found.get(key)) for key in ("repeated", "repeated_text", "distinct_2", "distinct_2_text")]
    mine, text, pairs, own = (math.nan if share is None else share for share in shares)
    if not (mine > max(2 * text, text + 0.2) or pairs < own / 2):
        return ""
    return (
        f"It has *collapsed*: {mine:.1%} of the tokens that it writes repeat one of the sixteen before them (the text's own: "
        f"{text:.1%}), and {pairs:.1%} of its pairs of tokens are different ones ({own:.1%})."
    )


def dense_note(entry: Entry) -> str:
    """That pruned adapters leave a dense model once they are merged, where that happened."""
    done = operations(entry)
    pruned = any(o.get("op") == "global_l1" and o.get("targets") == "lora" for o in done)
    merged = any(o.get("op") == "merge" for o in done)
    if not (pruned and merged):
        return ""
    return (
        "Its pruned adapters are merged into the weights, and merged weights are dense: the zeros are in the adapter folder, "
        "and the model is neither smaller nor faster for them."
    )


# -- what it bought --------------------------------------------------------------------------------------------------------


def sentence(comparison: Comparison, budget: float, gain: float, saved: str = "") -> str:
    """What a stage bought, in plain words.

    Args:
        comparison: Its model against those before it.
        budget: How much the perplexity may lie above the source's.
        gain: By how many per cent something must be better.
        saved: What `report.savings` says of a quantized model, in place of plain sizes.
    """
    model = comparison.model
    origin = f" from {escape(model.parent.name)}" if model.parent else " from random weights"
    text = [
        f"**{escape(model.name)}** ({did(model.entry)},{origin}): **{comparison.verdict}**{_why(comparison, budget, gain)}."
    ]
    text.append(_quality(comparison))
    if model.parent:
        keys = [key for key in comparison.gains if not (saved and not key.startswith("forward"))]
        keys += _spent(model)
        text += [saved, *(_resource(key, model, model.parent) for key in keys), _unmeasured(comparison)]
    text += [note(model.entry) for note in (dense_note, integers_note, export_note, collapse_note)]
    return " ".join(filter(None, text))


def _why(comparison: Comparison, budget: float, gain: float) -> str:
    """What a verdict rests on, and what the stage cost besides."""
    known = {key: value for key, value in comparison.gains.items() if value is not None}
    gained = listing([name_of(key) for key, value in known.items() if counts(value, gain)])
    worse = listing([name_of(key) for key, value in known.items() if counts(-value, gain)])
    cost = f"; worse by at least {gain:g} %: {worse}" if worse else ""
    match comparison.verdict:
        case "pays":
            return f": better by at least {gain:g} %: {gained}{cost}"
        case "quality only":
            return f": its perplexity is at least {gain:g} % lower, and nothing else that was measured is so much better{cost}"
        case "does not pay":
            return f": nothing is better by {gain:g} %{cost}"
        case "outside the budget":
            return f" of {budget:g}" + (f", though better by at least {gain:g} %: {gained}" if gained else "") + cost
        case "not measured":
            return cost
    return ""


def _quality(comparison: Comparison) -> str:
    after = write("perplexity", comparison.perplexity)
    if comparison.model.parent is None:
        return f"Perplexity {after}: what the rest of its chain is held against."
    if comparison.before is None:
        text = f"Perplexity {after}; that of the model before it was not measured on the same text"
    else:
        difference = change(comparison.before, comparison.perplexity)
        amount = "" if difference is None else f" ({write_change(difference)})"
        text = f"Perplexity {write('perplexity', comparison.before)} to {after}{amount}"
    return f"{text}{_rise(comparison)}."


def _rise(comparison: Comparison) -> str:
    rise, name = comparison.rise, escape(comparison.source_name)
    if rise is None or comparison.source is None:
        return f"; that of {name} on this text was not measured"
    against = f"{name}'s {write('perplexity', comparison.source)}"
    if math.isnan(rise):
        return f"; it cannot be held against {against}"
    return (
        f"; {write('perplexity', abs(rise))} {'above' if rise > 0 else 'below'} {against}"
        if rise
        else f"; that is {against}"
    )


def _spent(model: Model) -> list[str]:
    """What a generation costs the processor, which is told and not judged."""
    return [key for key in model.figures if key.startswith("cpu ")]


def _resource(key: str, model: Model, before: Model) -> str:
    """One figure before and after; nothing where it was not measured alike."""
    old, new = before.figures.get(key), model.figures.get(key)
    difference = change(old, new)
    if difference is None or not comparable(key, model, before):
        return ""
    text = phrase(key, old, new)
    amount = write_change(difference)
    if key.startswith(("forward", "tokens")):
        amount = speed(key, old or 0, new or 0)
    return f"{text[0].upper()}{text[1:]} ({'unchanged' if abs(difference) < 0.05 else amount})."


def speed(key: str, old: float, new: float) -> str:
    """How much faster or slower, as a factor where that is a large one; a slower model is called slower."""
    word = "faster" if more_is_better(key) == (new > old) else "slower"
    if abs(difference := 100 * (new - old) / old) < 0.05:
        return "as fast"
    factor = max(new / old, old / new) if min(old, new) > 0 else math.inf
    return f"{factor:.1f} times {word}" if factor >= 1.5 else f"{abs(difference):.1f} % {word}"


def _unmeasured(comparison: Comparison) -> str:
    if not comparison.same_machine:
        return (
            "Speed and memory of the two were measured on different machines or with different settings: not compared."
        )
    names = [name_of(key) for key, gain in comparison.gains.items() if gain is None]
    return f"Not measured for both: {listing(names)}." if names else ""


# -- the whole chain -------------------------------------------------------------------------------------------------------


def overall(chain: Sequence[Model], comparisons: Sequence[Comparison]) -> str:
    """What a chain did and bought.

    Args:
        chain: Its models, in order.
        comparisons: What `compare` says of its stages and quantized models, in order.
    """
    root = chain[0]
    made = [model for model in chain if model.kind == "stage"]
    if not made:
        return f"Nothing was trained, only converted, of {escape(root.name)}."
    last = made[-1]
    way = [model for model in made if model in list(lineage(last))]
    beside = f"; {len(made) - len(way)} more on other branches" if len(made) > len(way) else ""
    text = [f"{_count(len(way))} made **{escape(last.name)}**, beginning with {escape(root.name)}{beside}."]
    if last is not root:
        reached = next(c for c in comparisons if c.model is last)
        text.append(f"Perplexity {write('perplexity', reached.perplexity)}{_rise(reached)}.")
        text += [_resource(key, last, root) for key in ("parameters", *resources(last), *_spent(last))]
    return " ".join(filter(None, text))


def verdicts(chain: Sequence[Model], comparisons: Sequence[Comparison]) -> list[str]:
    """Which stages of a chain paid and which did not, and the best of its models."""
    lines = []
    for verdict in ("pays", "quality only", "does not pay", "outside the budget", "not measured"):
        if names := [f"**{escape(c.model.name)}**" for c in comparisons if c.verdict == verdict]:
            lines.append(f"{verdict[0].upper()}{verdict[1:]}: {listing(names)}.")
    return [*lines, *_best(chain, comparisons)]


def lineage(model: Model | None) -> Iterator[Model]:
    """A model and those that it was made of, the newest first."""
    while model is not None:
        yield model
        model = model.parent


def _count(count: int) -> str:
    return "One stage" if count == 1 else f"{count} stages"


def _best(chain: Sequence[Model], comparisons: Sequence[Comparison]) -> list[str]:
    """The smallest and the fastest of the models that were measured and are inside the budget."""
    outside = ("outside the budget", "not measured")
    sound = [c.model for c in comparisons if c.verdict not in outside or c.model is chain[0]]
    text = []
    for key, word in (("disk", "smallest on disk"), (resources(chain[-1])[-1], "fastest")):
        measured = [model for model in sound if key in model.figures]
        if len(measured) < 2 or (key != "disk" and len({model.machine for model in measured}) > 1):
            continue
        best = (max if more_is_better(key) else min)(measured, key=lambda model: model.figures[key])
        text.append(f"Inside the budget, {word}: {escape(best.name)} ({phrase(key, None, best.figures[key])}).")
    return text
