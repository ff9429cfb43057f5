"""The values of one field in JSON, CSV, TSV and Parquet files; the other fields may hold anything."""

import csv
import gzip
import io
import json
import shutil
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from lightgpt2.data.remarks import Remarks
from lightgpt2.data.streams import lines, opened
from lightgpt2.data.tsv import is_quoted
from lightgpt2.errors import UserError


def json_values(file: Path, field: str, remarks: Remarks) -> Iterator[Any]:
    """The values of a field in objects of one line each, or in a list of them."""
    fields, known = list[str](), False
    for row, found in enumerate(_objects(lines(file)), 1):
        if not isinstance(found, dict):
            what = f"row {row} of {file} is {type(found).__name__}, not an object with fields"
            raise UserError(f"data.source: {what}; correct it")
        fields, known = fields or [*found], known or field in found
        yield found.get(field)
    if fields and not known:
        raise no_field(field, str(file), fields)


def _objects(found: Iterator[str]) -> Iterator[Any]:
    """The values of a file: one a line, or the elements of one list, or a single one, over several lines."""
    numbered = ((number, line) for number, line in enumerate(found, 1) if line.strip())
    start = next(numbered, None)
    if start is None:
        return
    try:
        whole = isinstance(json.loads(start[1]), list)
    except ValueError:
        whole = not start[1].rstrip().endswith("}")
    if whole:
        value = json.loads(start[1] + "".join(line for _, line in numbered))
        yield from value if isinstance(value, list) else [value]
        return
    for number, line in chain([start], numbered):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{error.msg} in line {number}, column {error.colno}") from error


def csv_values(file: Path, field: str, remarks: Remarks) -> Iterator[Any]:
    return _column(_quoted_rows(file, ","), field, file)


def tsv_values(file: Path, field: str, remarks: Remarks) -> Iterator[Any]:
    return _column(_quoted_rows(file, "\t") if is_quoted(lines(file)) else _plain_rows(file, remarks), field, file)


def _quoted_rows(file: Path, delimiter: str) -> Iterator[list[str]]:
    reader = csv.reader(lines(file), delimiter=delimiter, strict=True)
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def _plain_rows(file: Path, remarks: Remarks) -> Iterator[list[str]]:
    for line in lines(file):
        row = line.removesuffix("\n").removesuffix("\r").split("\t") if line.strip("\r\n") else []
        if any(value.startswith('"') for value in row):
            remarks.add("rows in which a quotation mark that begins a field is read as text", str(file))
        yield row


def _column(rows: Iterator[list[str]], field: str, file: Path) -> Iterator[str]:
    """The values of a column; blank lines are no rows."""
    filled = filter(None, rows)
    header = next(filled, None)
    if header is None:
        return
    if field not in header:
        raise no_field(field, str(file), header)
    if header.count(field) > 1:
        raise UserError(f"data.text_field: {file} has {header.count(field)} columns {field!r}; rename the others")
    place = header.index(field)
    for number, row in enumerate(filled, 2):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} fields and the header {len(header)}")
        yield row[place]


def parquet_values(file: Path, field: str, remarks: Remarks) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with opened(file) as stream, tempfile.TemporaryFile() as copy:
        content: Any = stream
        if isinstance(stream, gzip.GzipFile):  # a Parquet file is read from its end
            shutil.copyfileobj(stream, copy)
            content = copy
        if content.seek(0, io.SEEK_END) == 0:
            return
        table = ParquetFile(content)
        if field not in (names := table.schema_arrow.names):
            raise no_field(field, str(file), names)
        for batch in table.iter_batches(columns=[field], batch_size=1024):
            yield from batch.column(0).to_pylist()


def no_field(field: str, where: str, fields: Iterable[str]) -> UserError:
    names = textwrap.shorten(", ".join(map(str, fields)), 120, placeholder=" ...")
    return UserError(f"data.text_field: {where} has no field {field!r}; name one of {names}")
