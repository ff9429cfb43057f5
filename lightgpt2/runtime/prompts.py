"""Files of prompts, and of the texts that were made from them: JSONL, a line for each."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightgpt2.errors import UserError
from lightgpt2.models.files import atomic_file

_SHOWN = 5  # of the mistakes in a file


def read_prompts(path: Path, option: str = "--prompts") -> list[dict[str, Any]]:
    """The lines of a file, each with `prompt` and whatever else belongs to it; blank lines are left out.

    Args:
        path: The file.
        option: What to name in errors.

    Raises:
        UserError: It cannot be read, or a line has no text under `prompt`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8"
        raise UserError(f"{option}: {path} cannot be read ({reason}); give a JSONL file") from error
    found, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict) and isinstance(value.get("prompt"), str) and value["prompt"]:
            found.append(value)
        else:
            problems.append(
                f'{option}: line {number} of {path} is not of the form {{"prompt": "some text"}}; correct it'
            )
    if problems:
        more = len(problems) - _SHOWN
        raise UserError(problems[:_SHOWN] + [f"{option}: {more} more lines of {path} are like this"] * (more > 0))
    if not found:
        raise UserError(f'{option}: {path} has no lines; give one {{"prompt": "some text"}} for each prompt')
    return found


def to_jsonl(rows: Sequence[dict[str, Any]], texts: Iterable[str]) -> str:
    """The lines of a file with a `text` added to each."""
    pairs = zip(rows, texts, strict=True)
    return "".join(json.dumps({**row, "text": text}, ensure_ascii=False) + "\n" for row, text in pairs)


def write_texts(path: Path, content: str) -> None:
    """Writes a file, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
