"""Files of prompts and of their texts: JSONL, a line for each."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightgpt2.errors import Problem, UserError
from lightgpt2.models.chat import Message, message_problem
from lightgpt2.models.files import atomic_file
from lightgpt2.models.vocabulary import is_unicode
from lightgpt2.runtime.language_model import Continuation

_OPTION = "--prompts"
_SHOWN = 5  # of the mistakes in a file
_FORM, _CHAT_FORM = '{"prompt": "some text"}', '{"messages": [{"role": "user", "content": "some text"}]}'


def read_prompts(path: Path, chat: bool = False) -> list[dict[str, Any]]:
    """Read the lines of a file, each with `prompt` and whatever else belongs to it; blank lines are left out.

    With `chat` a line may have `messages` in its place.

    Raises:
        UserError: It cannot be read, or a line has no text under `prompt` and no conversation under `messages`.
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
        if problem := _problem(value, f"line {number} of {path}", chat):
            wrong.append(problem)
        else:
            found.append(value)
    if more := wrong[_SHOWN:]:
        wrong[_SHOWN:] = [Problem(_OPTION, f"{len(more)} more lines of {path} are like this")]
    if not wrong and not found:
        wrong = [Problem(_OPTION, f"{path} has no lines", f"give one {_FORM} for each prompt")]
    if wrong:
        raise UserError(wrong)
    return found


def _problem(value: Any, line: str, chat: bool) -> Problem | None:
    """What is wrong with the value of a line, if anything."""
    row = value if isinstance(value, dict) else {}
    prompt = row.get("prompt")
    if "messages" in row and (chat or prompt is None):
        what = message_problem(row["messages"], reply=True) or (
            prompt and "there is a prompt, too, and one of the two is read"
        )
        if not chat:
            return Problem(_OPTION, f"{line} has messages", "give --chat")
        return Problem(_OPTION, f"the messages in {line}: {what}", "correct it") if what else None
    if not isinstance(prompt, str) or not prompt:
        form = f"{_FORM} or {_CHAT_FORM}" if chat else _FORM
        return Problem(_OPTION, f"{line} must be of the form {form}", "correct it")
    if not is_unicode(prompt):
        return Problem(_OPTION, f"the prompt in {line} is not valid Unicode", "correct it")
    return None


def conversation(row: Mapping[str, Any], head: Sequence[Message]) -> Sequence[Message]:
    """The messages of a line, or its prompt as the user's; behind `head`, unless they begin with a system message."""
    messages: list[Message] = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
    return messages if messages[0]["role"] in ("system", "developer") else [*head, *messages]


def write_texts(path: Path | None, rows: Sequence[dict[str, Any]], texts: Sequence[Continuation]) -> None:
    """Write the lines of a file with `text` and `finish_reason` added to each: to a file, atomically, or to standard output."""
    lines = [{**row, "text": t.text, "finish_reason": t.finish_reason} for row, t in zip(rows, texts, strict=True)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    content = text.encode("utf-8", "backslashreplace")  # half of a surrogate pair becomes what JSON writes for it
    if path is None:
        print(content.decode(), end="", flush=True)
        return
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
