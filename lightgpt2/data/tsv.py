"""Whether the quotation marks of a TSV file quote fields, or are text."""

import csv
import io
from collections.abc import Iterable, Iterator

csv.field_size_limit(2**31 - 1)  # a document may be longer than the 128 KB that it allows


def is_quoted(lines: Iterator[str]) -> bool:
    """True if fields of a TSV file are quoted as in CSV (by pandas, say), False if marks are text (GLUE, SST).

    A quoted header, or a line with another number of fields, shows that fields are quoted. Else every line is a row, and
    marks quote only if a CSV writer would have put just these.
    """
    first = next(lines, "")
    if first.startswith('"'):
        return True
    tabs = first.count("\t")
    if not tabs:
        return _is_of_a_writer(lines)
    quoted = True
    for line in lines:
        if line.count("\t") != tabs and line.strip("\r\n"):
            return True
        quoted = quoted and ('"' not in line or _is_of_a_writer([line]))
    return quoted


def _is_of_a_writer(lines: Iterable[str]) -> bool:
    """True if a CSV writer would write these lines just so."""
    taken: list[str] = []

    def remembered() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    written = io.StringIO()
    writer = csv.writer(written, delimiter="\t")
    try:
        for row in csv.reader(remembered(), delimiter="\t", strict=True):
            writer.writerow(row)
            if row and written.getvalue().rstrip("\r\n") != "".join(taken).rstrip("\r\n"):
                return False
            taken.clear()
            written.seek(0)
            written.truncate()
    except csv.Error:
        return False
    return True
