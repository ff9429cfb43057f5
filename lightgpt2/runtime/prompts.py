"""Files of prompts and of their texts: JSONL, a line for each."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightgpt2.errors import Problem, UserError
from lightgpt2.models.files import atomic_file
from lightgpt2.models.vocabulary import is_unicode

_OPTION = "--prompts"
_SHOWN = 5  # of the mistakes in a file
_FORM = '{"prompt": "some text"}'


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a file, each with `prompt` and whatever else belongs to it; blank lines are left out.

    Raises:
        UserError: It cannot be read, or a line has no text under `prompt`.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # JSON's strings may hold what else ends a line
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError([Problem(_OPTION, f"{path} cannot be read ({reason})", "give a JSONL file")]) from error
    found, wrong = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        prompt = value.get("prompt") if isinstance(value, dict) else None
        if not isinstance(prompt, str) or not prompt:
            wrong.append(Problem(_OPTION, f"line {number} of {path} must be of the form {_FORM}", "correct it"))
        elif not is_unicode(prompt):
            wrong.append(Problem(_OPTION, f"the prompt in line {number} of {path} is not valid Unicode", "correct it"))
        else:
            found.append(value)
    if more := wrong[_SHOWN:]:
        wrong[_SHOWN:] = [Problem(_OPTION, f"{len(more)} more lines of {path} are like this")]
    if not wrong and not found:
        wrong = [Problem(_OPTION, f"{path} has no lines", f"give one {_FORM} for each prompt")]
    if wrong:
        raise UserError(wrong)
    return found


def write_texts(path: Path | None, rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> None:
    """Write the lines of a file with a `text` added to each: to a file, atomically, or to standard output."""
    pairs = zip(rows, texts, strict=True)
    text = "".join(json.dumps({**row, "text": text}, ensure_ascii=False) + "\n" for row, text in pairs)
    content = text.encode("utf-8", "backslashreplace")  # half of a surrogate pair becomes what JSON writes for it
    if path is None:
        print(content.decode(), end="", flush=True)
        return
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
