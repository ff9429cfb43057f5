"""What `runs` and `show` print of the runs under `checkpoints/`."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from lightgpt2.models.quality import metric_names
from lightgpt2.report.figures import MISSING, part, primary, title
from lightgpt2.report.rows import clause
from lightgpt2.report.table import aligned, comparison
from lightgpt2.runs.overview import Artefact, Found, megabytes

_COLUMNS = ("run", "state", "method", "quality", "MB", "age")
_UNITS = {"d": timedelta(days=1), "h": timedelta(hours=1), "min": timedelta(minutes=1)}


def listing(found: Sequence[Found]) -> str:
    """A table: a line for each run, and one for each further artefact of it."""
    now = datetime.now(UTC)
    return "\n".join(aligned([_COLUMNS, *(row for each in found for row in _rows(each, now))]))


def details(found: Found) -> str:
    """All that is known of a run: where it comes from, what was done, its quality, and its files."""
    entry, lines = found.entry, list[tuple[str, str]]()
    lines.append(("run", f"{found.run.name}, {found.state} {age(datetime.now(UTC) - found.changed)} ago"))
    if entry:
        parent, teacher = part(entry, "parent").get("source"), part(entry, "teacher").get("source")
        taught = f", taught by {teacher}" if teacher and teacher != parent else ""
        lines.append(("method", f"{entry.get('method')} of {parent}{taught}"))
        lines += [("", clause(operation)) for operation in entry.get("operations", [])]
        lines.append(("data", f"{part(entry, 'data').get('source')}"))
        taken = timedelta(seconds=round(entry.get("seconds", 0)))
        lines.append(("training", f"{entry.get('steps')} steps in {taken}, seed {entry.get('seed')}"))
    for each in found.artefacts:
        lines.append(("model" if each.folder == found.run.model else "", f"{each.folder}, {each.megabytes:.2f} MB"))
    for path in found.checkpoints:
        lines.append(("checkpoint", f"{path}, {megabytes(path):.2f} MB"))
    lines.append(("settings", str(found.run.config)))
    if any(found.run.logs.glob("events*")):
        lines.append(("curves", f"tensorboard --logdir {found.run.logs}"))
    lines += [("curves", str(path)) for path in sorted(found.run.logs.glob("version_*/metrics.csv"))]
    if (page := found.run.folder / "report.html").is_file():
        lines.append(("report", str(page)))
    told = "\n".join(f"{name:12}{text}" for name, text in lines)
    scored = {label: each for label, each in part(entry, "quality").items() if metric_names(each)}
    sizes = {**part(entry, "reference_sizes"), "after": part(entry, "sizes")}
    return told + ("\n" + comparison({k: {**each, **sizes.get(k, {})} for k, each in scored.items()}) if scored else "")


def age(passed: timedelta) -> str:
    """A time that has passed, in one unit: `3 h`."""
    unit, length = next(((u, each) for u, each in _UNITS.items() if passed >= each), ("min", _UNITS["min"]))
    return f"{passed // length} {unit}"


def _rows(found: Found, now: datetime) -> Iterator[tuple[str, ...]]:
    method = str(found.entry.get("method", MISSING))
    model = next((each for each in found.artefacts if each.folder == found.run.model), None)
    yield found.run.name, found.state, method, *_figures(model), age(now - found.changed)
    for each in found.artefacts:
        if each is not model:
            yield f"  {each.folder.name}", "", "", *_figures(each), ""


def _figures(artefact: Artefact | None) -> tuple[str, str]:
    """Quality and size as a table shows them."""
    if artefact is None:
        return MISSING, MISSING
    scored: dict[str, Any] = part(artefact.entry, "quality", "after")
    name = primary(scored)
    about = part(scored, name)
    shown = f"{title(name)} {about['value']:.{about['digits']}f}" if about else MISSING
    return shown, f"{artefact.megabytes:.2f}"
