"""`lightgpt2 report --watch`: the report of runs that go on, written anew every few seconds."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightgpt2.errors import Interrupted, UserError, tell
from lightgpt2.models.ledger import FILE
from lightgpt2.report.figures import MISSING, number, part
from lightgpt2.report.markup import items, pictures, table
from lightgpt2.report.pages import PAGE, files_of, report_of, write_pages
from lightgpt2.report.plots import Plot, losses_plot
from lightgpt2.runs.overview import Found, find_runs

SECONDS = 5  # between two pages; a page loads the next by itself


def watch_runs(folders: Sequence[str], output: str, budget: float, gain: float) -> None:
    """Write the report of runs now, and again every few seconds until a Ctrl-C; see `report.pages.write_report`.

    It begins with the runs that there are: state, optimizer steps, losses. Folders that have no model yet are waited for.

    Raises:
        Interrupted: At the Ctrl-C; the page that is left stays as it is.
    """
    live, page = _Live(folders, budget, gain), Path(output) / PAGE
    tell(f"report: {page}, renewed every {SECONDS} s; Ctrl-C ends it")
    try:
        while True:
            with suppress(FileNotFoundError):  # a run is being replaced: the next page has what it is now
                write_pages(output, *live.compose(), refresh=SECONDS)
            time.sleep(SECONDS)
    except KeyboardInterrupt:
        write_pages(output, *live.compose())
        raise Interrupted(f"stopped; {page} is as of now") from None


class _Live:
    """The report of some folders at any time; what has not changed since the last time is not read again."""

    def __init__(self, folders: Sequence[str], budget: float, gain: float) -> None:
        self._folders, self._budget, self._gain = folders, budget, gain
        self._logs: dict[str, EventAccumulator] = {}  # each reads on from where it has stopped
        self._read: object = None
        self._report: tuple[str, list[Plot]] = ("", [])

    def compose(self) -> tuple[str, list[Plot]]:
        """The report as Markdown, and its plots."""
        text, plots = self._finished()
        runs = self._runs()
        scalars = {found.run.name: self._scalars(found) for found in runs}
        losses = losses_plot({name: each["val/loss"] for name, each in scalars.items() if "val/loss" in each})
        rows = [_row(found, scalars[found.run.name]) for found in runs]
        header = ["run", "state ", "optimizer steps", "training loss", "validation loss", "last change"]
        blocks = [
            f"# Runs at {time.strftime('%H:%M:%S')}",
            table(header, rows) if rows else "No run has begun yet.",
            pictures([losses] if losses else []),
            text,
        ]
        return "\n\n".join(filter(None, blocks)), [*([losses] if losses else []), *plots]

    def _finished(self) -> tuple[str, list[Plot]]:
        """The report of what has a ledger; the problems where that cannot be read."""
        there = [folder for folder in self._folders if files_of(folder)]
        files = [path / FILE if path.is_dir() else path for folder in there for path in files_of(folder)]
        now = [(path, path.stat().st_mtime_ns) for path in files]
        if now != self._read:
            try:
                self._report = report_of(there, self._budget, self._gain) if there else ("", [])
            except UserError as error:
                self._report = items(error.problems), []
            self._read = now
        return self._report

    def _runs(self) -> list[Found]:
        found = dict[str, Found]()
        for folder in self._folders:
            with suppress(UserError):  # it is none of these, or has not begun
                found |= {each.run.name: each for each in find_runs([folder])}
        return [*found.values()]

    def _scalars(self, found: Found) -> dict[str, list[tuple[float, float]]]:
        """The curves that TensorBoard has of a run, as points of step and value; thinned out where they are long."""
        logs = found.run.logs
        if not any(logs.glob("events*")):
            return {}
        reader = self._logs.setdefault(found.run.name, EventAccumulator(str(logs), size_guidance={"scalars": 500}))
        reader.Reload()
        return {
            name: [(point.step, point.value) for point in reader.Scalars(name)]
            for name in ("train/loss", "val/loss")
            if name in reader.Tags()["scalars"]
        }


def _row(found: Found, scalars: dict[str, list[tuple[float, float]]]) -> list[str]:
    losses = [scalars.get(name) for name in ("train/loss", "val/loss")]
    steps = [points[-1][0] for points in losses if points]
    most = number(part(_settings(found), "trainer").get("max_steps"))
    of = f" of {most:,.0f}" if most and most > 0 else ""
    shown = [f"{points[-1][1]:.4f}" if points else MISSING for points in losses]
    return [
        found.run.name,
        found.state,
        f"{max(steps):,.0f}{of}" if steps else MISSING,
        *shown,
        found.changed.astimezone().strftime("%H:%M:%S"),
    ]


def _settings(found: Found) -> dict[str, Any]:
    with suppress(OSError, ValueError, yaml.YAMLError):
        return dict(yaml.safe_load(found.run.config.read_text(encoding="utf-8")))
    return {}
