"""`lightgpt2 report`: finds ledgers and benchmarks, and writes `report.md`, its pictures and `report.html`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightgpt2.errors import UserError, tell
from lightgpt2.models.files import atomic_file
from lightgpt2.models.ledger import FILE, Ledger
from lightgpt2.report.document import compose
from lightgpt2.report.markup import PICTURES, as_html
from lightgpt2.report.plots import Plot, typing_plots
from lightgpt2.report.rows import Benchmark, Entry, models
from lightgpt2.report.table import typing_table

PAGE = "report.html"
_BENCHMARK = "benchmark.json"
_TYPED = "typing*.json"  # of `lightgpt2 type`


def write_report(folders: Sequence[str], output: str, budget: float, gain: float) -> None:
    """Write what each stage of finished runs bought: `report.md`, the pictures beside it, and `report.html`.

    `folders` are those of runs (`checkpoints/RUN`), folders of those, or have a `benchmark.json` or `typing.json`. The primary
    metric may be `budget` per cent worse than the source's; a stage has paid if it betters a figure by `gain` per cent. Nothing
    is written if a folder holds none of them, or a damaged file.
    """
    write_pages(output, *report_of(folders, budget, gain))
    tell(f"report: {Path(output) / 'report.md'} and {Path(output) / PAGE}")


def report_of(folders: Sequence[str], budget: float, gain: float) -> tuple[str, list[Plot]]:
    """The report of folders, composed: its text and its plots; see `write_report`."""
    ledgers, benchmarks, typed = find(folders)
    return compose(models(ledgers, benchmarks), budget, gain, typed)


def write_pages(output: str, text: str, plots: Sequence[Plot], refresh: int = 0) -> None:
    """Write a composed report as Markdown and HTML. The page reloads itself every `refresh` seconds; 0: never."""
    target = Path(output)
    files = {f"{PICTURES}/{plot.name}.svg": plot.file() for plot in plots}
    files |= {"report.md": text, PAGE: as_html(text, plots, refresh)}
    try:
        for name, content in files.items():
            with atomic_file(target / name) as temporary:
                temporary.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written ({error.strerror}); give another folder") from error


def find(folders: Sequence[str]) -> tuple[dict[str, list[Entry]], list[Benchmark], list[dict[str, Any]]]:
    """The ledgers of runs and folders of runs, by the folder of their model; benchmarks, and what was typed, beside them."""
    found, ledgers = dict[Path, str](), dict[str, list[Entry]]()
    benchmarks, typed, problems = list[Benchmark](), list[dict[str, Any]](), list[str]()
    for folder in folders:
        files = files_of(folder)
        if not files:
            problems.append(f"{folder}: holds no {FILE}; give the folder of a run (checkpoints/RUN) or of a pipeline")
        found |= {path.resolve(): str(path) for path in files}  # folders may overlap
    for name in found.values():
        try:
            if name.endswith(_BENCHMARK):
                benchmarks.append(dict(json.loads(Path(name).read_text(encoding="utf-8"))))
            elif Path(name).match(_TYPED):
                typed.append(dict(json.loads(Path(name).read_text(encoding="utf-8"))))
                typing_plots(typed[-1])  # these fail where something lacks
                typing_table(typed[-1])
            elif entries := Ledger.read(name):
                ledgers[name] = entries
            else:
                problems.append(f"{name}/{FILE}: has no entries; finish the run, or leave it out")
        except UserError as error:
            problems += error.problems
        except (OSError, TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            problems.append(f"{name}: damaged ({error}); measure again, or remove it")
    if problems:
        raise UserError(problems)
    return ledgers, benchmarks, typed


def files_of(folder: str) -> list[Path]:
    """What a report of a folder is made from: folders of models that have a ledger, and what was measured."""
    return [*_files(Path(folder).expanduser())]


def _files(folder: Path) -> Iterator[Path]:
    """Model folders with a ledger, and what was measured beside them: of a run, or of all runs below; nothing inside a run."""
    if (folder / FILE).is_file():
        yield folder
        return
    yield from sorted(folder.glob(_TYPED), key=lambda path: path.stem)
    if (folder / _BENCHMARK).is_file():
        yield folder / _BENCHMARK
    if (folder / "model" / FILE).is_file():
        yield from (path.parent for path in (folder / "model" / FILE, *sorted(folder.glob(f"model-*/{FILE}"))))
        return
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.name.startswith(".") and not path.is_symlink():
            yield from _files(path)
