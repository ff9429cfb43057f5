"""Bytes and lines of files, compressed or not, in the encoding that their first bytes say."""

import codecs
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from lightgpt2.data.remarks import Remarks
from lightgpt2.errors import UserError

_GZIP = b"\x1f\x8b"
_POINTER = b"version https://git-lfs.github.com/spec/"  # how what Git LFS puts in the place of a large file begins
_MARKS = {  # the first fits: that of UTF-32 begins as that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip


@contextmanager
def opened(file: Path, remarks: Remarks) -> Iterator[IO[bytes]]:
    """A file's content; whether it is compressed says its first bytes, not its name."""
    with file.open("rb") as stream, remarks.reading(stream):
        start = stream.read(len(_POINTER))
        stream.seek(0)
        if start == _POINTER:
            raise UserError(
                f"data.source: {file} is a pointer of Git LFS, not the file itself; fetch it with git lfs pull"
            )
        compressed = start.startswith(_GZIP)
        with gzip.GzipFile(fileobj=stream) if compressed else stream as content:
            yield cast("IO[bytes]", content)


def lines(file: Path, remarks: Remarks) -> Iterator[str]:
    """The lines of a file, cut at line feeds alone and with them; it may be larger than memory."""
    number = 0
    with opened(file, remarks) as stream:
        start = stream.read(4)
        stream.seek(0)
        encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")
        with io.TextIOWrapper(stream, encoding, newline="\n") as text:
            try:
                for line in text:
                    number += 1
                    if "\0" in line:
                        what = f"{file} is binary, not text (or UTF-16 without a byte order mark)"
                        raise UserError(f"data.source: {what}; convert it to UTF-8 text")
                    yield line
            except UnicodeDecodeError as error:
                error.reason += f" in line {number + 1 + error.object[: error.start].count(10)}"
                raise
