"""The report's plots, as SVG with its text as text; a plot whose data is missing is left out."""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightgpt2.report.chain import HALF, Model, arms, is_converted, part
from lightgpt2.report.figures import label, number, plain, write

_WIDTH = 4.7  # inches of 72 units: 400 pixels of a phone's page are a little more than that
_COLOURS = ("#2f7ed8", "#e07b00", "#1a9a6c", "#c2427d", "#8a63d2", "#b3a000", "#5b8a9a", "#888888")
_INK, _LINE = "#123456", "#abcdef"  # stand for the page's own colours until the picture is in its place
_STYLE: Any = {
    "svg.fonttype": "none", "font.size": 11, "font.family": "sans-serif", "text.parse_math": False,
    "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _LINE, "xtick.color": _INK, "ytick.color": _INK,
    "grid.color": _LINE, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11,
    "legend.frameon": False, "legend.fontsize": 10, "lines.markersize": 5,
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A picture.

    Attributes:
        name: Name of its file, without `.svg`.
        title: What it shows; the text for those who cannot see it.
        svg: The picture, in placeholder colours.
    """

    name: str
    title: str
    svg: str

    def file(self) -> str:
        """The picture as a file of its own, on white, since it cannot know what it is shown on."""
        svg = self.svg.replace(_INK, "#222222").replace(_LINE, "#cccccc")
        return svg.replace(">", '><rect width="100%" height="100%" fill="#ffffff"/>', 1)

    def inline(self) -> str:
        """The picture as part of a page, in the page's colours."""
        return self.svg.replace(_INK, "currentColor").replace(_LINE, "var(--line)")


def _draw(name: str, title: str, height: float, paint: Callable[[Axes], None]) -> Plot:
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's own fonts draw the text, and have more letters
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        paint(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    title = plain(title)
    return Plot(name, title, _embeddable(file.getvalue(), name, title))


def _embeddable(svg: str, name: str, title: str) -> str:
    """An SVG without what a page has already (its head, links to other documents), and with ids that only it has."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    first, _, rest = svg.partition(">")
    size = re.search(r'viewBox="[^"]+"', first)
    assert size
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size[0]} role="img" aria-label="{_attribute(title)}">'
    return f"{head}<title>{_attribute(title)}</title>{rest.strip()}\n"


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def _short(name: str) -> str:
    """A name that leaves room for the picture; the tables have it whole."""
    name = plain(name)
    short = name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}"
    return f"\u200b{short}" if short.startswith("_") else short  # a legend hides names that begin with an underscore


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _spread_out(values: Sequence[float]) -> bool:
    """Whether values need a logarithmic axis."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > 20


# -- the plots -------------------------------------------------------------------------------------------------------------


def _bars(name: str, title: str, rows: Sequence[Model], keys: Sequence[str], unit: str) -> Plot | None:
    """Horizontal bars, grouped by model, each with its figure."""
    rows = [row for row in rows if any(_finite(row.figures.get(key)) for key in keys)]
    keys = [key for key in keys if any(_finite(row.figures.get(key)) for row in rows)]
    if not rows:
        return None

    def paint(axes: Axes) -> None:
        thickness = 0.8 / len(keys)
        for i, key in enumerate(keys):
            known = [(place, row.figures[key]) for place, row in enumerate(rows) if _finite(row.figures.get(key))]
            places = [place + (i - (len(keys) - 1) / 2) * thickness for place, _ in known]
            drawn = axes.barh(places, [v for _, v in known], thickness, color=_COLOURS[i], label=label(key))
            axes.bar_label(drawn, [write(key, v) for _, v in known], padding=3, fontsize=9)
        _name_rows(axes, [row.name for row in rows])
        axes.set_xlabel(unit)
        axes.margins(x=0.2, y=0.02)
        axes.grid(axis="x", linewidth=0.6)
        axes.figure.legend(loc="outside upper left", ncols=2 if len(keys) > 1 else 1)

    return _draw(name, title, 1.1 + len(rows) * (0.14 + 0.2 * len(keys)), paint)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)


def _perplexities(rows: Sequence[Model]) -> Plot | None:
    rows = [row for row in rows if _finite(row.figures.get("perplexity"))]
    if not rows:
        return None

    def paint(axes: Axes) -> None:
        for place, row in enumerate(rows):
            value = row.figures["perplexity"]
            colour = _COLOURS[1 if is_converted(row.entry) else 0]
            if row.interval and all(map(math.isfinite, row.interval)):
                axes.plot(row.interval, [place, place], color=colour, linewidth=2)
            axes.plot([value], [place], "o", color=colour)
            axes.annotate(
                write("perplexity", value), (value, place), (0, 6), textcoords="offset points", ha="center", fontsize=9
            )
        _name_rows(axes, [row.name for row in rows])
        _scale(axes, "x", [row.figures["perplexity"] for row in rows])
        axes.set_xlabel("perplexity, with its 95 % interval")
        axes.set_ylim(len(rows) - 0.5, -0.8)
        axes.margins(x=0.1)
        axes.grid(axis="x", linewidth=0.6)

    return _draw("perplexity", "Perplexity of each model, with its 95 % interval", 0.9 + 0.42 * len(rows), paint)


def _scale(axes: Axes, side: str, values: Sequence[float]) -> None:
    if _spread_out(values):
        axes.set_xscale("log") if side == "x" else axes.set_yscale("log")


def _lines(name: str, title: str, lines: dict[str, list[tuple[float, float]]], x: str, marks: str) -> Plot | None:
    lines = {key: [p for p in points if _finite(p[0]) and _finite(p[1])] for key, points in lines.items()}
    lines = {key: points for key, points in lines.items() if points}
    if not lines:
        return None

    def paint(axes: Axes) -> None:
        for i, (key, points) in enumerate(lines.items()):
            style = "--" if key == "random" else "-"
            axes.plot(*zip(*points, strict=True), marks + style, color=_COLOURS[i % 8], label=_short(key))
        _scale(axes, "y", [value for points in lines.values() for _, value in points])
        axes.set_xlabel(_short(x))
        axes.set_ylabel("perplexity")
        axes.grid(linewidth=0.6)
        axes.figure.legend(loc="outside upper left", ncols=2)

    return _draw(name, title, 3.1 + 0.2 * (len(lines) // 2), paint)


def _curves(rows: Sequence[Model]) -> Plot | None:
    lines = {}
    for row in rows:
        curve = row.entry.get("curve")
        if row.kind == "stage" and isinstance(curve, list):
            lines[row.name] = [_point(p) for p in curve if isinstance(p, list) and len(p) == 2]
    return _lines("curves", "Validation perplexity against optimizer steps, by stage", lines, "optimizer steps", "o")


def _point(values: Sequence[Any]) -> tuple[float, float]:
    x, y = (number(value) for value in values)
    return (math.nan if x is None else x), (math.nan if y is None else y)


def sweep_plot(sweep: Mapping[str, Any], key: str, run: str, name: str = "sweep") -> Plot | None:
    """Perplexity against what was swept, a line for each arm.

    Args:
        sweep: A sweep as the ledger has it.
        key: What was swept.
        run: Whose model it was.
        name: Name of the picture.

    Returns:
        The picture; nothing where there are no points.
    """
    values, arms = sweep.get("values"), sweep.get("arms")
    if not isinstance(values, list) or not isinstance(arms, dict):
        return None
    # Values that are no numbers stand beside each other in their order.
    places = [i if number(value) is None else value for i, value in enumerate(values)]
    lines = {
        str(arm): [
            _point((x, p.get("perplexity"))) for x, p in zip(places, points, strict=False) if isinstance(p, dict)
        ]
        for arm, points in arms.items()
        if isinstance(points, list)
    }
    return _lines(name, f"Perplexity against {key}, {run}", lines, key, "o")


def _sweeps(rows: Sequence[Model]) -> list[Plot]:
    found = [
        (str(key), sweep, row.name)
        for row in rows
        for key, sweep in (part(row.entry, "sweeps").items() if row.kind == "stage" else ())
        if isinstance(sweep, dict)
    ]
    plots = [sweep_plot(sweep, key, run, f"sweep-{i}") for i, (key, sweep, run) in enumerate(found, start=1)]
    return [plot for plot in plots if plot]


def _operators(rows: Sequence[Model]) -> Plot | None:
    """Self time of the operators that take most of it, stacked by arm."""
    times: dict[str, dict[str, float]] = {}
    for row in rows:
        for arm in arms(row.entry) if row.kind == "stage" else ():
            listed = arm.get("operators")
            spent = {
                str(o.get("name")): time
                for o in (listed if isinstance(listed, list) else [])
                if isinstance(o, dict) and (time := number(o.get("self_ms"))) is not None and math.isfinite(time)
            }
            if spent:
                times[_arm_name(row, arm)] = spent
    if not times:
        return None
    totals: dict[str, float] = {}
    for spent in times.values():
        for operator, time in spent.items():
            totals[operator] = totals.get(operator, 0) + time
    top = sorted(totals, key=lambda operator: -totals[operator])[:6]

    def paint(axes: Axes) -> None:
        left = [0.0] * len(times)
        for i, operator in enumerate([*top, *(["other listed operators"] if len(totals) > len(top) else [])]):
            widths = [
                spent.get(operator, 0) if operator in top else sum(t for name, t in spent.items() if name not in top)
                for spent in times.values()
            ]
            axes.barh(range(len(times)), widths, 0.7, left=left, color=_COLOURS[i], label=_short(operator))
            left = [a + b for a, b in zip(left, widths, strict=True)]
        _name_rows(axes, list(times))
        axes.set_xlabel("self time, ms")
        axes.margins(x=0.05)
        axes.grid(axis="x", linewidth=0.6)
        axes.figure.legend(loc="outside upper left", ncols=2)

    return _draw("operators", "Self time of the slowest operators, by model", 1.9 + 0.3 * len(times), paint)


def _arm_name(row: Model, arm: dict[str, Any]) -> str:
    name = str(arm.get("name", "")).replace("model-", "").replace("model ", "")
    return f"{row.name} {HALF.get(name, name)}"


def plots(rows: Sequence[Model]) -> list[Plot]:
    """The plots of a chain, those whose data its ledgers hold.

    Args:
        rows: The chain's models, in order.
    """
    tokens = sorted(
        {k for row in rows for k in row.figures if k.startswith("tokens ")}, key=lambda k: int(k.split()[1])
    )
    files = [row for row in rows if row.kind != "half precision"]
    found = [
        _bars("disk", "Megabytes on disk, by model", files, ["disk"], "MB"),
        _bars("memory", "Memory in megabytes, by model", rows, ["weights", "peak"], "MB"),
        _perplexities(rows),
        *_sweeps(rows),
        _curves(rows),
        _bars("speed", "New tokens a second, by model and precision", rows, tokens, "tokens/s"),
        _operators(rows),
    ]
    return [plot for plot in found if plot]
