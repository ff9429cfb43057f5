"""The report's plots, as SVG with its text as text; a plot whose data is missing is left out."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain
from types import MappingProxyType
from typing import Any

from lightgpt2.report.confusion import confusion_of
from lightgpt2.report.figures import (
    dicts,
    interval,
    is_latency,
    is_throughput,
    label,
    number,
    part,
    plain,
    primary,
    title,
)
from lightgpt2.report.rows import Model

_COLOURS = ("#2f7ed8", "#e07b00", "#1a9a6c", "#c2427d", "#8a63d2", "#b3a000", "#5b8a9a", "#888888")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 360, 62, 546, 14, 312
_LETTER, _LINE = 7.2, 15  # of a text at 12 pixels, in wide fonts

Series = Mapping[str, Sequence[tuple[float | None, float | None]]]
Place = tuple[float, float]


@dataclass(frozen=True)
class Plot:
    """A picture."""

    name: str  # of its file, without `.svg`
    title: str  # what it shows; the text for those who cannot see it
    svg: str  # for a page, in the page's colours

    def file(self) -> str:
        """The picture as a file, on white, since it cannot know what it is shown on."""
        svg = self.svg.replace("currentColor", "#222222").replace("var(--line)", "#cccccc")
        return svg.replace(">", '><rect width="100%" height="100%" fill="#ffffff"/>', 1)


class _Axis:
    """Maps values to pixels; logarithmic where the values need it."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.log = min(values) > 0 and max(values) / min(values) > 20
        low, high = (math.log10(value) if self.log else value for value in (min(values), max(values)))
        margin = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
        self.low, self.high, self.start = low - margin, high + margin, start
        self.scale = (end - start) / (self.high - self.low)

    def at(self, value: float) -> float:
        return self.start + ((math.log10(value) if self.log else value) - self.low) * self.scale

    def ticks(self) -> list[float]:
        if self.log:
            found = [m * 10.0**e for e in range(math.floor(self.low), math.ceil(self.high)) for m in (1, 2, 5)]
            return [value for value in found if self.low <= math.log10(value) <= self.high]
        raw = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(plain(text))}</text>'


def _line(places: Sequence[Place], colour: str, more: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{path}" fill="none" stroke="{colour}"{more}/>'


def _dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'


def _short(name: str) -> str:
    name = plain(name)
    return name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}"  # the tables have it whole


def _plot(
    name: str,
    about: str,
    series: Series,
    x: str,
    y: str,
    level: float | None = None,
    intervals: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> Plot | None:
    """Lines with a legend; with a level, which is dashed, points with their names beside them and their intervals."""
    known: dict[str, list[Place]] = {}
    for key, pairs in series.items():
        for a, b in pairs:
            if a is not None and b is not None and math.isfinite(a) and math.isfinite(b):
                known.setdefault(key, []).append((a, b))
    if sum(map(len, known.values())) < 2:
        return None
    levels = [] if level is None else [level]
    spans = {key: ends for key, ends in intervals.items() if key in known and all(map(math.isfinite, ends))}
    across = _Axis([a for points in known.values() for a, _ in points], _LEFT, _RIGHT)
    legend = 0 if levels else math.ceil(len(known) / 2) * _LINE
    heights = [*levels, *chain(*spans.values()), *(b for points in known.values() for _, b in points)]
    up = _Axis(heights, _BOTTOM, _TOP + legend)
    svg = [*_grid(across, up, x, y)]
    for place in map(up.at, levels):
        svg.append(_line([(_LEFT, place), (_RIGHT, place)], "currentColor", ' stroke-dasharray="4 4"'))
        svg.append(_text(_RIGHT, place - 4, "budget", "end"))
    places = {key: [(across.at(a), up.at(b)) for a, b in points] for key, points in known.items()}
    boxes = [(a - 5, b - 5, a + 5, b + 5) for mine in places.values() for a, b in mine]
    for i, (key, mine) in enumerate(places.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        svg += [_dot(*place, colour) for place in mine]
        svg += [_line([(mine[0][0], up.at(end)) for end in spans[key]], colour)] if key in spans else []
        if levels:
            svg.append(_beside(*mine[0], _short(key), boxes))
        else:
            left, top = _LEFT + i % 2 * (_RIGHT - _LEFT) / 2, _TOP + i // 2 * _LINE
            svg += [_line(mine, colour), _dot(left, top - 4, colour), _text(left + 9, top, _short(key), "start")]
    return _whole(name, about, svg)


def _whole(name: str, about: str, svg: Sequence[str], height: float = _HEIGHT) -> Plot:
    about = plain(about)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" font-size="12" '
    head += f'font-family="system-ui, sans-serif" fill="currentColor"><title>{escape(about)}</title>'
    return Plot(name, about, f"{head}{''.join(svg)}</svg>\n")


def _grid(across: _Axis, up: _Axis, x: str, y: str) -> Iterator[str]:
    for value, place in ((value, across.at(value)) for value in across.ticks()):
        yield _line([(place, _TOP), (place, _BOTTOM)], "var(--line)") + _text(place, _BOTTOM + 16, f"{value:.6g}")
    for value, place in ((value, up.at(value)) for value in up.ticks()):
        yield _line([(_LEFT, place), (_RIGHT, place)], "var(--line)")
        yield _text(_LEFT - 6, place + 4, f"{value:.6g}", "end")
    yield _text((_LEFT + _RIGHT) / 2, _HEIGHT - 10, _short(x))
    yield _text(14, _BOTTOM / 2, y, more=f' transform="rotate(-90 14 {_BOTTOM / 2})"')


def _beside(x: float, y: float, name: str, boxes: list[tuple[float, float, float, float]]) -> str:
    """A point's name where it covers least of what is there already."""
    width = _LETTER * len(name)
    sides = ((x + 8, 0), (x - 8 - width, 0), (x - width / 2, 13), (x + 8, 13), (x - 8 - width, 13))
    corners = [(left, y - 8 + up) for left, shift in sides for up in sorted({-shift, shift})]

    def cost(corner: Place) -> float:
        left, top = corner
        over = sum(left < b[2] and b[0] < left + width and top < b[3] and b[1] < top + 14 for b in boxes)
        return over + 10 * (left < _LEFT or left + width > _WIDTH or top < 0 or top + 14 > _BOTTOM)

    left, top = min(corners, key=cost)
    boxes.append((left, top, left + width, top + 14))
    before = left + width < x  # its end is next to the point, in every font
    return _text(left + width if before else left, top + 11, name, "end" if before else "start")


def sweep_plot(sweep: Mapping[str, Any], key: str, run: str, name: str = "sweep") -> Plot | None:
    """The primary metric against the key that a run was swept over, a line for each arm; None for too few points."""
    values, arms = sweep.get("values"), {str(arm): dicts(rows) for arm, rows in part(sweep, "arms").items()}
    metric = next((primary(row) for rows in arms.values() for row in rows if primary(row)), "")
    # Values that are no numbers stand beside each other in their order.
    places = [i if number(x) is None else float(x) for i, x in enumerate(values if isinstance(values, list) else [])]
    lines = {
        arm: [(x, number(part(row, metric).get("value"))) for x, row in zip(places, rows, strict=False)]
        for arm, rows in arms.items()
    }
    return _plot(name, f"{title(metric)} against {key}, {run}", lines, key, title(metric))


def confusion_plot(about: Mapping[str, Any], name: str, model: str) -> Plot | None:
    """A metric's confusion matrix, each row shaded by shares of its class; None if it has none."""
    found = confusion_of(about)
    if found is None:
        return None
    left, top = 150, 20
    side = (_RIGHT - left) / len(found.classes)
    high = min(side, 60)
    svg = []
    for cell in found.cells():
        x, y = left + cell.column * side, top + cell.row * high
        box = f'x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{high:.1f}"'
        svg.append(f'<rect {box} fill="{_COLOURS[0]}" fill-opacity="{cell.share:.3f}" stroke="var(--line)"/>')
        if side >= 24:
            svg.append(_text(x + side / 2, y + high / 2 + 4, f"{cell.texts:,}"))
    bottom = top + high * len(found.classes)
    for i, each in enumerate(found.classes):
        svg.append(_text(left - 8, top + (i + 0.5) * high + 4, _short(each), "end"))
        if side >= 24:
            svg.append(_text(left + (i + 0.5) * side, bottom + 16, plain(each)[: int(side / _LETTER)]))
    svg += [
        _text(left - 8, 12, "class of the text", "end"),
        _text((left + _RIGHT) / 2, bottom + 36, "class that was given"),
    ]
    return _whole(name, f"Which classes {model} takes for which", svg, bottom + 44)


def typing_plots(result: Mapping[str, Any]) -> list[Plot]:
    """What is right of what a typing assistant shows, against how often it shows something; what it saves, and takes."""
    found = []
    for name in ("incomplete", "complete"):
        lines = {key: [(100 * x, 100 * y) for x, y in row["curves"][name]] for key, row in result["rows"].items()}
        about = f"Precision at shown rate, {name}-word test"
        found.append(_plot(name, about, lines, "per cent of places shown", "per cent of shown that is right"))
    rows = {key: row for key, row in result["rows"].items() if "milliseconds" in row}
    points = {key: [(row["milliseconds"]["p50"], 100 * row["savings"]["value"])] for key, row in rows.items()}
    spans = {key: [100 * end for end in row["savings"]["interval_95"] or ()] for key, row in rows.items()}
    about = "Keystrokes saved against the time of a suggestion"
    intervals = {key: ends for key, ends in spans.items() if ends}
    found.append(_plot("savings", about, points, "milliseconds (median)", "per cent saved", intervals=intervals))
    return [plot for plot in found if plot]


def curves(rows: Sequence[Model]) -> list[Plot]:
    """How the stages were trained, a plot for each primary metric, and their sweeps."""
    stages = [row for row in rows if row.kind == "stage"]
    found: list[Plot | None] = []
    for metric in dict.fromkeys(primary(row.score.quality) for row in stages):
        lines = {}
        for row in (row for row in stages if primary(row.score.quality) == metric):
            curve = row.entry.get("curve")
            points = [p for p in curve if isinstance(p, list) and len(p) == 2] if isinstance(curve, list) else []
            lines[row.name] = [(number(step), number(value)) for step, value in points]
        about = f"Validation {title(metric)} against optimizer steps"
        found.append(_plot(f"curves-{len(found) + 1}", about, lines, "optimizer steps", title(metric)))
    for row in stages:
        for key, sweep in part(row.entry, "sweeps").items():
            found.append(sweep_plot(part(sweep), key, row.name, f"sweep-{len(found) + 1}"))
    return [plot for plot in found if plot]


def losses_plot(lines: Mapping[str, Sequence[Place]]) -> Plot | None:
    """The validation loss of runs against their optimizer steps, by name."""
    about = "Validation loss against optimizer steps"
    return _plot("losses", about, lines, "optimizer steps", "validation loss")


def scatters(rows: Sequence[Model], budget: float) -> list[Plot]:
    """Size and speed against quality, for each text that models were scored on; the first model's is the source's."""
    found: list[Plot | None] = []
    for text in dict.fromkeys(row.score.text for row in rows):
        mine = [row for row in rows if row.score.text == text]
        first, quality = mine[0].score.value, {row.name: row.score.value for row in mine}
        if first is None or not math.isfinite(first):
            continue
        metric, higher = title(primary(mine[0].score.quality)), mine[0].score.about.get("better") == "higher"
        y = f"{metric} ({'higher' if higher else 'lower'} is better)"
        level = first * (1 + (-budget if higher else budget) / 100)
        bounds = {row.name: interval(row.score.about) for row in mine}
        intervals = {name: ends for name, ends in bounds.items() if ends}
        disk = {row.name: row.figures.get("disk") for row in mine if row.kind != "half precision"}
        several = [("size", label("disk"), disk), ("speed", *_speeds(mine, is_throughput))]
        for name, x, values in (*several, ("latency", *_speeds(mine, is_latency))):
            points = {row: [(value, quality[row])] for row, value in values.items()}
            about = f"{metric} against {x}"
            found.append(_plot(f"{name}-{len(found) // 3 + 1}", about, points, x, y, level, intervals))
    return [plot for plot in found if plot]


def _speeds(rows: Sequence[Model], kind: Callable[[str], bool]) -> tuple[str, dict[str, float | None]]:
    """The first throughput, or latency, of most models that one machine measured."""
    machines = Counter(machine for row in rows for machine in row.speeds)
    speeds = {row.name: row.speeds.get(max(machines, key=lambda name: machines[name]), {}) for row in rows if machines}
    key = next((key for speed in speeds.values() for key in speed if kind(key)), "")
    return (label(key), {name: speed.get(key) for name, speed in speeds.items()}) if key else ("", {})
