"""`lightgpt2 report`: finds the ledgers, and writes `report.md`, its pictures and `report.html`."""

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

import markdown

from lightgpt2.errors import UserError, tell
from lightgpt2.models.files import atomic_file
from lightgpt2.models.ledger import FILE, read
from lightgpt2.report.chain import Entry, models
from lightgpt2.report.document import Block, compose
from lightgpt2.report.figures import escape
from lightgpt2.report.plots import Plot

PICTURES = "report-plots"
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>What each stage bought</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def write_report(folders: Sequence[str], output: str, budget: float, gain: float) -> None:
    """Writes what each stage of finished runs bought.

    Args:
        folders: Folders of runs (`checkpoints/RUN`), or folders of those.
        output: Folder for `report.md`, the pictures beside it, and `report.html`.
        budget: How much the perplexity may rise above the source's.
        gain: Per cent by which a stage must better a figure to have paid.

    Raises:
        UserError: A folder holds no ledger, or a damaged one; nothing is written.
    """
    blocks = compose(models(find(folders)), budget, gain)
    target = Path(output)
    pictures = {plot.name: plot.file() for block in blocks if isinstance(block, list) for plot in block}
    try:
        for name, svg in pictures.items():
            _write(target / PICTURES / f"{name}.svg", svg)
        _write(target / "report.md", as_markdown(blocks))
        _write(target / "report.html", as_html(blocks))
    except OSError as error:
        raise UserError(
            f"report: --output {output} cannot be written ({error.strerror}); give another folder"
        ) from error
    tell(f"report: {target / 'report.md'} and {target / 'report.html'}")


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


# -- ledgers ---------------------------------------------------------------------------------------------------------------


def find(folders: Sequence[str]) -> dict[str, list[Entry]]:
    """The ledgers of runs and folders of runs, by the folder of their model.

    Raises:
        UserError: With all that is wrong: folders without a ledger, damaged ledgers.
    """
    found: dict[Path, str] = {}
    problems = []
    for folder in folders:
        ledgers = list(_ledgers(Path(folder).expanduser()))
        if not ledgers:
            problems.append(
                f"report: {folder} holds no {FILE}; give the folder of a run (checkpoints/RUN) or of a pipeline"
            )
        found |= {path.resolve(): str(path) for path in ledgers}  # folders may overlap
    entries: dict[str, list[Entry]] = {}
    for name in found.values():
        try:
            entries[name] = read(name)
            if not entries[name]:
                problems.append(f"{name}/{FILE}: it has no entries; finish the run, or leave it out")
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return entries


def _ledgers(folder: Path) -> Iterator[Path]:
    """Model folders with a ledger: of a run, or of all runs below; what a run keeps inside itself is its own business."""
    if (folder / FILE).is_file():
        yield folder
        return
    own = [folder / "model", *sorted(folder.glob("model-*"))]
    if (folder / "model" / FILE).is_file():
        yield from (path for path in own if (path / FILE).is_file())
        return
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.name.startswith(".") and not path.is_symlink():
            yield from _ledgers(path)


# -- pages -----------------------------------------------------------------------------------------------------------------


def as_markdown(blocks: Sequence[Block]) -> str:
    """The report as Markdown; pictures lie beside it."""
    return "\n\n".join(block if isinstance(block, str) else _links(block) for block in blocks) + "\n"


def _links(plots: Sequence[Plot]) -> str:
    return "\n\n".join(f"![{escape(plot.title)}]({PICTURES}/{plot.name}.svg)" for plot in plots)


def as_html(blocks: Sequence[Block]) -> str:
    """The report as one page that needs nothing besides itself."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    body = "\n".join(_prose(block) if isinstance(block, str) else _figures(block) for block in blocks)
    return _PAGE.format(style=style, body=body)


def _prose(text: str) -> str:
    page = markdown.markdown(text, extensions=["tables"])
    # Text of ledgers is escaped, so these tags are the package's own.
    page = page.replace("<table>", '<div class="wide" role="region" aria-label="table" tabindex="0"><table>')
    return page.replace("</table>", "</table></div>")


def _figures(plots: Sequence[Plot]) -> str:
    figures = [f"<figure>{plot.inline()}<figcaption>{html.escape(plot.title)}</figcaption></figure>" for plot in plots]
    return f'<div class="figures">{"".join(figures)}</div>'
