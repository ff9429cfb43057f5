"""What a person should know of how a corpus was read: above all what of it was not; and how far the reading is."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import IO

_SHOWN = 5  # names of one remark


class Remarks:
    """Remarks on files, rows and documents, each with its count and the names of where it happened.

    Args:
        counts: What was remarked before: by remark, how often it happened where.
    """

    def __init__(self, counts: Mapping[str, Mapping[str, int]] = MappingProxyType({})) -> None:
        self.counts = {remark: Counter(places) for remark, places in counts.items()}
        self._streams: list[IO[bytes]] = []
        self._finished = 0

    def add(self, remark: str, where: str) -> None:
        self.counts.setdefault(remark, Counter())[where] += 1

    @contextmanager
    def reading(self, stream: IO[bytes]) -> Iterator[None]:
        """Counts what is read of a file."""
        size = os.fstat(stream.fileno()).st_size
        self._streams.append(stream)
        try:
            yield
        finally:
            self._streams.remove(stream)
            self._finished += size

    @property
    def bytes_read(self) -> int:
        """The bytes of files, as they lie on disk, that have been read."""
        return self._finished + sum(stream.tell() for stream in self._streams if not stream.closed)

    def lines(self) -> list[str]:
        """One line for each remark: `rows without text, left out: 7 (a.jsonl: 5, b.csv: 2)`."""
        return [f"{remark}: {counts.total()} ({_named(counts)})" for remark, counts in self.counts.items()]


def _named(counts: Counter[str]) -> str:
    names = [name if count == 1 else f"{name}: {count}" for name, count in counts.items()]
    return ", ".join([*names[:_SHOWN], *([f"{more} more"] if (more := len(names) - _SHOWN) > 0 else [])])
