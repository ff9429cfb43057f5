"""The report in reading order: headline figures, the chain, plots, samples, models, verdicts; the rest is folded away."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightgpt2.report import figures
from lightgpt2.report.chain import chain_picture
from lightgpt2.report.confusion import CLASS_COLUMNS, class_rows, intervals
from lightgpt2.report.figures import better, change, dicts, label, part, write, write_change, write_metric
from lightgpt2.report.markup import escape, folded, items, pictures, styled, table
from lightgpt2.report.plots import Plot, confusion_plot, curves, scatters, typing_plots
from lightgpt2.report.rows import MADE, Entry, Model, clause, converted
from lightgpt2.report.table import (
    Cells,
    sample_table,
    typing_baseline,
    typing_cells,
    typing_differences,
    typing_verdict,
)
from lightgpt2.report.verdicts import Comparison, Rise, compare, pair, resources

_METRICS, _RESOURCES = 6, 6  # that the tables have room for
_LONG = ("config", "samples", "curve", "benchmark", "sweeps")  # what the details leave to the ledger


def compose(
    rows: Sequence[Model], budget: float, gain: float, typed: Sequence[Mapping[str, Any]] = ()
) -> tuple[str, list[Plot]]:
    """The whole report as Markdown, and its plots, by a budget and a gain in per cent.

    `typed` is what `lightgpt2 type` has found: a section each.
    """
    compared = [compare(row, budget, gain) for row in rows if row.kind in MADE]
    chains: dict[int, list[Comparison]] = {}
    for each in compared:
        chains.setdefault(id(each.model.root), []).append(each)
    rule = Path(__file__).with_name("rule.md").read_text(encoding="utf-8").format(budget=budget, gain=gain)
    measured = [part(benchmark, "machine") for row in rows for benchmark in row.benchmarks]
    machines = {", ".join(f"{key} {value}" for key, value in each.items() if key != "versions") for each in measured}
    chained = [plot for plot in [chain_picture(rows)] if plot]
    scattered, trained = scatters(rows, budget), curves(rows)
    last = [_last(chain).model for chain in chains.values()]
    drawn = [
        [replace(plot, name=f"typing-{i}-{plot.name}") for plot in typing_plots(each)]
        for i, each in enumerate(typed, start=1)
    ]
    confused = [confusion_plot(m.score.about, f"confusion-{i}", m.name) for i, m in enumerate(last, start=1)]
    blocks = [
        "# What each stage bought",
        *(_headline(chain) for chain in chains.values()),
        pictures(chained),
        pictures(scattered),
        *(_samples(_last(chain).model) for chain in chains.values()),
        *(_classes(_last(chain).model, plot) for chain, plot in zip(chains.values(), confused, strict=True)),
        *map(_typing, typed, drawn),
        f"## Models\n\n{model_table(rows)}" if rows else "",
        f"## Verdicts\n\n{_verdicts(compared)}" if compared else "",
        folded("Training curves and sweeps", pictures(trained)),
        folded("The rule and the definitions", rule, items(f"Measured on: {text}." for text in sorted(machines))),
        folded("Details of each model", *(block for row in rows for block in _details(row))),
    ]
    return "\n\n".join(filter(None, blocks)) + "\n", [
        *chained,
        *scattered,
        *trained,
        *filter(None, confused),
        *(plot for plots in drawn for plot in plots),
    ]


def _last(chain: Sequence[Comparison]) -> Comparison:
    """The last stage of a chain; the last copy where nothing was trained."""
    return next((each for each in reversed(chain) if each.model.kind == "stage"), chain[-1])


def _headline(chain: Sequence[Comparison]) -> str:
    """Quality, size and speed of a chain's last model, each against the source."""
    reached = _last(chain)
    model, root = reached.model, reached.model.root
    cards = []
    if model.score.value is not None:
        note = f"{_rise(reached.source)} against {reached.source_name}" if reached.source else ""
        name = figures.title(figures.primary(model.score.quality))
        cards.append((name, write_metric(model.score.about, False), note))
    inside = [each.model for each in chain if each.verdict not in ("outside the budget", "not measured")]
    for key in (key for key in resources(model, root) if key in model.figures and key != "weights"):
        old, new = pair(key, model, root)
        changed = f"{write_change(change(old, new))} against {write(key, old)}"
        notes = [changed] if old is not None and model is not root else []
        gains = {each.name: better(key, *pair(key, each, model)) or 0.0 for each in inside}
        best = max(gains, key=lambda name: gains[name], default="")
        notes += [f"best inside the budget: {best} ({write_change(gains[best])})"] if gains.get(best, 0.0) > 0 else []
        cards.append((label(key), write(key, model.figures[key]), "; ".join(notes)))
    head = f"## {escape(model.name)}" + (f" against {escape(root.name)}" if model is not root else "")
    names, *lines = zip(*cards, strict=True) if cards else ((),)
    return f"{head}\n\n{styled('cards', table([f'{name} ' for name in names], lines))}" if cards else head


def _samples(model: Model) -> str:
    """What the chain's first model and its last one answer to the same prompts."""
    root = model.root
    key = "after" if root.kind == "stage" and root is not model else "before"
    first = {str(sample.get("prompt")): sample.get(key) for sample in dicts(root.entry.get("samples"))}
    rows = [
        {
            **sample,
            "before": first.get(str(sample.get("prompt"))) or sample.get("before"),
            "after": str(sample.get("after")),
        }
        for sample in dicts(model.entry.get("samples"))
    ]
    shown = sample_table(rows)
    return shown and f"## Samples\n\n{styled('samples', shown)}"


def _classes(model: Model, plot: Plot | None) -> str:
    """The classes of a classifier one by one, and which it takes for which."""
    if plot is None:
        return ""
    about = model.score.about
    shown = table(CLASS_COLUMNS, class_rows(about))
    return f"## Classes\n\n{escape(intervals(about))}\n\n{shown}\n\n{pictures([plot])}"


def _typing(result: Mapping[str, Any], plots: Sequence[Plot]) -> str:
    """What models were worth as typing assistants, on the same places."""
    about = result["settings"]
    counts = f"{about['samples']:,} places of each test, and {about['keys']:,} characters to type; seed {about['seed']}"
    blocks = [escape(f"Of {about['text']}: {counts}."), pictures(plots), _by_model(typing_cells(result))]
    if others := typing_differences(result):
        blocks += [escape(f"Differences, in {typing_baseline(result)}:"), _by_model(others)]
        blocks.append(escape(typing_verdict(result)))
    return "\n\n".join(["## Typing", *filter(None, blocks)])


def _by_model(cells: Mapping[str, Cells]) -> str:
    return table(["model", *next(iter(cells.values()))], [[name, *row.values()] for name, row in cells.items()])


def model_table(rows: Sequence[Model]) -> str:
    """One row a model; only columns that were measured."""
    names = list(dict.fromkeys(name for row in rows for name in figures.metrics(row.score.quality)))[:_METRICS]
    disk, weights, *speeds = resources(*rows)
    keys = ["parameters", "nonzero", disk, weights, "peak", *speeds, "training"]
    keys = [key for key in keys if any(key in row.figures for row in rows)]
    cells = []
    for row in rows:
        quality = row.score.quality
        scored = [write_metric(part(quality, name), name == figures.primary(quality)) for name in names]
        cells.append([row.name, *scored, *(write(key, row.figures.get(key)) for key in keys)])
    return table(["model", *map(figures.title, names), *map(label, keys)], cells)


def _verdicts(compared: Sequence[Comparison]) -> str:
    """Each stage and copy: what was done, whether it paid, and its changes against the model before it."""
    known = dict.fromkeys(key for each in compared for key, gain in each.gains.items() if gain is not None)
    keys, rows = [*known][:_RESOURCES], []
    for each in compared:
        model, parent = each.model, each.model.parent
        collapsed = ", collapsed" if part(model.entry, "generation").get("collapsed") is True else ""
        changes = [write_change(change(*pair(key, model, parent)) if parent else None) for key in keys]
        quality = [_rise(each.source), _rise(each.before)]
        rows.append([model.name, did(model.entry), each.verdict + collapsed, *quality, *changes])
    header = ["model", "what was done ", "verdict ", "quality against the source", "quality against before"]
    return table([*header, *(label(key).partition(",")[0] for key in keys)], rows)


def _rise(rise: Rise | None) -> str:
    if rise is None or rise.interval is None:
        return write_change(rise.change if rise else None)
    said = [" to ".join(write_change(end).removesuffix(" %") for end in rise.interval)]
    said += [] if rise.p is None else [f"p {rise.p:.2g}"]
    said += [] if rise.shown else ["no difference"]
    return f"{write_change(rise.change)} ({', '.join(said)})"


def did(entry: Entry) -> str:
    """What was done to a model, as a clause."""
    steps = figures.number(entry.get("steps"))
    method = f"{entry.get('method', 'unknown method')}, {f'{steps:,.0f} steps' if steps else 'not trained'}"
    return ", ".join([*([method] if converted(entry) == "stage" else []), *map(clause, dicts(entry.get("operations")))])


def _details(row: Model) -> Iterator[str]:
    """All that a ledger says of a stage or copy, and all that was measured of a model; masks are cut off."""
    known = {key: value for key, value in row.entry.items() if key not in _LONG and row.kind in MADE}
    known |= {f"benchmark {i}": benchmark for i, benchmark in enumerate(row.benchmarks, start=1)}
    if known:
        yield f"### {escape(row.name)}"
        yield items(f"{key}: {json.dumps(value)[:3000]}" for key, value in known.items())
