"""The rows of JSON, CSV, TSV, Parquet and Arrow files, with the fields that hold documents; the others may hold anything."""

import csv
import gzip
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from lightgpt2.data.documents import Columns
from lightgpt2.data.remarks import Remarks
from lightgpt2.data.streams import lines, opened
from lightgpt2.data.tsv import is_quoted
from lightgpt2.errors import UserError

Row = dict[str, Any]
_SPLIT = "split"
_ARROW_FILE = b"ARROW1"  # how a file of Arrow that is no stream begins


def json_rows(file: Path, columns: Columns, remarks: Remarks) -> Iterator[Row]:
    """Objects of one line each, or of a list; each may have other fields."""
    names, known = list[str](), False
    for number, row in enumerate(_objects(lines(file, remarks)), 1):
        if not isinstance(row, dict):
            what = f"row {number} of {file} is {type(row).__name__}, not an object with fields"
            raise UserError(f"data.source: {what}; correct it")
        if not names:
            _say_split(row, file, remarks)
        names, known = names or [*row], known or bool(columns.of(row))
        yield row
    if names and not known:
        raise columns.missing(str(file), names)


def _objects(found: Iterator[str]) -> Iterator[Any]:
    """The values of a file: one a line, or the elements of one list, or a single one, over several lines."""
    numbered = ((number, line) for number, line in enumerate(found, 1) if line.strip())
    start = next(numbered, None)
    if start is None:
        return
    try:
        is_line = not isinstance(json.loads(start[1]), list)
    except ValueError:
        is_line = False
    if not is_line:
        value = json.loads(start[1] + "".join(line for _, line in numbered))
        yield from value if isinstance(value, list) else [value]
        return
    for number, line in chain([start], numbered):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{error.msg} in line {number}, column {error.colno}") from error


def csv_rows(file: Path, columns: Columns, remarks: Remarks) -> Iterator[Row]:
    return _columns(_quoted(file, ",", remarks), columns, file, remarks)


def tsv_rows(file: Path, columns: Columns, remarks: Remarks) -> Iterator[Row]:
    marks = is_quoted(lines(file, Remarks()))
    return _columns(_quoted(file, "\t", remarks) if marks else _plain(file, remarks), columns, file, remarks)


def _quoted(file: Path, delimiter: str, remarks: Remarks) -> Iterator[list[str]]:
    reader = csv.reader(lines(file, remarks), delimiter=delimiter, strict=True)
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def _plain(file: Path, remarks: Remarks) -> Iterator[list[str]]:
    for line in lines(file, remarks):
        row = line.removesuffix("\n").removesuffix("\r").split("\t") if line.strip("\r\n") else []
        if any(value.startswith('"') for value in row):
            remarks.add("rows in which a quotation mark that begins a field is read as text", str(file))
        yield row


def _columns(rows: Iterator[list[str]], columns: Columns, file: Path, remarks: Remarks) -> Iterator[Row]:
    """The rows by the names of the header; blank lines are no rows."""
    filled = filter(None, rows)
    header = next(filled, None)
    if header is None:
        return
    names = _found(header, columns, file, remarks)
    places = [(name, header.index(name)) for name in names]
    for number, row in enumerate(filled, 2):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} fields and the header {len(header)}")
        yield {name: row[place] for name, place in places}


def parquet_rows(file: Path, columns: Columns, remarks: Remarks) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    with opened(file, remarks) as stream, tempfile.TemporaryFile() as copy:
        content: Any = stream
        if isinstance(stream, gzip.GzipFile):  # a Parquet file is read from its end
            shutil.copyfileobj(stream, copy)
            content = copy
        if content.seek(0, io.SEEK_END) == 0:
            return
        table = ParquetFile(content)
        names = _found(table.schema_arrow.names, columns, file, remarks)
        for batch in table.iter_batches(columns=names, batch_size=1024):
            yield from map(without_none, batch.to_pylist())


def arrow_rows(file: Path, columns: Columns, remarks: Remarks) -> Iterator[Row]:
    """The rows of a stream, as `Dataset.save_to_disk` writes it, or of a file in Arrow's other format (Feather)."""
    from pyarrow import ipc

    with opened(file, remarks) as stream:
        mark = stream.read(len(_ARROW_FILE))
        stream.seek(0)
        if not mark:
            return
        if mark == _ARROW_FILE:
            table = ipc.open_file(stream)
            batches = map(table.get_batch, range(table.num_record_batches))
        else:
            batches = table = ipc.open_stream(stream)
        names = _found(table.schema.names, columns, file, remarks)
        for batch in batches:
            yield from map(without_none, batch.select(names).to_pylist())


def _found(names: list[str], columns: Columns, file: Path, remarks: Remarks) -> list[str]:
    """The columns to read of a table, which must have some, and each once."""
    if not (found := columns.of(names)):
        raise columns.missing(str(file), names)
    if twice := [name for name in found if names.count(name) > 1]:
        raise UserError(f"data.source: {file} has {names.count(twice[0])} columns {twice[0]!r}; rename the others")
    _say_split(names, file, remarks)
    return found


def _say_split(names: Iterable[str], file: Path, remarks: Remarks) -> None:
    """Say that a column does not decide on the splits of its rows, though its name promises to."""
    if _SPLIT in names:
        remarks.add(
            f"tables with a column {_SPLIT!r}, which decides nothing; give each split a file of its own", str(file)
        )


def without_none(row: Row) -> Row:
    """A row of an Arrow table without what its types add inside of its values: each struct has all fields of its column."""
    return {name: _without_none(value) for name, value in row.items()}


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return [*map(_without_none, value)] if isinstance(value, list) else value
