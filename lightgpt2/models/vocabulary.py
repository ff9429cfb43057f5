"""What a vocabulary can say: its size, and which text is text."""

from typing import Any

# Places of images in a text. Text models that share the tokenizer of one that reads images have no row for them.
_PLACEHOLDERS = ("<image_soft_token>",)


def needed_rows(tokenizer: Any) -> int:
    """The rows that an embedding needs for a tokenizer: one more than its largest id, however many ids have no token."""
    ids = (id_ for token, id_ in tokenizer.get_vocab().items() if token not in _PLACEHOLDERS)
    return int(max(ids, default=-1)) + 1


def is_unicode(text: str) -> bool:
    """False for a text with half of a surrogate pair, as JSON and command lines may have, which is no character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
