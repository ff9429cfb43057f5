"""Files of prompts and of their texts: JSONL, a line for each."""

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightgpt2.errors import Problem, UserError
from lightgpt2.models.files import atomic_file

_SHOWN = 5  # of the mistakes in a file
_FORM = '{"prompt": "some text"}'


def read_prompts(path: Path, option: str = "--prompts") -> list[dict[str, Any]]:
    """Read the lines of a file, each with `prompt` and whatever else belongs to it; blank lines are left out.

    Raises:
        UserError: It cannot be read, or a line has no text under `prompt`; `option` names the file.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError([Problem(option, f"{path} cannot be read ({reason})", "give a JSONL file")]) from error
    found, wrong = [], []
    for number, line in ((number, line) for number, line in enumerate(lines, 1) if line.strip()):
        value = None
        with contextlib.suppress(ValueError):
            value = json.loads(line)
        if isinstance(value, dict) and isinstance(value.get("prompt"), str) and value["prompt"]:
            found.append(value)
        else:
            wrong.append(Problem(option, f"line {number} of {path} must be of the form {_FORM}", "correct it"))
    if more := wrong[_SHOWN:]:
        wrong[_SHOWN:] = [Problem(option, f"{len(more)} more lines of {path} are like this")]
    if not wrong and not found:
        wrong = [Problem(option, f"{path} has no lines", f"give one {_FORM} for each prompt")]
    if wrong:
        raise UserError(wrong)
    return found


def to_jsonl(rows: Sequence[dict[str, Any]], texts: Iterable[str]) -> str:
    """The lines of a file with a `text` added to each."""
    pairs = zip(rows, texts, strict=True)
    return "".join(json.dumps({**row, "text": text}, ensure_ascii=False) + "\n" for row, text in pairs)


def write_texts(path: Path, content: str) -> None:
    """Write a file, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
