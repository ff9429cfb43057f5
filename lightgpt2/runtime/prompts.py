"""Files of prompts or texts, and of what a model says to them: JSONL, a line for each."""

import fcntl
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar, get_type_hints

from lightgpt2.errors import Problem, UserError
from lightgpt2.models.chat import Message, message_problem
from lightgpt2.models.files import atomic_file, written
from lightgpt2.models.vocabulary import is_unicode

_OPTION, _TEXTS = "--prompts", "--texts"
_SHOWN = 5  # of the mistakes in a file
_TEXT_FORM = '{"text": "some text"}'
_FORM, _CHAT_FORM = '{"prompt": "some text"}', '{"messages": [{"role": "user", "content": "some text"}]}'


def read_prompts(path: Path, chat: bool = False) -> list[dict[str, Any]]:
    """Read the lines of a file, each with `prompt` and whatever else belongs to it; blank lines are left out.

    With `chat` a line may have `messages` in its place.

    Raises:
        UserError: It cannot be read, or a line has no text under `prompt` and no conversation under `messages`.
    """
    return _read_rows(path, _OPTION, _FORM, lambda value, line: _problem(value, line, chat))


def read_texts(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a file, each with `text`, perhaps a second one as `text_pair`, and whatever else belongs to it.

    Raises:
        UserError: It cannot be read, or a line has no text.
    """

    def problem(value: Any, line: str) -> Problem | None:
        texts = text_of(value) if isinstance(value, dict) else None
        if all(isinstance(text, str) and text.strip() for text in (texts if isinstance(texts, tuple) else (texts,))):
            return None
        return Problem(_TEXTS, f"{line} must be of the form {_TEXT_FORM}, of a pair with text_pair", "correct it")

    return _read_rows(path, _TEXTS, _TEXT_FORM, problem)


def text_of(row: Mapping[str, Any]) -> Any:
    """The text of a line, or its two texts."""
    return (row.get("text"), row["text_pair"]) if row.get("text_pair") is not None else row.get("text")


def _read_rows(
    path: Path, option: str, form: str, problem: Callable[[Any, str], Problem | None]
) -> list[dict[str, Any]]:
    """The lines of a file that are not blank; `problem` says what is wrong with the value of one."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # JSON's strings may hold what else ends a line
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError([Problem(option, f"{path} cannot be read ({reason})", "give a JSONL file")]) from error
    found, wrong = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if mistake := problem(value, f"line {number} of {path}"):
            wrong.append(mistake)
        else:
            found.append(value)
    if more := wrong[_SHOWN:]:
        wrong[_SHOWN:] = [Problem(option, f"{len(more)} more lines of {path} are like this")]
    if not wrong and not found:
        wrong = [Problem(option, f"{path} has no lines", f"give one {form} for each")]
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


def stamp(model: str) -> list[tuple[str, int, int]]:
    """The names, sizes and times of the files of a model; of one on the hub there are none."""
    path = Path(model).expanduser()
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]


class Result(Protocol):
    """What a model says to a line: a dataclass, whose other fields are added to the line."""

    @property
    def index(self) -> int:
        """The number of the line."""


R = TypeVar("R", bound=Result)


class Texts(Generic[R]):
    """The results of a file's lines, kept as they are done; a context manager.

    For standard output a line is printed once all before it are. For a file they go to a journal beside it, `OUTPUT.partial`,
    from which the same call goes on after it was stopped or killed; `finish` writes the file whole, and removes the journal.

    Args:
        rows: The lines.
        output: The file to write; None for standard output.
        kind: The class of the results.
        unit: The word for a line.
        call: Everything else that decides the results; the journal of another call is refused.

    Attributes:
        texts: The results that are done, by the index of their line.
    """

    def __init__(
        self, rows: Sequence[dict[str, Any]], output: Path | None, kind: type[R], unit: str = "prompt", **call: Any
    ) -> None:
        self._rows, self._output, self._kind, self._unit, self._printed = rows, output, kind, unit, 0
        _check_names(rows, unit, [name for name in get_type_hints(kind) if name != "index"])
        self._call = hashlib.sha256(json.dumps([rows, call], sort_keys=True, default=str).encode()).hexdigest()
        self.texts = dict[int, R]()
        self.journal = None if output is None else output.with_name(f"{output.name}.partial")

    def __enter__(self) -> Self:
        if self.journal:
            with written(self.journal):
                self.journal.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.journal.open("a+b")
                self._read(self.journal)
        return self

    def __exit__(self, *_: object) -> None:
        if self.journal:
            with suppress(OSError):  # the line that found the disk full is still to be written
                self._file.close()

    @property
    def state(self) -> str:
        """How many texts are kept, and where, in words."""
        total = len(self._rows)
        if self.journal:
            done = f"{len(self.texts)} of {total} {self._unit}s are done"
            return f"{done}, and kept in {self.journal}; the same command goes on from there"
        return f"{self._printed} of {total} {self._unit}s are printed; with --output the same command would go on from there"

    def _read(self, journal: Path) -> None:
        """Take what a call like this one has left, but a line that is not whole."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = f"another process writes {journal}"
            raise UserError([Problem("--output", what, "wait for it, or give another file")]) from None
        self._file.seek(0)
        content, head = self._file.read(), f"{self._call}\n".encode()
        lines = content.removeprefix(head).split(b"\n")[:-1]
        try:
            if not content.startswith(head[: len(content)]):
                raise ValueError("other prompts, settings or another model")
            self.texts |= {done.index: done for done in (self._kind(*json.loads(line)) for line in lines)}
        except (ValueError, TypeError) as error:
            what = f"{journal} is not what this call has left: {error}"
            raise UserError([Problem("--output", what, "remove it, or give another file")]) from error
        whole = sum(len(line) + 1 for line in lines)
        if content.startswith(head):
            self._file.truncate(len(head) + whole)
        else:
            self._file.truncate(0)
            self._append(head)

    def _append(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()

    def add(self, done: R) -> None:
        """Keep the result of a line."""
        self.texts[done.index] = done
        if self.journal:
            with written(self.journal):
                self._append(f"{json.dumps([*vars(done).values()])}\n".encode())
            return
        first = self._printed
        while self._printed in self.texts:
            self._printed += 1
        shown = range(first, self._printed)
        _write(None, self._rows[first : self._printed], [self.texts[each] for each in shown])

    def finish(self) -> None:
        """Write the file, and remove the journal."""
        if self._output and self.journal:
            _write(self._output, self._rows, [self.texts[index] for index in range(len(self._rows))])
            self.journal.unlink()


def _check_names(rows: Sequence[Mapping[str, Any]], unit: str, written: Sequence[str]) -> None:
    """Raise a `UserError` if a line has a key that its result is written under, such as the label that a text should have."""
    taken = ((number, name) for number, row in enumerate(rows, 1) for name in written if name in row)
    if found := next(taken, None):
        what = f"{unit} {found[0]} has a key {found[1]}, in the place of which the result would be written"
        raise UserError([Problem(f"--{unit}s", what, "give it another name")])


def _write(path: Path | None, rows: Sequence[dict[str, Any]], results: Sequence[Result]) -> None:
    """Write lines with the fields of their results added: to a file, atomically, or to standard output."""
    lines = [row | {k: v for k, v in vars(r).items() if k != "index"} for row, r in zip(rows, results, strict=True)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    content = text.encode("utf-8", "backslashreplace")  # half of a surrogate pair becomes what JSON writes for it
    if path is None:
        print(content.decode(), end="", flush=True)
        return
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
