"""What a person should know of how a corpus was read: above all what of it was not."""

from collections import Counter

_SHOWN = 5  # names of one remark


class Remarks:
    """Remarks on files, rows and documents, each with its count and the names of where it happened."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def add(self, remark: str, where: str) -> None:
        self._counts.setdefault(remark, Counter())[where] += 1

    def lines(self) -> list[str]:
        """One line for each remark: `rows without text, left out: 7 (a.jsonl: 5, b.csv: 2)`."""
        return [f"{remark}: {counts.total()} ({_named(counts)})" for remark, counts in self._counts.items()]


def _named(counts: Counter[str]) -> str:
    names = [name if count == 1 else f"{name}: {count}" for name, count in counts.items()]
    return ", ".join([*names[:_SHOWN], *([f"{more} more"] if (more := len(names) - _SHOWN) > 0 else [])])
