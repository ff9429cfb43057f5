"""The report as Markdown blocks and plots, in reading order."""

import shlex
from collections.abc import Iterable, Sequence

from lightgpt2.report.chain import Entry, Model, arms, is_converted, machine_of, operations, part
from lightgpt2.report.figures import MISSING, NOT_NOTED, escape, number, write
from lightgpt2.report.packing import packed_sentence, packed_table
from lightgpt2.report.plots import Plot, plots
from lightgpt2.report.savings import savings, sentences
from lightgpt2.report.tables import (
    benchmark_table,
    bought_table,
    chain_table,
    operations_table,
    savings_table,
    sweep_table,
)
from lightgpt2.report.verdicts import Comparison, compare
from lightgpt2.report.words import did, overall, rule, sentence, verdicts

Block = str | list[Plot]

_MADE = ("stage", "quantized", "packed", "exported")

_READING = (
    "Perplexity: of the saved model, on the validation split, with a 95 % bootstrap interval over documents. All models of one "
    "text were scored on the same documents, so that intervals which overlap do not say that there is no difference. Sizes: "
    "tied parameters once; MB is 10^6 bytes; weights in memory of an exported model are the bytes of its files. Speed and "
    "memory: a fresh process for each model; half-precision rows are the stage's own file loaded in fewer bits, their "
    "perplexity that of the rounded weights, computed in FP32. A generation is its prompt and new tokens; CPU time is what all "
    "threads of the process took in it, and a CPU share of 100 % is one core."
)


def compose(rows: Sequence[Model], budget: float, gain: float) -> list[Block]:
    """The whole report.

    Args:
        rows: All models, in order.
        budget: How much the perplexity may lie above the source's.
        gain: By how many per cent a stage must better a figure to have paid.
    """
    compared = [compare(row, budget, gain) for row in rows if row.kind in _MADE]
    return [
        "# Report",
        *_overall(rows, compared),
        _machines(rows),
        rule(budget, gain),
        "## The models",
        chain_table(rows),
        _READING,
        "## What each stage bought",
        bought_table(compared),
        _list(sentence(c, budget, gain, _saved(c.model, rows)) for c in compared),
        *_quantization(rows),
        *_packing(rows),
        *_pictures(rows),
        "## Details",
        *(block for row in rows if row.kind in _MADE for block in _details(row)),
    ]


def _overall(rows: Sequence[Model], compared: Sequence[Comparison]) -> list[str]:
    """A paragraph and a list for each chain."""
    chains: dict[int, list[Model]] = {}
    for row in rows:
        chains.setdefault(id(row.root), []).append(row)
    blocks = []
    for chain in chains.values():
        own = [c for c in compared if c.model.root is chain[0]]
        blocks += [overall(chain, own), *([_list(lines)] if (lines := verdicts(chain, own)) else [])]
    return blocks


def _machines(rows: Sequence[Model]) -> str:
    """The machines that measured speed and memory."""
    stages = [row for row in rows if row.kind == "stage" and machine_of(row.entry)]
    described: dict[str, list[str]] = {}
    for row in stages:
        described.setdefault(_machine(row.entry), []).append(escape(row.name))
    if not described:
        return "**The machine.** Speed and memory were not measured."
    if len(described) == 1:
        return f"**The machine.** {next(iter(described))}."
    return "**The machines.** " + " ".join(f"{text} ({', '.join(names)})." for text, names in described.items())


def _machine(entry: Entry) -> str:
    machine, settings = part(entry, "benchmark", "machine"), part(entry, "benchmark", "settings")
    versions = [f"{escape(name)} {escape(version)}" for name, version in part(machine, "versions").items()]
    threads = machine.get("threads")
    text = [escape(machine.get("name", "an unnamed machine")), escape(machine.get("device", "unknown device"))]
    text += [f"{escape(threads)} {'thread' if threads == 1 else 'threads'}"] if threads is not None else []
    asked = [f"{escape(name.replace('_', ' '))} {_plain(value)}" for name, value in settings.items()]
    return "; ".join(", ".join(words) for words in (text, versions, asked) if words)


def _plain(value: object) -> str:
    return escape(" and ".join(map(str, value)) if isinstance(value, list) else value)


def _quantization(rows: Sequence[Model]) -> list[str]:
    quantized = [row for row in rows if row.kind == "quantized"]
    found = [saving for row in quantized for saving in savings(row, rows)]
    if not quantized:
        return []
    head = "### Where the quantized models' saving comes from"
    note = (
        "Half precision is measured in memory; on disk it is reckoned as 2 bytes a parameter. What it saves alone and what the "
        "rest saves are shares of FP32 and add up."
    )
    return [head, *([savings_table(found), note] if found else [f"Sizes were {MISSING}."])]


def _packing(rows: Sequence[Model]) -> list[str]:
    packed = [row for row in rows if row.kind == "packed"]
    return ["### What packing saves", packed_table(packed)] if packed else []


def _saved(model: Model, rows: Sequence[Model]) -> str:
    if model.kind == "packed":
        return packed_sentence(model)
    return sentences(model, rows) if model.kind == "quantized" else ""


def _pictures(rows: Sequence[Model]) -> list[Block]:
    drawn = plots(rows)
    return ["## Plots", drawn] if drawn else []


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


# -- details ---------------------------------------------------------------------------------------------------------------


def _details(row: Model) -> list[str]:
    entry = row.entry
    blocks = [f"### {escape(row.name)}", _facts(row)]
    if operations(entry):
        blocks.append(operations_table(row))
    if row.kind == "stage" and arms(entry):
        blocks += [
            "Benchmark, each arm in a process of its own; ratios are taken inside a round:",
            benchmark_table(row),
        ]
    for key, sweep in part(entry, "sweeps").items() if row.kind == "stage" else ():
        if isinstance(sweep, dict):
            blocks += [_sweep(str(key), sweep), sweep_table(sweep)]
    return blocks


def _facts(row: Model) -> str:
    entry = row.entry
    parent, name = part(entry, "parent"), str(entry.get("stage", ""))
    source = "random weights" if parent.get("source") == "config" else escape(parent.get("source", NOT_NOTED))
    facts = [
        f"What: {did(entry)}",
        f"Made of: {source}{_hash(parent)}",
        *(
            [f"Teacher: {escape(teacher.get('source', ''))}{_hash(teacher)}"]
            if (teacher := part(entry, "teacher"))
            else []
        ),
        *_data(entry),
        *([] if is_converted(entry) else [_training(entry)]),
        f"Finished: {escape(entry.get('finished') or NOT_NOTED)}",
        f"Configuration: SHA-256 {escape(entry.get('config_sha256') or NOT_NOTED)}",
        "Versions: " + (", ".join(f"{escape(k)} {escape(v)}" for k, v in part(entry, "versions").items()) or NOT_NOTED),
    ]
    if not is_converted(entry):
        command = f"lightgpt2 fit --config {shlex.quote(f'checkpoints/{name}/config.yaml')} --run {shlex.quote(name)}"
        facts.append(f"To do it again: {escape(command)}")
    return _list(facts)


def _hash(model: Entry) -> str:
    return f" (weights SHA-256 {escape(str(model['sha256'])[:16])})" if model.get("sha256") else ""


def _data(entry: Entry) -> list[str]:
    data = part(entry, "data")
    if not data:
        return []
    splits = [
        f"{escape(name)} {write('parameters', number(split.get('documents')))} documents, "
        f"{write('parameters', number(split.get('tokens')))} tokens"
        for name, split in part(data, "splits").items()
        if isinstance(split, dict)
    ]
    shown = [
        escape(data.get("source", NOT_NOTED)),
        f"SHA-256 {escape(str(data.get('sha256', NOT_NOTED))[:16])}",
        *splits,
    ]
    scored = part(entry, "quality", "after")
    tokens, documents = (write("parameters", number(scored.get(key))) for key in ("tokens", "documents"))
    return [f"Data: {'; '.join(shown)}", f"Scored on: {tokens} tokens of {documents} documents"]


def _training(entry: Entry) -> str:
    seconds, memory = number(entry.get("seconds")), number(part(entry, "training").get("peak_memory_mb"))
    return (
        f"Training: seed {escape(entry.get('seed', NOT_NOTED))}, {escape(entry.get('steps', NOT_NOTED))} optimizer steps, "
        f"seconds: {write('s', seconds)}, peak memory in MB: {write('MB', memory)}"
    )


def _sweep(key: str, sweep: Entry) -> str:
    text = f"Sweep of {escape(sweep.get('key', key))}, perplexity with its 95 % interval"
    budget, largest = number(sweep.get("budget")), sweep.get("largest_inside_budget")
    if budget is not None:
        inside = "no value stays" if largest is None else f"the largest value that stays is {escape(largest)}"
        text += f"; inside the sweep's own budget of {budget:g} {inside}"
    return text + ":"
