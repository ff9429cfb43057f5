"""`lightgpt2 report`: finds ledgers and benchmarks, and writes `report.md`, its pictures and `report.html`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightgpt2.errors import UserError, tell
from lightgpt2.models.files import atomic_file
from lightgpt2.models.ledger import FILE, Ledger
from lightgpt2.report.document import compose
from lightgpt2.report.markup import PICTURES, as_html
from lightgpt2.report.plots import Plot
from lightgpt2.report.rows import Benchmark, Entry, models

PAGE = "report.html"
_BENCHMARK = "benchmark.json"


def write_report(folders: Sequence[str], output: str, budget: float, gain: float) -> None:
    """Write what each stage of finished runs bought: `report.md`, the pictures beside it, and `report.html`.

    `folders` are those of runs (`checkpoints/RUN`), folders of those, or have a `benchmark.json`. The primary metric may be
    `budget` per cent worse than the source's; a stage has paid if it betters a figure by `gain` per cent. Nothing is written
    if a folder holds neither, or a damaged file.
    """
    write_pages(output, *compose(models(*find(folders)), budget, gain))
    tell(f"report: {Path(output) / 'report.md'} and {Path(output) / PAGE}")


def write_pages(output: str, text: str, plots: Sequence[Plot], refresh: int = 0) -> None:
    """Write a report that is composed; a page with `refresh` loads itself again after so many seconds."""
    target = Path(output)
    files = {f"{PICTURES}/{plot.name}.svg": plot.file() for plot in plots}
    files |= {"report.md": text, PAGE: as_html(text, plots, refresh)}
    try:
        for name, content in files.items():
            with atomic_file(target / name) as temporary:
                temporary.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written ({error.strerror}); give another folder") from error


def find(folders: Sequence[str]) -> tuple[dict[str, list[Entry]], list[Benchmark]]:
    """The ledgers of runs and folders of runs, by the folder of their model; and the benchmarks beside them."""
    found, ledgers = dict[Path, str](), dict[str, list[Entry]]()
    benchmarks, problems = list[Benchmark](), list[str]()
    for folder in folders:
        files = files_of(folder)
        if not files:
            problems.append(f"{folder}: holds no {FILE}; give the folder of a run (checkpoints/RUN) or of a pipeline")
        found |= {path.resolve(): str(path) for path in files}  # folders may overlap
    for name in found.values():
        try:
            if name.endswith(_BENCHMARK):
                benchmarks.append(dict(json.loads(Path(name).read_text(encoding="utf-8"))))
            elif entries := Ledger.read(name):
                ledgers[name] = entries
            else:
                problems.append(f"{name}/{FILE}: has no entries; finish the run, or leave it out")
        except UserError as error:
            problems += error.problems
        except (OSError, TypeError, ValueError, RecursionError) as error:
            problems.append(f"{name}: damaged ({error}); measure again, or remove it")
    if problems:
        raise UserError(problems)
    return ledgers, benchmarks


def files_of(folder: str) -> list[Path]:
    """What a report of a folder is made from: folders of models that have a ledger, and benchmarks."""
    return [*_files(Path(folder).expanduser())]


def _files(folder: Path) -> Iterator[Path]:
    """Model folders with a ledger, and benchmarks: of a run, or of all runs below, but of nothing inside a run."""
    if (folder / FILE).is_file():
        yield folder
        return
    if (folder / _BENCHMARK).is_file():
        yield folder / _BENCHMARK
    if (folder / "model" / FILE).is_file():
        yield from (path.parent for path in (folder / "model" / FILE, *sorted(folder.glob(f"model-*/{FILE}"))))
        return
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.name.startswith(".") and not path.is_symlink():
            yield from _files(path)
