"""The splits of a corpus, and how a text's content alone decides on one."""

import hashlib
from typing import Literal

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


def split_of(text: str, valid_fraction: float, test_fraction: float) -> Split:
    """The split that a text's content puts it in, so that equal texts always share one."""
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if place < test_fraction:
        return "test"
    return "valid" if place < test_fraction + valid_fraction else "train"
