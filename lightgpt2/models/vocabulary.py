"""How large a vocabulary is."""

from typing import Any


def needed_rows(tokenizer: Any) -> int:
    """The rows that an embedding needs for a tokenizer: one more than its largest id, however many ids have no token."""
    return int(max(tokenizer.get_vocab().values(), default=-1)) + 1
