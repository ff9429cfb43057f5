"""What the terminal shows at the end of a run, a quantization, a sweep, an export and a benchmark."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightgpt2.models.quality import metric_names
from lightgpt2.report.confusion import CLASS_COLUMNS, class_rows, intervals
from lightgpt2.report.figures import MISSING, SAMPLE_COLUMNS, numbers, part, primary, title, workloads
from lightgpt2.report.markup import table

_SHARES = {"source": "outputs as in PyTorch", "cache": "as without the cache", "same": "classes as in PyTorch"}
_ROOM = 0.8  # of the card's memory, above which a model is said to have little room
Arm = dict[str, Any]
Cells = dict[str, str]  # of a row, by their columns
Figures = Mapping[str, Mapping[str, Any]]


def comparison(figures: Figures) -> str:
    """A table with one row a model: its quality as in a ledger, and `parameters`, `embedding`, `megabytes` if it has them."""
    names = dict.fromkeys(name for row in figures.values() for name in metric_names(row))
    cells = [
        {
            **_metrics(row, [*names]),
            "parameters": f"{row['parameters']:,}" if "parameters" in row else "",
            "embedding": f"{row['embedding']:,}" if "embedding" in row else "",
            "MB on disk": f"{row['megabytes']:.2f}" if "megabytes" in row else "",
        }
        for row in figures.values()
    ]
    return "\n".join(["", *_named(figures, cells)])


def class_table(quality: Mapping[str, Any]) -> str:
    """The classes as a terminal shows them, after an empty line; empty where the primary metric has no confusion matrix."""
    about = part(quality, primary(quality))
    if not (rows := class_rows(about)):
        return ""
    return "\n".join(["", "", intervals(about), "", *aligned([CLASS_COLUMNS, *rows])])


def sample_table(samples: Sequence[Mapping[str, Any]]) -> str:
    """What models made of the same prompts, and what they should have, as Markdown."""
    names = [name for name in SAMPLE_COLUMNS if any(sample.get(name) for sample in samples)]
    cells = [[str(sample.get(name) or MISSING) for name in names] for sample in samples]
    return table([f"{name} " for name in names], cells) if samples else ""


def precisions(figures: Figures) -> str:
    """A table with one row a precision of one model: of its quality, `memory`, `megabytes` and the layers `quantized`."""
    cells = [
        {
            **_metrics(row, [row["primary"]]),
            "weights MB": "" if row["memory"] is None else f"{row['memory']:.2f}",
            "MB on disk": "" if row["megabytes"] is None else f"{row['megabytes']:.2f}",
            "linear layers quantized": row.get("quantized", "none"),
        }
        for row in figures.values()
    ]
    return "\n".join(["", *_named(figures, cells)])


def sweep_table(found: Mapping[str, Any]) -> str:
    """A table of a sweep as the ledger has it, one row a value, and the largest value inside its `budget_percent`."""
    rows = [[found["key"]], *([f"{value:g}"] for value in found["values"])]
    for name, points in found["arms"].items():
        rows[0] += [f"{name} {title(points[0]['primary'])}", "95 % interval"]
        for row, point in zip(rows[1:], points, strict=True):
            row += _metrics(point, [point["primary"]]).values()
    largest = found["largest_inside_budget"]
    verdict = "no value is inside it" if largest is None else f"the largest value inside it is {largest:g}"
    return "\n".join(["", *aligned(rows), "", f"With a budget of {found['budget_percent']:g} % {verdict}."])


def _metrics(row: Mapping[str, Any], names: Sequence[str]) -> Cells:
    """A row's metrics, with the interval of the first."""
    first = row[names[0]]
    bounds = " - ".join(f"{bound:.{first['digits']}f}" for bound in first["interval_95"] or ())
    others = {title(name): _value(row[name]) if name in row else "" for name in names[1:]}
    return {title(names[0]): _value(first), "95 % interval": bounds, **others}


def _value(about: Mapping[str, Any]) -> str:
    return f"{about['value']:.{about['digits']}f}"


def _named(names: Iterable[str], rows: Sequence[Cells]) -> list[str]:
    """The lines of a table whose rows have names and the same columns."""
    return aligned([["", *rows[0]], *([name, *row.values()] for name, row in zip(names, rows, strict=True))])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: the first column to the left, the others to the right, a rule below the first row."""
    first, *others = ([*map(len, column)] for column in zip(*rows, strict=True))
    form = "  ".join([f"{{:<{max(first)}}}", *(f"{{:>{max(lengths)}}}" for lengths in others)])
    lines = [form.format(*row) for row in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def exported_line(folder: Path, about: Mapping[str, Any]) -> str:
    """Sizes and figures of an exported folder, of what its `export.json` says, in one line."""
    before, after = (about["quality"][label] for label in ("before", "after"))
    mine, source = (_value(scored[after["primary"]]) for scored in (after, before))
    counts = "".join(f" ({count:g} {what} of {about['validation']})" for what, count in [*numbers(after).items()][:1])
    shares = [f"{said} {about['agreement'][key]:.1%}" for key, said in _SHARES.items() if key in about["agreement"]]
    quality = f"{title(after['primary'])} {mine}, the source's {source}{counts}"
    return "; ".join(filter(None, [f"{folder}: {_megabytes(about)}", quality, ", ".join(shares)]))


def encoder_line(folder: Path, about: Mapping[str, Any]) -> str:
    cosine, texts = about["cosine"], f"({about['cosine']['texts']} texts of {about['validation']})"
    said = f"cosine to PyTorch {cosine['mean']:.5f}, {cosine['least']:.5f} at least {texts}"
    return f"{folder}: {_megabytes(about)}; {said}"


def _megabytes(about: Mapping[str, Any]) -> str:
    return f"{sum(about['bytes'].values()) / 1e6:.2f} MB"


_TYPED = {"incomplete": "incomplete word", "complete": "complete word", "savings": "keystrokes saved"}


def typing_table(result: Mapping[str, Any]) -> str:
    """What a typing assistant got right and saved, model by model, and how that differs from the first."""
    cells, others = typing_cells(result), typing_differences(result)
    lines = ["", *_named(cells, [*cells.values()])]
    if others:
        lines += ["", f"{typing_baseline(result)}:", "", *_named(others, [*others.values()])]
    if verdict := typing_verdict(result):
        lines += ["", verdict]
    return "\n".join(lines)


def typing_cells(result: Mapping[str, Any]) -> dict[str, Cells]:
    """What each model got right and saved as a typing assistant, and what a suggestion takes."""
    found = {}
    for model, row in result["rows"].items():
        cells = {title_: f"{row[name]['value']:.1%} {_span(row[name])}" for name, title_ in _TYPED.items()}
        spent = row.get("milliseconds", {})
        found[model] = cells | {f"{key} ms": f"{spent[key]:.1f}" if spent else "" for key in ("p50", "p95", "first")}
    return found


def typing_differences(result: Mapping[str, Any]) -> dict[str, Cells]:
    """How each other model differs from the first one."""
    others = {model: row["difference"] for model, row in result["rows"].items() if "difference" in row}
    return {
        model: {title_: f"{100 * each[name]['value']:+.1f} {_points(each[name])}" for name, title_ in _TYPED.items()}
        for model, each in others.items()
    }


def typing_baseline(result: Mapping[str, Any]) -> str:
    """What the differences are, in words."""
    return f"points more than {next(iter(result['rows']))}, on the same places"


def typing_verdict(result: Mapping[str, Any]) -> str:
    """Whether one model with constrained decoding is better than two: the first, with and without one for partial words.

    Empty where that was not measured, or on one passage, which tells nothing of others.
    """
    first, partial = next(iter(result["rows"])), result["settings"].get("partial")
    pair = result["rows"].get(f"{first} + {partial}")
    if pair is None or not (ends := pair["difference"]["savings"]["interval_95"]):
        return ""
    low, high = ends
    alone, both = f"{first} alone", f"with {partial} for partial words"
    if low <= 0 <= high:
        return f"Keystrokes saved by {alone} and {both}: no difference."
    return f"{alone} saves {'fewer' if low > 0 else 'more'} keystrokes than {both}."


def _span(about: Mapping[str, Any]) -> str:
    ends = about.get("wilson_95") or about["interval_95"]
    return f"({ends[0]:.1%}..{ends[1]:.1%})" if ends else ""


def _points(about: Mapping[str, Any]) -> str:
    ends = about["interval_95"]
    return f"({100 * ends[0]:+.1f}..{100 * ends[1]:+.1f})" if ends else ""


def benchmark_table(result: dict[str, Any]) -> str:
    """What each arm takes, each workload arm by arm, what a generation takes; then what failed, or has little room."""
    failed = [f"{arm['name']}: not measured: {arm['error']}" for arm in result["arms"] if "error" in arm]
    measured = [arm for arm in result["arms"] if "error" not in arm]
    card = part(result, "machine").get("memory_mb") or math.inf
    shares = {arm["name"]: (arm.get("peak_reserved_mb") or 0) / card for arm in measured}
    crowded = [
        f"{name}: it reserved {share:.0%} of the card's memory" for name, share in shares.items() if share > _ROOM
    ]
    return "\n".join(["", *(_sections(result, measured) if measured else []), *failed, *crowded])


def operators_markdown(arm: Arm) -> str:
    """The operators that took the most time of an arm, for TensorBoard."""
    rows = [
        [op["name"], str(op["calls"]), f"{op['self_ms']:.3f}", f"{op['share']:.1%}", op["device"]]
        for op in arm["operators"]
    ]
    shown = table(["operator", "calls", "self ms", "share", "device"], rows)
    return f"{shown}\n\nattention: {arm['attention_kernel']}, trace: {arm['trace']}"


def _sections(result: dict[str, Any], measured: list[Arm]) -> list[str]:
    settings, machine = result["settings"], result["machine"]
    names = [arm["name"] for arm in measured]
    spent = [_spent(arm) for arm in measured]
    ratios = f"median (lowest - highest) of the ratios inside {settings['rounds']} rounds"
    about = [f"{key}: {', '.join(f'{title(n)} {v}' for n, v in each.items())}" for key, each in _described(settings)]
    return [
        *_named(names, [_taken(arm) for arm in measured]),
        f"\nTimes as fast as {names[0]}: {ratios}\n",
        *_workloads(measured),
        "",
        *(["Wall clock; CPU time of all threads; 100 % is one core\n", *_named(names, spent), ""] if spent[0] else []),
        *about,
        f"{machine['name']}, {machine['threads']} thread{'s' * (machine['threads'] != 1)} on the CPU, "
        f"torch {machine['versions']['torch']}; one process a model",
    ]


def _described(settings: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The workloads whose key does not say all; of those that share the rest, the first."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for key, about in settings["workloads"].items():
        if about:
            found.setdefault(str(about), (key.partition(" ")[0], about))
    return [*found.values()]


def _taken(arm: Arm) -> Cells:
    return {
        "weights MB": f"{arm['weights_mb']:.1f}",
        "peak MB": f"{arm['peak_memory_mb']:.1f}",
        "load s": f"{arm['load_seconds']:.2f}",
        "attention": arm.get("attention_kernel", "not profiled").replace("aten::_scaled_dot_product_", ""),
    }


def _workloads(measured: Sequence[Arm]) -> list[str]:
    """A table with a block for each workload, in it one row an arm."""
    columns = {"p50 ms": "p50_ms", "p95 ms": "p95_ms", "first token ms": "first_token_ms"}
    rows: list[list[str]] = []
    for key in workloads(measured[0]):
        rows.append([key, *[""] * (len(columns) + 2)])
        for arm in measured:
            figures, ratio = workloads(arm)[key], arm["ratio"][key]
            cells = [f"{figures[name]:.2f}" if name in figures else "" for name in columns.values()]
            rate = next((f"{v:.1f} {n.removesuffix('_per_s')}" for n, v in figures.items() if n.endswith("_per_s")), "")
            faster = f"{ratio['median']:.2f} ({ratio['low']:.2f} - {ratio['high']:.2f})"
            rows.append([f"  {arm['name']}", *cells, rate, faster])
    header = ["", *columns, "a second", "times as fast"]
    kept = [i for i, _ in enumerate(header) if i == 0 or any(row[i] for row in rows)]
    return [line.rstrip() for line in aligned([[row[i] for i in kept] for row in [header, *rows]])]


def _spent(arm: Arm) -> Cells:
    cells: Cells = {}
    for key, each in workloads(arm).items():
        if "cpu_seconds" in each:
            count = key.partition(" ")[2]
            cells[f"{count}: seconds"] = f"{each['seconds']:.3f}"
            cells[f"{count}: CPU seconds"] = f"{each['cpu_seconds']:.3f}"
            cells[f"{count}: CPU %"] = f"{each['cpu_percent']:.0f}"
    return cells


def evaluation_table(found: Mapping[str, Any]) -> str:
    """A table of the results of lm-evaluation-harness: one row for each metric of a task or a group of them."""
    rows = [("task", "metric", "value", "standard error", "better", "examples", "shots")]
    for name, figures in {**found["results"], **found.get("groups", {})}.items():
        examples, shots = found["n-samples"].get(name, {}).get("effective", ""), found["n-shot"].get(name, "")
        for key, value in figures.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = figures.get(f"{metric}_stderr,{filtered}")
            better = {True: "higher", False: "lower"}.get(found["higher_is_better"].get(name, {}).get(metric), "")
            shown = [MISSING if each is None else f"{each:.4f}" for each in (value, error)]
            label = metric if filtered == "none" else f"{metric} ({filtered})"
            rows.append((name, label, *shown, better, str(examples), str(shots)))
    return "\n".join(["", *aligned(rows)])
