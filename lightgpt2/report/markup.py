"""Markdown of which a page can be generated; text from ledgers is escaped here."""

import re
from collections.abc import Iterable, Sequence
from html import escape as escape_html
from pathlib import Path

import markdown
from markdown.extensions.md_in_html import MarkdownInHtmlExtension
from markdown.extensions.tables import TableExtension

from lightgpt2.report.figures import plain
from lightgpt2.report.plots import Plot

PICTURES = "report-plots"


def escape(text: object) -> str:
    """Text as Markdown that shows just that text, in a table too, and as HTML generated from it.

    What only one of the two dialects (GitHub's and the `markdown` package's) escapes by a backslash is written as an entity.
    """
    escaped = re.sub(r"([\\`*_\[\]#!])", r"\\\1", plain(text).replace("&", "&amp;"))
    return "".join(f"&#{ord(c)};" if c in "<>|~$" else c for c in escaped)


def items(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table: the first column is text, as are those whose title ends with a space; the others are figures.

    What stands in brackets behind a figure goes below it.
    """
    text = [i == 0 or name.endswith(" ") for i, name in enumerate(header)]
    cells = [[_cell(cell, is_text) for cell, is_text in zip(row, text, strict=True)] for row in rows]
    lines = [[*map(escape, header)], ["---" if is_text else "---:" for is_text in text], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str, is_text: bool) -> str:
    value, bracket, more = (text, "", "") if is_text else text.partition(" (")
    return escape(value) + (f"<br/><small>({escape(more)}</small>" if bracket else "")


def folded(title: str, *blocks: str) -> str:
    """Blocks behind a title; empty where there are none."""
    inside = "\n\n".join(filter(None, blocks))
    return inside and f'<details markdown="1">\n<summary>{escape(title)}</summary>\n\n{inside}\n\n</details>'


def styled(name: str, inside: str) -> str:
    """A block that the page's style knows by a name; empty where there is none."""
    return inside and f'<div class="{name}" markdown="1">\n\n{inside}\n\n</div>'


def pictures(plots: Iterable[Plot]) -> str:
    """Links to plots; a page has the plots themselves."""
    return styled("plots", "\n\n".join(f"![{escape(plot.title)}]({PICTURES}/{plot.name}.svg)" for plot in plots))


def as_html(text: str, plots: Iterable[Plot], refresh: int = 0) -> str:
    """One HTML page with its pictures inside. It reloads itself every `refresh` seconds; 0: never."""
    body = markdown.markdown(text, extensions=[TableExtension(), MarkdownInHtmlExtension()])
    for plot in plots:  # text of ledgers is escaped, so these tags are the package's own
        figure = f"<figure>{plot.svg}<figcaption>{escape_html(plot.title)}</figcaption></figure>"
        before, _, rest = body.partition(f'src="{PICTURES}/{plot.name}.svg"')
        body = before.rpartition("<p>")[0] + figure + rest.partition("</p>")[2]
    body = body.replace("<table>", '<div class="wide" role="region" tabindex="0"><table>')
    body = body.replace("</table>", "</table></div>")
    page, style = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.html", "style.css"))
    again = f'\n<meta http-equiv="refresh" content="{refresh}"/>' if refresh else ""
    return page.format(style=style, body=body, refresh=again)
