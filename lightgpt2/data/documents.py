"""Documents: plain texts, and conversations whose answers are learnt; the rows of tables that hold them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, Protocol

from lightgpt2.data.remarks import Remarks
from lightgpt2.data.splits import Split
from lightgpt2.errors import UserError
from lightgpt2.models.chat import CALLS, Message, message_problem
from lightgpt2.models.vocabulary import is_unicode

_TOOLS, _SYSTEM = "tools", "system"
# What rows say beside a conversation and nothing reads, and how to write it.
_UNREAD = {
    "history": "earlier turns, which are read of messages alone",
    "functions": "functions, which are read of tools alone",
}
_BESIDE = (_TOOLS, _SYSTEM, *_UNREAD)
# The fields of rows that hold a conversation, and those that such rows may lack.
_CONVERSATIONS = (
    (("messages",), _BESIDE),
    (("prompt", "completion"), _BESIDE),
    (("instruction", "output"), ("input", *_BESIDE)),
)
# What templates write of a turn.
_RENDERED = ("role", "content", "tool_calls", "reasoning", "reasoning_content", "thinking")
ANSWERS = "assistant"  # the role whose turns are learnt
_ASKING = ("user", "tool")  # those whose turns an answer is to


@dataclass(frozen=True)
class Conversation:
    """Turns, each with `role` and `content`; the answers are those of the assistant whose `weight` is not 0."""

    messages: tuple[Message, ...]
    is_pair: bool = False  # of a prompt and a completion, which may be joined without a chat template
    tools: tuple[Mapping[str, Any], ...] | None = None  # JSON schemas of the functions that the assistant may call


Document = str | Conversation


def content(document: Document) -> str:
    """The text that makes a document the same as another."""
    return document if isinstance(document, str) else _said(document, document.messages)


def plain_text(document: Document, system: bool = True) -> str:
    """The words of a document, those of all turns of a conversation; `system`: also of those that instruct the model."""
    if isinstance(document, str):
        return document
    turns = [turn for turn in document.messages if system or turn["role"] not in ("system", "developer")]
    return "\n".join(turn["content"] for turn in turns if isinstance(turn.get("content"), str))


def question(document: Document) -> str:
    """The text that decides on the split: that of a conversation is what is asked before its first answer that is learnt.

    So all answers to it share a split, and so do rows that have a conversation up to its first, second and third answer.
    """
    if isinstance(document, str):
        return document
    asked = list[Message]()
    for turn in document.messages:
        if is_answer(turn) and any(before["role"] in _ASKING for before in asked):
            break
        if turn["role"] != ANSWERS:
            asked.append(turn)
    return _said(document, asked)


def _said(conversation: Conversation, turns: Iterable[Message]) -> str:
    """The tools and some turns of a conversation, without what else a row may say of a turn, as its number or time."""
    kept = [{key: turn[key] for key in _RENDERED if key in turn} for turn in turns]
    return json.dumps([kept, conversation.tools] if conversation.tools else kept, sort_keys=True, default=str)


class Columns(Protocol):
    """The columns of a table that are read."""

    def of(self, names: Iterable[str]) -> list[str]:
        """Those of a table's columns; empty if it lacks some that are needed."""

    def missing(self, where: str, names: Iterable[str]) -> UserError:
        """The mistake that a table has others."""


class RowColumns(Columns, Protocol):
    """The columns of examples that have an answer."""

    @property
    def holds(self) -> str:
        """What the answers are, for messages: `labels`."""

    def requirements(self, size: int | None) -> Iterator[tuple[Split, dict[str, Any]]]:
        """The rows that the grammar of requirements makes, each with its split; None: as many as it makes by default."""


@dataclass(frozen=True)
class DocumentColumns:
    """The columns that hold documents: a text in this one, or a conversation."""

    text_field: str

    def of(self, names: Iterable[str]) -> list[str]:
        return fields(names, self.text_field)

    def missing(self, where: str, names: Iterable[str]) -> UserError:
        return no_fields(self.text_field, where, names)


def fields(names: Iterable[str], text_field: str) -> list[str]:
    """The fields to read of a table: the text field, else those of a conversation; empty if the table has neither."""
    known = [*names]
    for needed, more in (((text_field,), _BESIDE), *_CONVERSATIONS):
        if {*needed} <= {*known}:
            return [*needed, *(name for name in more if name in known and name not in needed)]
    return []


def no_fields(text_field: str, where: str, names: Iterable[str]) -> UserError:
    listed = shorten(", ".join(map(str, names)), 120, placeholder=" ...")
    others = ", or ".join(" and ".join(needed) for needed, _ in _CONVERSATIONS)
    return UserError(f"data.text_field: {where} has no field {text_field!r}, nor {others}; name one of {listed}")


def documents(rows: Iterable[Mapping[str, Any]], text_field: str, where: str, remarks: Remarks) -> Iterator[Document]:
    """The documents of the rows of a table; a `UserError` for a row that holds something else."""
    for number, row in enumerate(rows, 1):
        try:
            document = _document(row, fields(row, text_field))
        except _WrongError as error:
            if not is_unicode(_json(row)):
                remarks.add("rows that are not valid Unicode, left out", where)
                continue
            what = f"{error.field!r} of {where} {error}, in row {number}"
            named = error.field == text_field
            key, fix = (
                ("data.text_field", "name another field, or correct it") if named else ("data.source", "correct it")
            )
            raise UserError(f"{key}: {what}; {fix}") from error
        if document is None:
            remarks.add("rows without text, left out", where)
        elif isinstance(document, Conversation) and not any(map(is_answer, document.messages)):
            remarks.add("conversations without an answer, left out", where)
        elif not is_unicode(document if isinstance(document, str) else _json([document.messages, document.tools])):
            remarks.add("rows that are not valid Unicode, left out", where)
        else:
            yield document


def _json(value: Any) -> str:
    """A value as JSON that holds its characters as they are."""
    return json.dumps(value, ensure_ascii=False, default=str)


def is_answer(turn: Message) -> bool:
    return turn["role"] == ANSWERS and turn.get("weight", 1) != 0


class _WrongError(Exception):
    """A field holds what it should not; the text says what."""

    def __init__(self, field: str, what: str) -> None:
        super().__init__(what)
        self.field = field


def _document(row: Mapping[str, Any], names: list[str]) -> Document | None:
    values = {name: row[name] for name in names if name not in _BESIDE or name == names[0]}
    is_alone = len(values) < 2  # a text, or the turns of a conversation
    if is_alone:
        (value,) = values.values() or [None]
        if value is None or value == [] or (isinstance(value, str) and not value.strip()):
            return None
        if isinstance(value, str) and names[0] != "messages":
            return value
    if unread := next((name for name in names[1:] if name in _UNREAD and str(row[name] or "[]") != "[]"), None):
        raise _WrongError(unread, f"holds {_UNREAD[unread]}")
    tools = _tools(row[_TOOLS]) if _TOOLS in names[1:] else None
    system = _system(row[_SYSTEM]) if _SYSTEM in names[1:] else ()
    if is_alone:
        return Conversation(_led(system, _turns(names[0], _from_json(names[0], value))), tools=tools)
    if names[0] == "prompt" and not any(isinstance(value, str) for value in values.values() if value is not None):
        asked, told = (_turns(name, value) if value else () for name, value in values.items())
        turns = (*({**turn, "weight": 0} if is_answer(turn) else turn for turn in asked), *told)
        return Conversation(_led(system, turns), tools=tools)
    for name, value in values.items():
        if not isinstance(value, str | None):
            raise _WrongError(name, f"holds {type(value).__name__}, not text")
    first, answer, more = (*(value or "" for value in values.values()), "")[:3]
    if not answer.strip():
        return None
    prompt = f"{first}\n\n{more}" if more.strip() else first
    turns = (*system, {"role": "user", "content": prompt}, {"role": ANSWERS, "content": answer})
    return Conversation(turns, is_pair=not tools and not system, tools=tools)


def _system(value: Any) -> tuple[Message, ...]:
    """The message that a row has beside its conversation for its beginning, if any."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    if not isinstance(value, str):
        raise _WrongError(_SYSTEM, f"holds {type(value).__name__}, not text")
    return ({"role": "system", "content": value},)


def _led(system: tuple[Message, ...], turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """Turns behind the system message of their row, unless they begin with the same."""
    if not system or not turns or turns[0] == system[0]:
        return turns
    if turns[0]["role"] == system[0]["role"]:
        raise _WrongError(_SYSTEM, "is another text than the system message with which the conversation begins")
    return (*system, *turns)


def _from_json(field: str, value: Any) -> Any:
    """The value of a field that may hold JSON as text, as it must in CSV."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise _WrongError(field, f"holds no JSON ({error})") from error


def _tools(value: Any) -> tuple[Mapping[str, Any], ...] | None:
    """The JSON schemas of functions; None if a row has none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    found = _from_json(_TOOLS, value)
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise _WrongError(_TOOLS, f"must be a list of JSON schemas of functions, got {found!r:.60}")
    return tuple(found)


def _turns(field: str, value: Any) -> tuple[Message, ...]:
    """The turns of a conversation, without what a column of a table adds to each as None."""
    if not isinstance(value, list):
        raise _WrongError(field, f"holds {type(value).__name__}, not text or a list of messages")
    turns = [{k: v for k, v in turn.items() if v is not None} if isinstance(turn, dict) else turn for turn in value]
    if any(isinstance(turn, dict) and not {"content", *CALLS} & turn.keys() for turn in turns):
        return ()  # a turn that says nothing, which many datasets have
    if problem := message_problem(turns) or _weight_problem(turns):
        raise _WrongError(field, f"is not a conversation: {problem}")
    return tuple(turns)


def _weight_problem(turns: Iterable[Message]) -> str | None:
    """What is wrong with the weights of answers, which say whether an answer is learnt; None if nothing is."""
    weights = [turn.get("weight", 1) for turn in turns]
    wrong = next((number for number, weight in enumerate(weights) if weight not in (0, 1)), None)
    return None if wrong is None else f"the weight of message {wrong + 1} must be 0 or 1, got {weights[wrong]!r:.60}"
