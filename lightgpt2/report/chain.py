"""The picture of a chain: each model in a box with its figures, behind the one that it comes from."""

from collections import Counter
from collections.abc import Sequence
from html import escape

from lightgpt2.report.figures import plain, primary, title, write, write_metric
from lightgpt2.report.plots import Plot
from lightgpt2.report.rows import MADE, Model

_WIDTH, _LINE, _ACROSS, _DOWN, _EDGE = 144, 15, 20, 12, 6  # of a box, of its lines, between boxes, around all
_STAGE, _COPY, _INK = "#2f7ed8", "#e07b00", "currentColor"


def chain_picture(rows: Sequence[Model]) -> Plot | None:
    """The sources, stages and copies of a report, from left to right; None for fewer than two."""
    shown = [row for row in rows if row.kind in ("source", *MADE)]
    if len(shown) < 2:
        return None
    texts = {row.name: _lines(row) for row in shown}
    high = max(map(len, texts.values())) * _LINE + 10
    taken: Counter[int] = Counter()
    places: dict[int, tuple[float, float]] = {}
    svg = []
    for row in shown:
        column = _depth(row)
        below = taken[column]
        if row.parent and id(row.parent) in places:  # a chain without branches is one straight line
            below = max(below, round((places[id(row.parent)][1] - _EDGE) / (high + _DOWN)))
        taken[column] = below + 1
        x, y = _EDGE + column * (_WIDTH + _ACROSS), _EDGE + below * (high + _DOWN)
        places[id(row)] = x, y
        if row.parent and id(row.parent) in places:
            svg.append(_arrow(*places[id(row.parent)], x, y, high))
        svg.append(_box(x, y, high, _STAGE if row.kind == "stage" else _COPY if row.parent else "#888888"))
        for i, text in enumerate(texts[row.name]):
            weight = ' font-weight="600"' if i == 0 else ""
            svg.append(f'<text x="{x + 8}" y="{y + 17 + i * _LINE}"{weight}>{escape(plain(text))}</text>')
    across, down = max(taken) + 1, max(taken.values())
    width, height = 2 * _EDGE - _ACROSS + across * (_WIDTH + _ACROSS), 2 * _EDGE - _DOWN + down * (high + _DOWN)
    about = "Each model of the chain, with its quality and its size"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" class="chain" role="img" '
    head += f'font-size="11" font-family="system-ui, sans-serif" fill="{_INK}" style="max-width: {1.3 * width:.0f}px">'
    head += f"<title>{about}</title>"
    return Plot("chain", about, f"{head}{''.join(svg)}</svg>\n")


def _depth(row: Model) -> int:
    return 0 if row.parent is None else _depth(row.parent) + 1


def _lines(row: Model) -> list[str]:
    """The name of a model, its quality and its sizes."""
    name, metric = plain(row.name), primary(row.score.quality)
    name = name.removeprefix(f"{row.parent.name} ") if row.parent and row.kind != "stage" else name
    found = [name if len(name) <= 18 else f"{name[:8]}…{name[-9:]}"]
    found += [f"{title(metric)} {write_metric(row.score.about, False)}"] if metric else []
    sizes = (("parameters", "parameters"), ("disk", "MB")) if row.kind in ("source", "stage") else (("disk", "MB"),)
    return found + [f"{write(key, row.figures[key])} {unit}" for key, unit in sizes if key in row.figures]


def _box(x: float, y: float, high: float, colour: str) -> str:
    edge = f'stroke="{colour}" fill="{colour}" fill-opacity="0.08"'
    return f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{high}" rx="5" {edge}/>'


def _arrow(x: float, y: float, to_x: float, to_y: float, high: float) -> str:
    start, middle, level, end = x + _WIDTH, to_x - _ACROSS / 2, y + high / 2, to_y + high / 2
    path = f"{start},{level} {middle},{level} {middle},{end} {to_x - 2},{end}"
    head = f"{to_x - 7},{end - 4} {to_x - 1},{end} {to_x - 7},{end + 4}"
    return (
        f'<polyline points="{path}" fill="none" stroke="{_INK}"/>'
        f'<polyline points="{head}" fill="none" stroke="{_INK}"/>'
    )
