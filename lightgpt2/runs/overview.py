"""The runs under `checkpoints/`: what each has made, and what of it is no longer needed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightgpt2.errors import Problem, UserError
from lightgpt2.models.ledger import Ledger
from lightgpt2.runs.run import Run

ROOT = Path("checkpoints")
PREPARED = ROOT / ".data"  # tokens, and what teachers have written


@dataclass(frozen=True)
class Artefact:
    """A model that a run has made.

    Attributes:
        folder: Its folder.
        entry: The ledger's entry of it; empty where it has none.
        megabytes: The size of its weights as the ledger has it, else of the whole folder, in units of 10^6 bytes.
    """

    folder: Path
    entry: dict[str, Any]
    megabytes: float


@dataclass(frozen=True)
class Found:
    """A run under `checkpoints/`.

    Attributes:
        run: Its place.
        state: `finished`; `unfinished` if its newest checkpoint is newer than its model, or there is none; `damaged` if its
            ledger cannot be read.
        artefacts: Its model, the adapters, and the copies in other formats.
        checkpoints: The files to resume from.
        changed: When its model was finished, or a checkpoint or setting written last.
    """

    run: Run
    state: str
    artefacts: list[Artefact]
    checkpoints: list[Path]
    changed: datetime

    @property
    def entry(self) -> dict[str, Any]:
        """The ledger's entry of its model."""
        return next((each.entry for each in self.artefacts if each.folder == self.run.model), {})


def find_runs(names: Sequence[str] = ()) -> list[Found]:
    """The runs of these names, or of a group of that name; without names all, in the order of their names.

    Raises:
        UserError: There is no such run.
    """
    there = {run.name: run for run in _runs()}
    missing = [name for name in names if not any(_is_of(each, name) for each in there)]
    if missing:
        fix = f"give one of {', '.join(there)}" if there else "run lightgpt2 fit first"
        raise UserError([Problem(name, f"no such run under {ROOT}/", fix) for name in missing])
    return [_found(run) for name, run in there.items() if not names or any(_is_of(name, each) for each in names)]


def unneeded(found: Sequence[Found], prepared: bool) -> list[Path]:
    """The checkpoints of finished runs; with `prepared` also the prepared data, which all runs share."""
    kept = [path for each in found if each.state == "finished" for path in each.checkpoints]
    return [*kept, *([PREPARED] if prepared and PREPARED.is_dir() else [])]


def megabytes(path: Path) -> float:
    """The size of a file or folder in units of 10^6 bytes."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def _is_of(name: str, asked: str) -> bool:
    asked = asked.removeprefix(f"{ROOT}/").rstrip("/")
    return name == asked or name.startswith(f"{asked}/")


def _runs() -> Iterator[Run]:
    folders = sorted(path for pattern in ("*", "*/*") for path in ROOT.glob(f"{pattern}/config.yaml"))
    for path in folders:
        name = path.parent.relative_to(ROOT).as_posix()
        if not name.startswith("."):
            yield Run(name)


def _found(run: Run) -> Found:
    places = [run.model, run.folder / "adapter", *sorted(run.folder.glob("model-*"))]
    checkpoints = [path for path in (run.last, run.best) if path.is_file()]
    newest = max(path.stat().st_mtime for path in (*checkpoints, run.config))
    artefacts, damaged = [], False
    for place in filter(Path.is_dir, places):
        try:
            entry = Ledger.read(place).last
        except UserError:
            entry, damaged = {}, True
        artefacts.append(Artefact(place, entry, entry.get("sizes", {}).get("megabytes") or megabytes(place)))
    model = run.model / "ledger.json"
    finished = model.is_file() and (not run.last.is_file() or run.last.stat().st_mtime <= model.stat().st_mtime)
    state = "damaged" if damaged else "finished" if finished else "unfinished"
    seconds = model.stat().st_mtime if finished else newest
    return Found(run, state, artefacts, checkpoints, datetime.fromtimestamp(seconds, UTC))
