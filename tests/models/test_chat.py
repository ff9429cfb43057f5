"""Chat templates: what is rendered is what transformers renders, and answers are found where they are."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lightgpt2.models.chat import ChatTemplate, Message, chat_template, folder_template, message_problem
from lightgpt2.models.saving import save_tokenizer
from tests.support.chats import NO_SYSTEM, SPECIAL, TEMPLATES
from tests.support.tokenizers import byte_level

EACH = pytest.mark.parametrize("style", TEMPLATES)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=12) | st.sampled_from(
    ["", " two\nlines \n", "{{ messages }}", "<|im_end|>", "[/INST]", "</s>\n", "1 < 2"]
)


ALTERNATING = ("Llama 2", "Mistral")  # the styles in which the user must begin


def template_of(style: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[style][0], SPECIAL)


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


def around(text: str, spans: list[tuple[int, int]]) -> list[str]:
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    assert edges == sorted(edges)
    return [text[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True)]


@st.composite
def conversations(draw: st.DrawFn, style: str) -> list[dict[str, str]]:
    system = draw(st.booleans()) and style not in NO_SYSTEM
    head = [{"role": "system", "content": draw(TEXTS)}] if system else []
    first = draw(st.booleans()) if style not in ALTERNATING else 0  # whether the assistant begins
    return [*head, *turns(*draw(st.lists(TEXTS, min_size=1 + first, max_size=6)))[first:]]


@EACH
@given(data=st.data())
def test_rendering_is_that_of_transformers(style: str, data: st.DataObject) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), chat_template=TEMPLATES[style][0], **SPECIAL)
    template = chat_template(tokenizer)
    messages = data.draw(conversations(style))
    for reply in (False, True):
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply)
        assert template
        assert template.render(messages, reply) == wanted


@EACH
@given(data=st.data())
def test_answers_are_found_where_they_are(style: str, data: st.DataObject) -> None:
    template, messages = template_of(style), data.draw(conversations(style))
    answers = [message for message in messages if message["role"] == "assistant"]
    text, spans = template.answers(messages)
    assert text == template.render(messages)
    assert len(spans) == len(answers)
    for (start, stop), answer in zip(spans, answers, strict=True):
        assert answer["content"].strip() in text[start:stop]
        assert text[start:stop].rstrip().endswith(TEMPLATES[style][1])
        assert len(text[start:stop]) <= len(answer["content"] + template.render(turns("", ""))), "and nothing else"
    # What is around them tells nothing of them.
    others = [{**each, "content": data.draw(TEXTS)} if each["role"] == "assistant" else each for each in messages]
    assert around(*template.answers(others)) == around(text, spans)


@EACH
def test_an_answer_begins_where_a_model_goes_on(style: str) -> None:
    template, messages = template_of(style), turns("one", "two", "three", "four")
    text, spans = template.answers(messages)
    for place, (start, _) in zip((1, 3), spans, strict=True):
        assert text[:start] == template.render(messages[:place], reply=True)
    assert template.end_of_turn().startswith(TEMPLATES[style][1])


def test_thoughts_of_earlier_answers_are_dropped() -> None:
    messages = turns("one", "<think>\nhm\n</think>\n\ntwo", "three", "<think>\nwell\n</think>\n\nfour")
    text, spans = template_of("Qwen3").answers(messages)
    found = [text[start:stop] for start, stop in spans]
    assert found == ["two<|im_end|>", "<think>\nwell\n</think>\n\nfour<|im_end|>"]


def test_calls_of_tools_are_answers() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    called: list[Message] = [
        {"role": "user", "content": "1?"}, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "1"}, {"role": "assistant", "content": "One."},
    ]  # fmt: skip
    text, spans = template_of("Qwen3").answers(called)
    calls, said = (text[start:stop] for start, stop in spans)
    assert calls == '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
    assert said == "<think>\n\n</think>\n\nOne.<|im_end|>"
    # A template where calls end differently, and must come before what a tool says.
    source = (
        "{%- for m in messages %}{%- if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
        "{{- raise_exception('a tool said something without a call') }}{%- endif %}"
        "{{- m.role + ': ' + (m.content or m.tool_calls|tojson) + ('<|eom|>' if m.tool_calls else '<|eot|>') }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"
    )
    text, spans = ChatTemplate(source, {}).answers(called)
    assert [text[start:stop] for start, stop in spans] == [json.dumps([call]) + "<|eom|>", "One.<|eot|>"]


def test_tools_have_a_template() -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    sources = {"default": "plain", "tool_use": "{{ tools | tojson }}"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), chat_template=sources)
    template, messages = chat_template(tokenizer), turns("one")
    assert template
    for tools in (None, [], [tool]):
        wanted = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        assert template.render(messages, tools=tools) == wanted
    tokenizer.chat_template = {"other": "x"}
    assert chat_template(tokenizer) is None, "none is the default"
    tokenizer.chat_template = None
    assert chat_template(tokenizer) is None


EACH_OF = "{%- for m in messages %}{{- m.content }}{%- set answers = m.role == 'assistant' %}"
LAST_ONLY = EACH_OF + "{%- if loop.last %}{{- '|' + messages[0].content }}{%- endif %}{%- endfor %}"
TWO_ENDS = EACH_OF + "{{- ('<return>' if loop.last else '<end>') if answers else '' }}{%- endfor %}"
REFUSED = {
    "roles that do not alternate": ("Llama 2", [*turns("a"), *turns("b")], "refuses it (Conversation roles must alternate"),
    "no system role": ("Gemma", [{"role": "system", "content": "a"}], "refuses it (System role not supported)"),
    "no messages": ("ChatML", [], "there are no messages"),
    "an answer to nothing": ("Mistral", turns("a", "b")[1:], "refuses it (After the optional system message"),
    "parts where text is meant": (
        "Llama 3", [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "contents that are text, not lists of parts",
    ),
    "an answer that is left out": ("{{ messages[0].content }}", turns("a", "b"), "the end of message 2 cannot be found"),
    "what comes before an answer changes": (LAST_ONLY, turns("a", "b"), "precedes message 2 differently"),
    "two ends": (TWO_ENDS, turns(*"abcd"), "the end of message 2 cannot be found"),
    "no template": ("{% for", turns("a"), "refuses it (unexpected 'end of template'"),
    "marks of nothing": ("{% generation %}{% endgeneration %}", turns("a"), "marks 1 answers, and there are 0"),
    "code": ("{{ messages.__class__.__mro__ }}", turns("a"), "access to attribute '__class__'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_rendered_or_found_is_said(name: str) -> None:
    source, messages, words = REFUSED[name]
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refused:
        ChatTemplate(TEMPLATES.get(source, (source,))[0], SPECIAL).answers(messages)
    assert words in str(refused.value)


@pytest.mark.parametrize("written", ["jinja", "config", "list", "with others"])
def test_a_folder_has_the_template_of_its_tokenizer(tmp_path: Path, written: str) -> None:
    tokens = {**SPECIAL, "pad_token": "<|end|>", "image_token": "<img>"}
    sources: Any = {"default": TEMPLATES["Llama 2"][0], "tool_use": "{{ bos_token }}"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), **tokens)
    tokenizer.chat_template = sources if written in ("list", "with others") else sources["default"]
    if written in ("config", "list"):
        tokenizer.save_pretrained(tmp_path, save_jinja_files=False)
    else:
        save_tokenizer(tokenizer, tmp_path)
    read = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert folder_template(tmp_path) == chat_template(read) == chat_template(tokenizer)


def test_a_folder_may_have_no_template(tmp_path: Path) -> None:
    assert folder_template(tmp_path) is None


PROBLEMS: list[tuple[Any, str | None]] = [
    (turns("a", ""), None),
    ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], None),
    ([{"role": "assistant", "tool_calls": [{}]}], None),
    ([], "must be a list of messages, each with a role and content"),
    ({"role": "user"}, "must be a list of messages, each with a role and content"),
    ([{"content": "a"}], "the role of message 1 must be one of "),
    ([*turns("a"), {"role": "gpt", "content": "b"}], "the role of message 2 must be one of "),
    (["a"], "the role of message 1 must be one of "),
    ([{"role": ["user"], "content": "a"}], "the role of message 1 must be one of "),
    ([{"role": "user"}], "the content of message 1 must be text, got None"),
    ([{"role": "user", "content": {"a": "b" * 99}}], "the content of message 1 must be text, got {'a': 'bbb"),
    (
        [{"role": "user", "content": [{"type": "image"}]}],
        "the content of message 1 must be text, got [{'type': 'image'}]",
    ),
    (turns("a", "\ud83d"), "the content of message 2 is not valid Unicode"),
    ([{"role": "assistant", "tool_calls": "[{}]"}], "the tool_calls of message 1 must be a list of calls, got '[{}]'"),
    (
        [{"role": "assistant", "content": "", "tool_calls": ["f()"]}],
        "the tool_calls of message 1 must be a list of calls",
    ),
]


@pytest.mark.parametrize(("messages", "words"), PROBLEMS)
def test_messages_that_are_none(messages: Any, words: str | None) -> None:
    found = message_problem(messages)
    assert found == words or (found and words and found.startswith(words) and len(found) < 120)
