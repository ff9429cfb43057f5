"""The documents of a file: plain text, JSON, CSV, TSV, Parquet or Arrow, each also compressed by gzip."""

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from lightgpt2.data.documents import Columns, Document, DocumentColumns, documents
from lightgpt2.data.remarks import Remarks
from lightgpt2.data.streams import lines
from lightgpt2.data.tables import Row, arrow_rows, csv_rows, json_rows, parquet_rows, tsv_rows
from lightgpt2.errors import UserError

_BLOCK = 1 << 20  # characters that are cut into documents at once


def kind(path: Path) -> str:
    """The suffix that says how a file is read, in lower case and without `.gz`; empty if it is none of `READERS`."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in READERS else ""


def read(file: Path, text_field: str, separator: str, remarks: Remarks) -> Iterator[Document]:
    """The documents of a file, one after the other.

    Raises:
        UserError: It cannot be read, or is not what its name says.
    """
    if not kind(file):
        raise UserError(f"data.source: {file} is not one of {', '.join(READERS)}; convert it or rename it")
    if READERS[kind(file)] is not None:
        yield from documents(rows(file, DocumentColumns(text_field), remarks), text_field, str(file), remarks)
        return
    with _explained(file):
        yield from cut((line.replace("\r\n", "\n").replace("\r", "\n") for line in lines(file, remarks)), separator)


def rows(file: Path, columns: Columns, remarks: Remarks) -> Iterator[Row]:
    """The rows of a table in a file, one after the other, as `read`."""
    reader = READERS.get(kind(file))
    if reader is None:
        tables = ", ".join(suffix for suffix, found in READERS.items() if found)
        raise UserError(f"data.source: {file} is not one of {tables}; convert it or rename it")
    with _explained(file):
        yield from reader(file, columns, remarks)


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Raises a `UserError` for what a file's content lets a reader raise."""
    try:
        yield
    except UnicodeDecodeError as error:
        what = f"{file} is not valid {error.encoding.upper()} ({error.reason})"
        raise UserError(f"data.source: {what}; convert it, for example with iconv -t utf-8") from error
    except OSError as error:
        what = error.strerror or reason(error)
        raise UserError(f"data.source: {file} cannot be read ({what}); correct it") from error
    except UserError:
        raise
    except Exception as error:  # pyarrow, csv, json and zlib each raise their own
        what = f"is not a readable {kind(file)[1:]} file ({reason(error)}); correct it"
        raise UserError(f"data.source: {file} {what}") from error


def cut(lines: Iterable[str], separator: str) -> Iterator[str]:
    """Cut a stream of text into documents; only a block and the last, unfinished document are kept in memory."""
    pattern = re.compile(separator)
    block: list[str] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line)
        if size >= max(_BLOCK, len(block[0])):  # a long unfinished document is not cut again and again
            *complete, last = _pieces(pattern, "".join(block))
            if last.strip():  # else the separator may go on in the next line
                yield from complete
                block, size = [last], 0
    yield from _pieces(pattern, "".join(block))


def _pieces(pattern: re.Pattern[str], text: str) -> list[str]:
    return cast("list[str]", pattern.split(text)[:: pattern.groups + 1])  # what the groups found lies between


def reason(error: BaseException) -> str:
    return textwrap.shorten(str(error).strip().partition("\n")[0], 120, placeholder=" ...") or type(error).__name__


# What reads the rows of files of each suffix; None: plain text, which the separator cuts.
READERS: dict[str, Callable[[Path, Columns, Remarks], Iterator[Row]] | None] = {
    ".txt": None, ".md": None,
    ".jsonl": json_rows, ".json": json_rows, ".csv": csv_rows, ".tsv": tsv_rows, ".parquet": parquet_rows,
    ".arrow": arrow_rows,
}  # fmt: skip
