"""The classes of a classifier one by one, and which it takes for which: from a metric with a confusion matrix in a ledger."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightgpt2.models.quality import FEW
from lightgpt2.report.figures import MISSING, part, primary, write_metric

CLASS_COLUMNS = ("class", "texts", "recall", "precision")
_CELL, _MARGIN = 64, 110  # pixels of the image


class Cell(NamedTuple):
    """How many texts of a class (`row`) were given another (`column`), and which share of the class that is."""

    row: int
    column: int
    texts: int
    share: float


@dataclass(frozen=True)
class Confusion:
    """Which classes were taken for which."""

    classes: list[str]
    counts: list[list[int]]  # a row for each class of the texts, a column for each that was given

    def cells(self) -> Iterator[Cell]:
        for i, counts in enumerate(self.counts):
            for j, count in enumerate(counts):
                yield Cell(i, j, count, count / max(1, sum(counts)))


def confusion_of(about: Mapping[str, Any]) -> Confusion | None:
    """The confusion matrix of a metric in a ledger; None if it has none."""
    found = part(about, "confusion")
    classes, counts = found.get("classes"), found.get("counts")
    if not isinstance(classes, list) or not isinstance(counts, list) or len(classes) < 2:
        return None
    rows = [row for row in counts if isinstance(row, list) and len(row) == len(classes)]
    whole = len(rows) == len(classes) and all(isinstance(count, int) for row in rows for count in row)
    return Confusion([*map(str, classes)], rows) if whole else None


def class_rows(about: Mapping[str, Any]) -> list[list[str]]:
    """A row a class: its texts, the share of them that is found, and the share that is right of those it is given to."""
    found = confusion_of(about)
    if found is None:
        return []
    counts = np.array(found.counts, np.float64)
    hits, texts, given = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    return [
        [name, f"{texts[i]:,.0f}", *(f"{hits[i] / of[i]:.4f}" if of[i] else MISSING for of in (texts, given))]
        for i, name in enumerate(found.classes)
    ]


def intervals(about: Mapping[str, Any]) -> str:
    """The intervals of a share, and what they rest on."""
    found = confusion_of(about)
    count = sum(map(sum, found.counts)) if found else 0
    known = {"bootstrap": about.get("interval_95"), "Wilson": about.get("wilson_95")}
    said = [f"{low:.4f} to {high:.4f} ({name})" for name, (low, high) in ((n, b) for n, b in known.items() if b)]
    few = "; an interval over so few says little" if count < FEW else ""
    return f"95 % of {write_metric(about, False)} over {count:,} texts: {', '.join(said) or MISSING}{few}"


def confusion_image(quality: Mapping[str, Any]) -> NDArray[np.uint8] | None:
    """The confusion matrix as an image `[H, W, 3]`, for TensorBoard: rows are the classes of the texts."""
    found = confusion_of(part(quality, primary(quality)))
    if found is None:
        return None
    from PIL import Image, ImageDraw

    size = len(found.classes) * _CELL
    image = Image.new("RGB", (_MARGIN + size, size + 20), "white")
    draw = ImageDraw.Draw(image)
    for cell in found.cells():
        x, y = _MARGIN + cell.column * _CELL, cell.row * _CELL
        shade = round(255 * (1 - cell.share))
        draw.rectangle((x, y, x + _CELL, y + _CELL), (shade, shade, 255), "lightgrey")
        draw.text((x + 8, y + _CELL // 2 - 6), str(cell.texts), "white" if cell.share > 0.5 else "black")
    for i, name in enumerate(found.classes):
        draw.text((4, i * _CELL + _CELL // 2 - 6), name[:17], "black")
        draw.text((_MARGIN + i * _CELL + 4, size + 4), name[:9], "black")
    return np.asarray(image)
