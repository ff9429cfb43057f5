"""Conversations: what rows hold, where the answers are in the tokens, and that nothing else is learnt."""

import csv
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, PreTrainedTokenizerFast

from lightgpt2.data import LanguageModelingData
from lightgpt2.data.base import Connection
from lightgpt2.data.corpora import Corpus
from lightgpt2.data.documents import Conversation, Document
from lightgpt2.data.remarks import Remarks
from lightgpt2.errors import UserError
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.models.loading import new_model
from lightgpt2.tasks import LanguageModeling
from tests.support.models import SHAPES, write_tokenizer
from tests.support.text import split_documents

Row = Mapping[str, Any]

TEMPLATE = (  # in the style of ChatML
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


ASKED = turns(
    ("user", "What is a class?"), ("assistant", "A template."), ("user", "And é?"), ("assistant", "A letter.")
)


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": parameters}}


TOOLS = [
    tool("add", a={"type": "integer"}, b={"type": "integer"}),
    tool("look_up", word={"type": "string"}),
    tool("now"),
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "It is 3."},
]
TOOLS_TEMPLATE = (
    "{% if tools %}<|tools|>{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for call in m.tool_calls %}<call>{{ call.function | tojson }}{% endfor %}"
    "{% if m.role == 'assistant' %}{{ eos_token }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prepared(
    folder: Path, rows: Sequence[Row], special: Mapping[str, str] | None = None, **settings: Any
) -> LanguageModelingData:
    """The data of a file of rows, all in the training split; step and epoch are those of a trainer that has just begun."""
    special = special or {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    backend = write_tokenizer(folder / "first").backend_tokenizer
    words = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    words.chat_template = settings.pop("template", TEMPLATE)
    words.save_pretrained(folder / "tokenizer")
    source = str(write_rows(folder / "a.jsonl", rows))
    fractions = {"valid_fraction": 0.0, "test_fraction": 0.0, "predict_split": "train"}
    settings = {
        "mode": "padded",
        "batch_size": 1,
        "sequence_length": 200,
        "tokenizer": str(folder / "tokenizer"),
    } | settings
    data = LanguageModelingData(source, **fractions | settings)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        accumulate_grad_batches=1, global_rank=0, world_size=1, global_step=0, val_check_interval=1,
        check_val_every_n_epoch=None,
    )  # fmt: skip
    data.connect(Connection("tokenizer", "model.model"))
    data.prepare_data()
    data.setup("predict")
    return data


def learnt(data: LanguageModelingData) -> list[str]:
    """What is asked for in each training window, in pieces that follow each other, special tokens included."""
    found = []
    for batch in data.train_dataloader():
        for labels in batch["labels"]:
            kept = (labels != IGNORE).numpy()
            edges = np.flatnonzero(np.diff(np.concatenate([[False], kept, [False]]).astype(int)))
            found += [data.tokenizer.decode(labels[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return found


# -- rows ----------------------------------------------------------------------------------------------------------------

PAIR = Conversation(tuple(turns(("user", "ask"), ("assistant", "told"))), is_pair=True)
SYSTEM = {"role": "system", "content": "Be brief."}
NO_PROMPT = Conversation(tuple(turns(("user", ""), ("assistant", "told"))), is_pair=True)
MORE = Conversation(tuple(turns(("user", "ask\n\nthis"), ("assistant", "told"))), is_pair=True)
ROWS: dict[str, tuple[Row, Document | None]] = {
    "a text": ({"text": "some"}, "some"),
    "a text beside a conversation": ({"text": "some", "messages": ASKED}, "some"),
    "messages": ({"messages": ASKED, "prompt": "x", "id": 3}, Conversation(tuple(ASKED))),
    "messages in the field of the text": ({"text": ASKED}, Conversation(tuple(ASKED))),
    "prompt and completion": ({"prompt": "ask", "completion": "told"}, PAIR),
    "an empty prompt": ({"prompt": "", "completion": "told"}, NO_PROMPT),
    "prompt and completion that are turns": (
        {"prompt": ASKED[:3], "completion": ASKED[3:]},
        Conversation((ASKED[0], {**ASKED[1], "weight": 0}, *ASKED[2:])),
    ),
    "instruction, input and output": ({"instruction": "ask", "input": "this", "output": "told"}, MORE),
    "instruction and output": ({"instruction": "ask", "input": "", "output": "told"}, PAIR),
    "tools": ({"messages": CALLED, "tools": TOOLS}, Conversation(tuple(CALLED), tools=tuple(TOOLS))),
    "tools as text": ({"messages": CALLED, "tools": json.dumps(TOOLS)}, Conversation(tuple(CALLED), tools=tuple(TOOLS))),
    "tools of a prompt and a completion that are turns": (
        {"prompt": CALLED[:3], "completion": CALLED[3:], "tools": TOOLS},
        Conversation((CALLED[0], {**CALLED[1], "weight": 0}, *CALLED[2:]), tools=tuple(TOOLS)),
    ),
    "no tools": ({"messages": ASKED, "tools": None}, Conversation(tuple(ASKED))),
    "a text beside tools of another kind": ({"text": "some", "tools": "hammer, saw"}, "some"),
    "a system message beside turns": ({"messages": ASKED, "system": "Be brief."}, Conversation((SYSTEM, *ASKED))),
    "the same one in them": ({"messages": [SYSTEM, *ASKED], "system": "Be brief."}, Conversation((SYSTEM, *ASKED))),
    "a system message beside a pair": (
        {"instruction": "ask", "output": "told", "system": "Be brief."},
        Conversation((SYSTEM, *turns(("user", "ask"), ("assistant", "told")))),
    ),
    "no system message, no earlier turns": (
        {"prompt": "ask", "completion": "told", "system": "", "history": "[]", "functions": None}, PAIR,
    ),
    "a text beside a system": ({"text": "some", "system": "Linux", "history": "long"}, "some"),
    "nothing": ({"text": None}, None),
    "no answer": ({"prompt": "ask", "completion": " "}, None),
    "no turn of the assistant": ({"messages": ASKED[:1]}, None),
    "answers without weight": ({"messages": [ASKED[0], {**ASKED[1], "weight": 0}]}, None),
    "half of a surrogate pair": ({"messages": turns(("user", "a"), ("assistant", "\ud83d"))}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_rows_of_every_form_in_every_format(tmp_path: Path, name: str, suffix: str) -> None:
    row, wanted = ROWS[name]
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        if "turns" in name or name in ("half of a surrogate pair", "messages in the field of the text"):
            pytest.skip("there is no such value in CSV")
        with path.open("w", newline="") as file:
            values = {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
            csv.DictWriter(file, row).writeheader()
            csv.DictWriter(file, row).writerow(values)
    elif suffix == "parquet":
        if name in ("half of a surrogate pair", "nothing"):
            pytest.skip("there is no such value in Parquet")
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps(row if suffix == "jsonl" else [row]))
    remarks = Remarks()
    found = [document for _, document in Corpus(str(path)).documents(remarks)]
    assert found == ([] if wanted is None else [wanted])
    assert bool(remarks.lines()) == (wanted is None)


WRONG: dict[str, tuple[Row, str]] = {
    "a role": ({"messages": turns(("bot", "a"))}, "'messages' of {} is not a conversation: the role of message 1"),
    "no turns": ({"messages": "some text"}, "data.source: 'messages' of {} holds no JSON"),
    "a number": ({"messages": 3}, "'messages' of {} holds int, not text or a list of messages, in row 1; correct it"),
    "content": ({"messages": [{"role": "user", "content": 3}]}, "the content of message 1 must be text, got 3, in row 1"),
    "a completion": ({"prompt": "a", "completion": 3}, "data.source: 'completion' of {} holds int, not text, in row 1"),
    "tools that are words": (
        {"messages": ASKED, "tools": "hammer, saw"}, "data.source: 'tools' of {} holds no JSON (Expecting value",
    ),
    "tools that are names": (
        {"messages": ASKED, "tools": ["add"]},
        "data.source: 'tools' of {} must be a list of JSON schemas of functions, got ['add'], in row 1",
    ),
    "calls that are text": (
        {"messages": [ASKED[0], {"role": "assistant", "content": None, "tool_calls": "add(1)"}]},
        "the tool_calls of message 2 must be a list of calls, got 'add(1)', in row 1; correct it",
    ),
    "a weight that is text": (
        {"messages": [ASKED[0], {**ASKED[1], "weight": "0"}]}, "the weight of message 2 must be 0 or 1, got '0', in row 1",
    ),
    "half a weight": ({"messages": [ASKED[0], {**ASKED[1], "weight": 0.5}]}, "the weight of message 2 must be 0 or 1, got 0.5"),
    "turns that are text": ({"messages": [json.dumps(turn) for turn in ASKED]}, "the role of message 1 must be one of"),
    "turns in turns": ({"messages": [ASKED]}, "the role of message 1 must be one of"),
    "roles in capitals": ({"messages": turns(("User", "a"))}, "the role of message 1 must be one of"),
    "turns and a text": ({"prompt": ASKED[:1], "completion": "a"}, "'prompt' of {} holds list, not text, in row 1"),
    "answers to choose from": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "nor messages, or prompt and completion"),
    "turns in text that are another text": ({"messages": '"a text"'}, "'messages' of {} holds str, not text or a list of"),
    "two system messages": (
        {"messages": [SYSTEM, *ASKED], "system": "Be kind."}, "'system' of {} is another text than the system message",
    ),
    "a system that is a number": ({"messages": ASKED, "system": 3}, "'system' of {} holds int, not text, in row 1"),
    "earlier turns": (
        {"instruction": "a", "output": "b", "history": [["c", "d"]]}, "'history' of {} holds earlier turns, which are read of",
    ),
    "functions": ({"messages": ASKED, "functions": [{"name": "f"}]}, "'functions' of {} holds functions, which are read of"),
    "a call of a function": (
        {"messages": [ASKED[0], {"role": "assistant", "content": None, "function_call": {"name": "f"}}]},
        "message 2 has a function_call, which templates do not write; write it as tool_calls",
    ),
    "a call of a function beside content": (
        {"messages": [ASKED[0], {"role": "assistant", "content": "", "function_call": {"name": "f"}}]},
        "message 2 has a function_call",
    ),
    "other fields": ({"question": "a", "answer": "b"}, "nor messages, or prompt and completion, or instruction and output"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_rows_of_other_forms_are_refused(tmp_path: Path, name: str) -> None:
    row, words = WRONG[name]
    path = write_rows(tmp_path / "a.jsonl", [row])
    with pytest.raises(UserError) as error:
        [*Corpus(str(path)).documents()]
    assert words.format(path) in str(error.value)


def test_turns_may_say_more_of_any_type(tmp_path: Path) -> None:
    """Times and bytes in a table are no JSON."""
    said = [{**turn, "time": datetime(2024, 1, 1), "raw": b"x"} for turn in ASKED[:2]]
    pq.write_table(pa.table({"messages": [said, said], "tools": [None, None]}), tmp_path / "a.parquet")
    remarks = Remarks()
    assert len(split_documents(Corpus(str(tmp_path / "a.parquet")), 0.0, 0.0, remarks)) == 1
    assert remarks.lines() == ["documents that occur again, left out: 1 (a)"]


def test_another_thought_and_other_tools_make_another_conversation(tmp_path: Path) -> None:
    asked, answer = ASKED[:2]
    rows: list[Row] = [{"messages": [asked, {**answer, "reasoning_content": thought}]} for thought in ("a", "b")]
    rows += [{"messages": [asked, answer], "tools": some} for some in (None, TOOLS[:1], TOOLS[:2])]
    found = split_documents(Corpus(str(write_rows(tmp_path / "a.jsonl", rows))), 0.0, 0.0)
    assert [document for _, document in found] == [
        Conversation(tuple(row["messages"]), tools=row.get("tools") and tuple(row["tools"])) for row in rows
    ]


def test_half_of_a_surrogate_pair_anywhere_in_a_row_is_left_out(tmp_path: Path) -> None:
    half, asked, answer = "\ud83d", ASKED[0], ASKED[1]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": half}}]}
    rows: list[Row] = [
        {"messages": [{**asked, "name": half}, answer]},
        {"messages": ASKED, "tools": [tool(half)]},
        {"messages": [asked, call]},
    ]
    remarks, path = Remarks(), write_rows(tmp_path / "a.jsonl", rows)
    assert not [*Corpus(str(path)).documents(remarks)]
    assert remarks.lines() == [f"rows that are not valid Unicode, left out: 3 ({path}: 3)"]


def test_all_answers_to_a_question_share_a_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n}", "completion": f"answer {m}"} for n in range(40) for m in range(5)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    places: dict[str, set[str]] = {}
    for split, document in split_documents(Corpus(str(path)), 0.3, 0.2):
        assert isinstance(document, Conversation)
        places.setdefault(document.messages[0]["content"], set()).add(split)
    assert len(places) == 40
    assert all(len(splits) == 1 for splits in places.values())
    assert len(set().union(*places.values())) == 3


def test_a_conversation_shares_its_split_with_those_that_go_on_from_it(tmp_path: Path) -> None:
    """Rows that end after the first, the second and the third answer, as many datasets have them; with a few-shot prompt."""
    said = [turns(*((role, f"{role} {n} {m}") for m in range(3) for role in ("user", "assistant"))) for n in range(60)]
    rows: list[Row] = [{"messages": whole[:end]} for end in (2, 4, 6) for whole in said]
    shown = turns(("user", "shown"), ("assistant", "told"))
    rows += [{"prompt": [*shown, whole[0]], "completion": whole[1:2]} for whole in said]
    places: dict[str, list[str]] = {}
    for split, document in split_documents(Corpus(str(write_rows(tmp_path / "a.jsonl", rows))), 0.3, 0.2):
        assert isinstance(document, Conversation)
        first = document.messages[0]["content"]
        places.setdefault(first if first != "shown" else "", []).append(split)
    assert len({*places.pop("")}) == 3, "what all prompts begin with does not decide"
    assert len(places) == 60
    assert all(len(splits) == 3 and len({*splits}) == 1 for splits in places.values())


# -- what is learnt ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["padded", "packed"])
def test_answers_and_their_ends_are_learnt_and_nothing_else(here: Path, mode: str) -> None:
    rows = [{"messages": [{**turn, "content": f"{turn['content']} {n}"} for turn in ASKED]} for n in range(6)]
    data = prepared(here, rows, mode=mode, sequence_length=40 if mode == "packed" else 200)
    end = data.tokenizer.eos_token
    found = learnt(data)
    wanted = [f"{text} {n}{end}" for n in range(6) for text in ("A template.", "A letter.")]
    if mode == "padded":
        assert sorted(found) == sorted(wanted)
    else:  # windows cut answers in two
        assert all(any(piece in text for text in wanted) for piece in found)
        assert sum(map(len, found)) > 0.5 * sum(map(len, wanted))
    items = [batch["step_items"] for batch in data.train_dataloader()]
    assert items == [max(1, int((batch["labels"] != IGNORE).sum())) for batch in data.train_dataloader()]


def test_all_is_learnt_where_that_is_asked(here: Path) -> None:
    found = learnt(prepared(here, [{"messages": ASKED}], loss_on="all"))
    first, second = "What is a class?<|assistant|>A template.", "And é?<|assistant|>A letter."
    assert found == [f"|user|>{first}<|endoftext|>\n<|user|>{second}<|endoftext|>"]


def test_answers_without_weight_are_not_learnt(here: Path) -> None:
    rows = [{"messages": [ASKED[0], {**ASKED[1], "weight": 0}, *ASKED[2:]]}]
    assert learnt(prepared(here, rows)) == ["A letter.<|endoftext|>"]
    rows = [{"messages": [*ASKED[:3], {**ASKED[3], "weight": 0}]}]
    assert learnt(prepared(here, rows)) == ["A template.<|endoftext|>"]


@pytest.mark.parametrize(
    "special", [{"bos_token": "<s>", "eos_token": "</s>"}, {"eos_token": "</s>"}, {"bos_token": "<s>"}]
)
def test_without_a_template_a_prompt_goes_on_as_its_completion(here: Path, special: dict[str, str]) -> None:
    rows = [{"prompt": f"Q: {n}?\nA:", "completion": f" It is {n}."} for n in range(5)]
    data = prepared(here, rows, special, template=None)
    end = special.get("eos_token", special.get("bos_token"))
    assert sorted(learnt(data)) == [f" It is {n}.{end}" for n in range(5)]
    first = data.tokenizer.decode(data._splits["train"].tokens[: data._splits["train"].offsets[1]])
    assert first == f"{special.get('bos_token', end)}Q: 0?\nA: It is 0.{end}"


@pytest.mark.parametrize("processes", [1, 2])
def test_conversations_without_a_template_are_refused(here: Path, processes: int) -> None:
    with pytest.raises(UserError, match="the tokenizer has none, and the text holds conversations"):
        prepared(here, [{"messages": ASKED}], template=None, processes=processes)


def test_what_the_template_refuses_is_left_out_and_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alternating = "{% if messages[0].role != 'user' %}{{ raise_exception('a user begins') }}{% endif %}" + TEMPLATE
    system = {"role": "system", "content": "Be brief."}
    data = prepared(here, [{"messages": [system, *ASKED]}, {"messages": ASKED}], template=alternating)
    assert data.meta["splits"]["train"]["documents"] == 1
    assert (
        "conversations left out, since the chat template refuses it (a user begins): 1 (train)"
        in capsys.readouterr().out
    )


def test_tools_are_rendered_as_transformers_does_and_not_learnt(here: Path) -> None:
    data = prepared(here, [{"messages": CALLED, "tools": TOOLS}], template=TOOLS_TEMPLATE)
    whole = data.tokenizer.apply_chat_template(CALLED, tools=TOOLS, tokenize=False)
    assert data.tokenizer.decode(data._splits["train"].tokens[:]) == whole.rstrip("\n")
    end = data.tokenizer.eos_token
    assert learnt(data) == [f"<call>{json.dumps(CALL['function'])}{end}", f"It is 3.{end}"]


def test_an_answer_that_begins_a_conversation_is_learnt(here: Path) -> None:
    greeted = [{"role": "assistant", "content": "Hello!"}, *ASKED[:2]]
    system = [{"role": "system", "content": "Be brief."}, *greeted]
    rows = [{"messages": greeted}, {"messages": system}, {"prompt": greeted[:2], "completion": ASKED[1:2]}]
    data = prepared(here, rows[:2])
    assert learnt(data) == ["Hello!<|endoftext|>", "A template.<|endoftext|>"] * 2
    data = prepared(here, rows[2:])
    assert learnt(data) == ["A template.<|endoftext|>"], "of a prompt no answer is learnt"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_template_from_a_file_is_used_and_kept(here: Path, mark: str) -> None:
    Path("t.jinja").write_text(mark + TEMPLATE)
    data = prepared(here, [{"messages": ASKED}], template=None, chat_template="t.jinja")
    assert learnt(data) == ["A template.<|endoftext|>", "A letter.<|endoftext|>"]
    assert data.tokenizer.chat_template == TEMPLATE
    Path("t.jinja").write_bytes("é".encode("latin-1"))
    with pytest.raises(
        UserError, match=r"^data.chat_template: t.jinja cannot be read \(.*; give a Jinja file in UTF-8"
    ):
        prepared(here, [{"messages": ASKED}], template=None, chat_template="t.jinja")


@pytest.mark.parametrize("special", [{"bos_token": "<s>", "eos_token": "</s>"}, {"eos_token": "</s>"}])
@pytest.mark.parametrize("settings", [{}, {"loss_on": "all"}, {"mode": "packed"}])
def test_texts_and_conversations_share_a_stream(here: Path, special: dict[str, str], settings: dict[str, Any]) -> None:
    """The end of a text is learnt whatever follows it: a text, a conversation, or nothing."""
    texts = ["Some plain text.", "More of it.", "The last."]
    rows: list[Row] = [{"text": texts[0]}, {"messages": ASKED}, {"text": texts[1]}, {"text": texts[2]}]
    data = prepared(here, [*rows, {"prompt": "a", "completion": "b"}], special, **settings)
    if data.mode == "packed":
        data.sequence_length = len(data._splits["train"].tokens) - 1  # one window of all
    found = learnt(data)
    if not settings:
        answers = ["A template.", "A letter.", "b"]
        assert sorted(found) == sorted(f"{text}</s>" for text in [*texts, *answers])
    elif "loss_on" in settings:
        assert all(any(piece.endswith(f"{text}</s>") for piece in found) for text in texts)
        assert len(found) == 5
    else:
        assert "".join(found) == "Some plain text.</s>A template.</s>A letter.</s>More of it.</s>The last.</s>b</s>"


def test_prompts_of_conversations_go_up_to_the_first_answer(here: Path) -> None:
    data = prepared(here, [{"messages": ASKED}, {"text": "Some plain text that is long."}])
    data.connection = Connection("tokenizer", "model.model", prompt_tokens=3)
    (batch,) = data.predict_dataloader()
    prompts = [data.tokenizer.decode(row[:n]) for row, n in zip(batch["input_ids"], batch["lengths"], strict=True)]
    assert prompts[0] == "<|user|>What is a class?<|assistant|>"
    assert len(data.tokenizer(prompts[1], add_special_tokens=False)["input_ids"]) == 3


def test_bits_per_byte_are_of_the_answers(here: Path) -> None:
    data = prepared(here, [{"messages": ASKED}])
    split = data._splits["train"]
    assert split.answered.tolist() == [len(b"A template.A letter.")]
    assert split.sizes.tolist() == [len(data.tokenizer.decode(split.tokens[:]).encode())]


# -- gradients -----------------------------------------------------------------------------------------------------------


def gradient(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    model.zero_grad()
    found = LanguageModeling().predictions(model, batch)
    logits = found.logits(slice(None), torch.float64)
    torch.nn.functional.cross_entropy(logits, found.labels, ignore_index=IGNORE, reduction="sum").backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_the_labels_of_prompts_change_no_gradient(here: Path) -> None:
    """The gradient is that of the answers' tokens alone, whatever else follows a token of the prompt."""
    data = prepared(here, [{"messages": ASKED}])
    torch.manual_seed(0)
    model = (
        new_model(AutoConfig.for_model("gpt2", **SHAPES["gpt2"] | {"n_positions": 200}, vocab_size=400)).double().eval()
    )
    (batch,) = data.train_dataloader()
    split = data._splits["train"]
    ids = torch.from_numpy(split.tokens[:].astype(np.int64))[None]
    answers = split.answers[:]  # type: ignore[index]
    log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    wanted = -sum(log_probs[place - 1, ids[0, place]] for place in np.flatnonzero(answers))
    model.zero_grad()
    wanted.backward()  # type: ignore[union-attr]
    reference = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert torch.allclose(gradient(model, batch), reference, rtol=1e-9, atol=1e-12)
    everything = prepared(here, [{"messages": ASKED}], loss_on="all")
    (other,) = everything.train_dataloader()
    assert (other["input_ids"] == batch["input_ids"]).all()
    assert not torch.allclose(gradient(model, other), reference, rtol=1e-3)
    prompt = batch["labels"] == IGNORE
    spoilt = {**other, "labels": torch.where(prompt, IGNORE, other["labels"])}
    assert torch.equal(gradient(model, spoilt), gradient(model, batch))


# -- documents apart -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SHAPES)
def test_documents_in_one_window_see_nothing_of_each_other(here: Path, family: str) -> None:
    """Hidden states in a packed window are those of each document alone."""
    rows = [
        {"messages": turns(("user", f"Question {n}" + " and more" * n), ("assistant", f"Answer {n}."))}
        for n in range(8)
    ]
    data = prepared(here, rows, mode="packed", sequence_length=60, cross_document_attention=False)
    torch.manual_seed(0)
    whole = new_model(AutoConfig.for_model(family, **SHAPES[family], vocab_size=400)).eval()
    model = whole.base_model
    batches = [*data.train_dataloader()]
    several = 0
    for batch in batches:
        states = LanguageModeling().predictions(whole, batch).hidden.view(*batch["input_ids"].shape, -1)
        for row, ids, positions in zip(states, batch["input_ids"], batch["position_ids"], strict=True):
            begins = [*np.flatnonzero(positions.numpy() == 0), len(ids)]
            several += len(begins) > 2
            for begin, end in pairwise(begins):
                alone = model(input_ids=ids[None, begin:end], use_cache=False).last_hidden_state[0]
                assert torch.allclose(row[begin:end], alone, atol=1e-5)
    assert several, "a window holds several documents"


def test_conversations_that_are_cut_are_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"Question {n}?" + " and more" * 20 * (n % 2), "completion": "Yes."} for n in range(6)]
    data = prepared(here, rows, sequence_length=60)
    data._say_cuts()
    assert "3 of 6 training documents are longer than data.sequence_length (60), and are cut" in capsys.readouterr().out


def test_a_source_without_text_beside_others_is_refused(here: Path) -> None:
    Path("empty.txt").write_text("\n\n")
    data = prepared(here, [{"messages": ASKED}])
    both = LanguageModelingData([data.source, "empty.txt"], tokenizer="tokenizer", predict_split="train")
    both.prepare_data()
    with pytest.raises(UserError, match=r"empty.txt holds no text beside the other sources"):
        both.setup("predict")


# -- what a review found -------------------------------------------------------------------------------------------------


def test_answers_of_one_token_are_scored(here: Path) -> None:
    """A template that writes no end: the end-of-text token is learnt behind the answer, and the answer is scored."""
    bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    bare += "{% if add_generation_prompt %}assistant: {% endif %}"
    data = prepared(here, [{"prompt": "a", "completion": "b"}], {"eos_token": "</s>"}, template=bare)
    assert [text.strip() for text in learnt(data)] == ["b</s>"]
    (batch,) = data.scoring_loader("train")
    assert (batch["labels"] != IGNORE).sum() == 1


def test_white_space_before_an_answer_may_be_of_its_first_token(here: Path) -> None:
    found = learnt(prepared(here, [{"prompt": "Answer: ", "completion": "yes"}], template=None))
    assert "yes" in found[0].replace(" ", "")


def test_what_else_a_row_says_of_turns_makes_no_other_conversation(tmp_path: Path) -> None:
    rows = [{"messages": [{**ASKED[0], "id": n}, {**ASKED[1], "time": n}]} for n in range(5)]
    assert len(split_documents(Corpus(str(write_rows(tmp_path / "a.jsonl", rows))), 0.3, 0.3)) == 1


def test_a_question_that_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    write_rows(tmp_path / "valid.jsonl", [{"prompt": "Q", "completion": "one"}])
    write_rows(tmp_path / "train.jsonl", [{"prompt": "Q", "completion": "two"}, {"prompt": "R", "completion": "three"}])
    remarks = Remarks()
    found = split_documents(Corpus(str(tmp_path)), 0.0, 0.0, remarks)
    assert [split for split, _ in found] == ["valid", "train"]
    assert "conversations whose question is held out, left out: 1 (train)" in remarks.lines()


@pytest.mark.parametrize("row", [{"messages": []}, {"messages": [{"role": "user", "content": None}]}])
def test_turns_that_say_nothing_are_left_out(tmp_path: Path, row: Row) -> None:
    remarks = Remarks()
    path = write_rows(tmp_path / "a.jsonl", [row, {"prompt": [], "completion": ASKED[1:2]}])
    assert len([*Corpus(str(path)).documents(remarks)]) == 1
    assert len(remarks.lines()) == 1


def test_templates_that_write_the_date_write_a_fixed_one(here: Path) -> None:
    dated = "{{ strftime_now('%d %b %Y') }} " + TEMPLATE
    data = prepared(here, [{"messages": ASKED}], template=dated)
    assert data.tokenizer.decode(data._splits["train"].tokens[:]).startswith("01 Jan 2025 ")
