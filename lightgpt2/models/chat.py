"""Chat templates: a conversation as the text that a model reads, and the places of the answers in it.

transformers renders, and is imported when something is rendered: whoever does not chat starts without it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightgpt2.models.vocabulary import is_unicode

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}, and what else a template reads: tool_calls, ...
_Tools = Sequence[Mapping[str, Any]] | None  # JSON schemas of functions
ROLES = ("system", "developer", "user", "assistant", "tool")
CALLS = ("tool_calls", "function_call")  # what a turn may have instead of content; the second is no longer written

_GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")  # around what an assistant writes, as transformers looks for it
_STAND_IN = "\ufdd0"  # for an answer's content: a code that stands for no character
_ASKED = {"role": "user", "content": "?"}
_DATE = {"%d": "01", "%m": "01", "%b": "Jan", "%B": "January", "%Y": "2025", "%y": "25", "%A": "Wednesday", "%a": "Wed"}
# A macro that takes the place of transformers' function.
_REPLACED = "".join(f"|replace({form!r}, {text!r})" for form, text in _DATE.items())
_FIXED = f"{{%- macro strftime_now(form) -%}}{{{{ form{_REPLACED} }}}}{{%- endmacro -%}}"
_TEMPLATE, _FURTHER = "chat_template.jinja", "additional_chat_templates"  # transformers' names


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, which renders as `apply_chat_template` of transformers does.

    Args:
        source: The template.
        special: Special tokens by the names that templates use: `bos_token`, `eos_token`, ...
        tool_use: The template for conversations with tools; None: the same.
        is_dated: Whether a template that writes the date writes today's; else a fixed one, so that texts stay the same.
    """

    source: str
    special: Mapping[str, str]
    tool_use: str | None = None
    is_dated: bool = True

    def render(self, messages: Sequence[Message], reply: bool = False, tools: _Tools = None) -> str:
        """Render a conversation.

        Args:
            messages: The messages, at least one.
            reply: True to end the text with the beginning of an answer.
            tools: JSON schemas of the functions that the model may call.

        Raises:
            ValueError: The template is not valid, or refuses the conversation; the text is one line.
        """
        return self._rendered(messages, reply, tools)[0]

    def answers(self, messages: Sequence[Message], tools: _Tools = None) -> tuple[str, list[tuple[int, int]]]:
        """Render a conversation, and find the assistant's turns in the text.

        A turn is what the model writes: it begins behind what `reply` adds, and ends with what the template puts behind the
        content, without white space at the end. A template with `{% generation %}` says itself where turns are.

        Returns:
            The text, and the beginning and the end of each turn in characters.

        Raises:
            ValueError: As for `render`, or a turn cannot be found exactly.
        """
        turns = [place for place, message in enumerate(messages) if message.get("role") == "assistant"]
        if not _GENERATION.search(self._source(tools)):
            whole = self.render(messages, tools=tools)
            return whole, [self._turn(whole, messages, place, tools) for place in turns]
        whole, marked = self._rendered(messages, False, tools, marked=True)
        if len(marked) != len(turns):
            raise ValueError(f"the chat template marks {len(marked)} answers, and there are {len(turns)}")
        return whole, marked

    def end_of_turn(self) -> str:
        """The text behind an answer's content, without white space around it; empty if the template writes none."""
        return self._around([_ASKED], [], None)[1].strip()

    def _source(self, tools: _Tools) -> str:
        source = self.source if tools is None else self.tool_use or self.source
        return source if self.is_dated or "strftime_now" not in source else _FIXED + source

    def _rendered(
        self, messages: Sequence[Message], reply: bool, tools: _Tools, marked: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the answers' places in it if `marked`, as the template marks them."""
        from transformers.utils.chat_template_utils import render_jinja_template

        if not messages:
            raise ValueError("there are no messages")
        # As `apply_chat_template` does: to a template, None is something that is there.
        said = [{key: value for key, value in message.items() if value is not None} for message in messages]
        options: Any = {"add_generation_prompt": reply, "return_assistant_tokens_mask": marked, **self.special}
        try:
            texts, places = render_jinja_template([said], tools, chat_template=self._source(tools), **options)
        except Exception as error:  # a template is code, and may raise anything
            raise ValueError(f"the chat template refuses it ({' '.join(str(error).split())})") from error
        parts = [content for message in said if (content := message.get("content")) and isinstance(content, list)]
        if any(str(content) in texts[0] for content in parts):
            raise ValueError("the chat template reads contents that are text, not lists of parts")
        return texts[0], places[0] if marked else []

    def _turn(self, whole: str, messages: Sequence[Message], place: int, tools: _Tools) -> tuple[int, int]:
        """The beginning and the end of one answer in the text of a conversation."""
        head = messages[:place]
        # A template cannot start an answer without a message before it: look for the text before the content instead.
        before = self.render(head, True, tools) if head else self._around([], messages[1:], tools)[0]
        if not whole.startswith(before):
            raise ValueError(f"the chat template writes what precedes message {place + 1} differently in what follows")
        stops = self._stops(whole, head, messages[place], messages[place + 1 :], tools)
        least = len(before) + bool(messages[place].get("content"))
        stop = next((stop for stop in stops if stop >= least), None)
        if stop is None:
            raise ValueError(f"the end of message {place + 1} cannot be found in what the chat template writes")
        return len(before), stop

    def _stops(
        self, whole: str, head: Sequence[Message], answer: Message, tail: Sequence[Message], tools: _Tools
    ) -> Iterator[int]:
        """The places where an answer may end, the most exact one first."""
        with suppress(ValueError):  # of a template that expects something else between these messages
            alone, followed = (self._around(head, after, tools)[1] for after in ([], tail or [_ASKED]))
            rest, end = followed if tail else alone, alone.rstrip()
            # Some write eos_token behind the whole conversation, too.
            for text in (end, end.removesuffix(self.special.get("eos_token", "")).rstrip() or end):
                if followed.startswith(text) and whole.endswith(rest):
                    yield len(whole) - len(rest) + len(text)
        # The end of a tool's call may be another one.
        text = self.render([*head, answer], tools=tools).rstrip()
        if whole.startswith(text):
            yield len(text)

    def _around(self, head: Sequence[Message], tail: Sequence[Message], tools: _Tools) -> tuple[str, str]:
        """What the template writes before and behind the content of an answer between other messages."""
        text = self.render([*head, {"role": "assistant", "content": _STAND_IN}, *tail], tools=tools)
        if text.count(_STAND_IN) != 1:
            raise ValueError("the chat template does not write each answer once")
        before, _, behind = text.partition(_STAND_IN)
        return before, behind


def chat_template(tokenizer: Any) -> ChatTemplate | None:
    """The chat template of a tokenizer of transformers; None if it has none, or several and none that is the default."""
    source = getattr(tokenizer, "chat_template", None)
    templates = source if isinstance(source, dict) else {"default": source} if isinstance(source, str) else {}
    return _of(templates, tokenizer.special_tokens_map)


def folder_template(folder: Path) -> ChatTemplate | None:
    """The chat template of a folder with a tokenizer's files, as `chat_template` finds it in what transformers loads."""
    about, special = (_values(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    extra = about.get("extra_special_tokens")
    named = {**special, **about, **(extra if isinstance(extra, dict) else {})}
    texts = {key: value["content"] if isinstance(value, dict) else value for key, value in named.items()
             if key.endswith("_token")}  # fmt: skip
    said = about.get("chat_template") or {}
    templates = {each["name"]: each["template"] for each in said} if isinstance(said, list) else said
    files = {path.stem: path for path in folder.glob(f"{_FURTHER}/*.jinja")}
    if (default := folder / _TEMPLATE).is_file():
        files["default"] = default
    if files:
        templates = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    if isinstance(templates, str):
        templates = {"default": templates}
    return _of(templates, {key: text for key, text in texts.items() if isinstance(text, str)})


def _of(templates: Mapping[str, str], special: Mapping[str, str]) -> ChatTemplate | None:
    default = templates.get("default")
    return None if default is None else ChatTemplate(default, special, templates.get("tool_use"))


def _values(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return values


def message_problem(messages: Any, reply: bool = False) -> str | None:
    """What is wrong with the messages of a conversation as JSON has them; None if nothing is.

    `reply` is True for a conversation that an answer is to follow.
    """
    if not isinstance(messages, list) or not messages:
        return "must be a list of messages, each with a role and content"
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            got = message.get("role") if isinstance(message, dict) else message
            return f"the role of message {number} must be one of {', '.join(ROLES)}, got {got!r:.60}"
        if message.get("function_call"):
            return f"message {number} has a function_call, which templates do not write; write it as tool_calls"
        content = message.get("content")
        if calls := message.get("tool_calls"):
            if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
                return f"the tool_calls of message {number} must be a list of calls, got {calls!r:.60}"
            if content is None:
                continue
        parts = content if isinstance(content, list) else [{"text": content}]
        texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
        if not all(isinstance(text, str) for text in texts):
            return f"the content of message {number} must be text, got {content!r:.60}"
        if not is_unicode("".join(map(str, texts))):
            return f"the content of message {number} is not valid Unicode"
    if reply and (role := messages[-1]["role"]) not in ("user", "tool"):
        return f"the last message must be the user's, got one of role {role!r}"
    return None
