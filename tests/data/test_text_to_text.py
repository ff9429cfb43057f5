"""Pairs of texts: which columns, conversations and splits are read, what is cut, what is learnt, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lightgpt2.data import TextToTextData, generated
from lightgpt2.data.base import Connection
from lightgpt2.data.tokenizer import train_text_to_text
from lightgpt2.errors import UserError
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.models.decoding import Decoding
from lightgpt2.models.families import CAUSAL_LM, SEQ2SEQ
from lightgpt2.models.loading import load_config
from tests.data.test_classification import write
from tests.support.chats import TEMPLATES
from tests.support.models import ENCODER_DECODERS, make_seq2seq

ROWS = [(f"article {number} says a thing. It says more.", f"thing {number}") for number in range(60)]
NAMES = ("text", "summary")
BART = {"model_type": "bart", "max_position_embeddings": 128}
GPT2 = {"model_type": "gpt2", "n_positions": 128}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    train_text_to_text([" ".join(pair) for pair in ROWS], 300, tmp_path / "tokenizer")
    return tmp_path


def data_of(source: str, config: dict[str, Any] = BART, **settings: Any) -> TextToTextData:
    """Data that is set up, of a model of this configuration."""
    data = TextToTextData(source, **{"tokenizer": "tokenizer", "batch_size": 2, "max_source_length": 60} | settings)
    found = load_config(config, "model", auto_classes=(SEQ2SEQ, CAUSAL_LM))
    data.connect(Connection("model", "model.model", config=found))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        accumulate_grad_batches=1, global_rank=0, world_size=1, global_step=0
    )
    if problems := data.problems():
        raise UserError(problems)
    data.prepare_data()
    data.setup("fit")
    return data


def refused(source: str, config: dict[str, Any] = BART, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        data_of(source, config, **settings)
    (problem,) = error.value.problems
    return problem


def pairs(data: TextToTextData, split: str) -> list[tuple[str, str]]:
    """The pairs of a split in the order in which they were read."""
    found = {}
    for batch in data.scoring_loader(split):
        found |= dict(
            zip(batch["example"].tolist(), zip(batch["texts"], batch["references"], strict=True), strict=True)
        )
    return [found[number] for number in sorted(found)]


def decoded(data: TextToTextData, ids: torch.Tensor) -> str:
    return data.tokenizer.decode([token for token in ids.tolist() if token != IGNORE])


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_format_is_read_whole(suffix: str) -> None:
    data = data_of(write(f"table.{suffix}", ROWS, NAMES))
    assert sorted(pair for split in ("train", "valid", "test") for pair in pairs(data, split)) == sorted(ROWS)


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        (("article", "highlights"), {}), (("document", "summary"), {}), (("dialogue", "summary"), {}),
        (("source", "target"), {}), (("prompt", "completion"), {}), (("instruction", "output"), {}),
        (("body", "gist"), {"source_field": "body", "target_field": "gist"}),
        (("body", "summary"), {"source_field": "body"}),
    ],
)  # fmt: skip
def test_the_usual_names_of_fields(names: tuple[str, str], settings: dict[str, Any]) -> None:
    data = data_of(write("t.jsonl", [(*row, i) for i, row in enumerate(ROWS)], (*names, "id")), **settings)
    assert sorted(pair for split in ("train", "valid", "test") for pair in pairs(data, split)) == sorted(ROWS)


def test_a_batch_of_an_encoder_decoder() -> None:
    data = data_of(write("t.jsonl", ROWS, NAMES), prefix="summarize: ")
    batch = next(iter(data.train_dataloader()))
    assert batch["step_items"] == int((batch["labels"] != IGNORE).sum())
    for row, (text, reference) in enumerate(zip(batch["texts"], batch["references"], strict=True)):
        read = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert decoded(data, read) == f"<s>summarize: {text}</s>"
        assert decoded(data, batch["labels"][row]) == f"<s>{reference}</s>"
        assert len(read) == batch["lengths"][row]


def test_of_a_decoder_the_summary_alone_is_learnt() -> None:
    data = data_of(write("t.jsonl", ROWS, NAMES), GPT2, template="{source} In short: ")
    batch = next(iter(data.train_dataloader()))
    assert batch["step_items"] == int((batch["labels"] != IGNORE).sum())
    for row, (text, reference) in enumerate(zip(batch["texts"], batch["references"], strict=True)):
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        prompt = int(batch["lengths"][row])
        assert decoded(data, ids[:prompt]) == f"<s>{text} In short:"
        assert decoded(data, labels) == f" {reference}</s>"
        assert (labels[: prompt - 1] == IGNORE).all()
        learnt = labels[labels != IGNORE]
        assert labels[prompt - 1 : prompt - 1 + len(learnt)].equal(learnt)
        assert ids[prompt : prompt + len(learnt) - 1].equal(learnt[:-1])  # each predicts the next


@pytest.mark.parametrize("config", [BART, GPT2], ids=["bart", "gpt2"])
def test_the_last_answer_of_a_conversation_is_learnt(
    config: dict[str, Any], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [[
        {"role": "user", "content": f"first {i}"}, {"role": "assistant", "content": "known"},
        {"role": "user", "content": f"then {i}"}, {"role": "assistant", "content": f"last {i}"},
        {"role": "user", "content": "unanswered"},
    ] for i in range(60)]  # fmt: skip
    (here / "chat.jinja").write_text(TEMPLATES["ChatML"][0])
    source, chat = write("t.jsonl", [(each,) for each in turns], ("messages",)), {"chat_template": "chat.jinja"}
    data = data_of(source, config, **chat, max_source_length=120, max_target_length=8)
    batch = next(iter(data.train_dataloader()))
    for row, reference in enumerate(batch["references"]):
        number = reference.removeprefix("last ")
        assert batch["texts"][row] == f"first {number}\nknown\nthen {number}"
        assert decoded(data, batch["labels"][row]).replace("<s>", "").startswith(reference)
    if config is GPT2:
        assert "known" in decoded(data, batch["input_ids"][0])
        assert "known" not in decoded(data, batch["labels"][0])
        short = data_of(source, config, **chat, max_source_length=50)
        said = "train sources of t.jsonl have more than 50 tokens: truncated"
        assert said in capsys.readouterr().out
        assert "then" in decoded(short, next(iter(short.train_dataloader()))["input_ids"][0])  # the end is kept


def test_conversations_without_a_chat_template_are_refused() -> None:
    asked = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    rows = [([{"role": "system", "content": str(i)}, *asked],) for i in range(60)]
    source = write("t.jsonl", rows, ("messages",))
    assert refused(source, GPT2).startswith("data.chat_template: the tokenizer has none")


def test_rows_that_lack_one_of_both_are_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    odd = [("", "x"), ("x", ""), ("y", None), (None, "z"), ("half \ud800", "x")]
    data = data_of(write("t.jsonl", [*ROWS, *odd], NAMES))
    said = capsys.readouterr().out
    assert "rows without a source, left out: 2 (t.jsonl: 2)" in said
    assert "rows without a target, left out: 2 (t.jsonl: 2)" in said
    assert "rows that are not valid Unicode, left out: 1" in said
    assert sum(len(pairs(data, split)) for split in ("train", "valid", "test")) == len(ROWS)


def test_sources_that_a_held_out_split_has_are_not_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    write("d/train.jsonl", ROWS, NAMES)
    write("d/valid.jsonl", [*ROWS[:3], (ROWS[3][0], "another summary")], NAMES)
    data = data_of("d", test_fraction=0.0)
    assert not {text for text, _ in pairs(data, "valid")} & {text for text, _ in pairs(data, "train")}
    assert len(pairs(data, "valid")) == 4
    assert "examples that a held-out split has too, left out: 4 (train: 4)" in capsys.readouterr().out


@pytest.mark.parametrize("config", [BART, GPT2], ids=["bart", "gpt2"])
def test_long_ones_are_cut_and_counted_and_references_are_not(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    long = [(f"article {i} " + "says it " * 50, f"thing {i} " + "and more " * 30) for i in range(60)]
    source = write("t.jsonl", long, NAMES)
    data = data_of(source, config, max_source_length=20, max_target_length=10)
    said = capsys.readouterr().out
    assert "train sources of t.jsonl have more than 20 tokens: truncated" in said
    assert "train targets of t.jsonl have more than 10 tokens: truncated; what is scored is compared with whole" in said
    batch = next(iter(data.scoring_loader("valid")))
    assert all(reference in {target for _, target in long} for reference in batch["references"])
    assert int((batch["labels"] != IGNORE).sum(dim=1).max()) == 10
    if config is BART:
        assert batch["input_ids"].shape[1] == 20
        assert (batch["input_ids"][:, -1] == data.tokenizer.eos_token_id).all()  # the end stays
    else:
        assert all("TL;DR:" in decoded(data, ids) for ids in batch["input_ids"])  # so does the template
    message = refused(source, config, max_source_length=20, longer="refuse")
    assert message.startswith("data.longer: ")
    assert "have more than 20 tokens; set data.max_source_length, or data.longer to truncate" in message


def test_texts_of_similar_length_share_a_batch_and_a_resumed_epoch_goes_on() -> None:
    source = write("t.jsonl", [(f"article {i} " + "of " * (i % 40), "it") for i in range(400)], NAMES)
    data = data_of(source, batch_size=8)
    batches = [*data.train_dataloader()]
    filled = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert filled / sum(batch["attention_mask"].numel() for batch in batches) > 0.9
    rows = [row for batch in batches for row in batch["example"].tolist()]
    assert len({*rows}) == len(rows) == 8 * data.steps_per_epoch
    data.trainer.global_step = 5  # type: ignore[union-attr,misc]
    assert [row for batch in data.train_dataloader() for row in batch["example"].tolist()] == rows[40:]


def test_requirements_hold_unseen_combinations_out() -> None:
    data = data_of("requirements:500")
    kept = {target for _, target in pairs(data, "valid")}
    assert kept
    assert not kept & {target for _, target in pairs(data, "train")}
    for text, target in pairs(data, "valid"):
        (binding,) = (part for part in text.split(".") if " shall " in part)
        assert target.removesuffix(".")[1:] in binding  # whose condition and constraint it lacks


MISTAKES: dict[str, tuple[list[tuple[Any, ...]], tuple[str, ...], dict[str, Any], str]] = {
    "no source": (
        [("x", "y")], ("body", "gist"), {}, "data.source_field: t.jsonl has no fields of a source and its target (article and",
    ),
    "another source": (ROWS, NAMES, {"source_field": "body"}, "data.source_field: t.jsonl has no field body; name one of text"),
    "another target": (ROWS, NAMES, {"target_field": "gist"}, "data.target_field: t.jsonl has no field gist; name one of text"),
    "no target beside it": (
        [("x", "y")], ("body", "gist"), {"source_field": "body"}, "data.target_field: t.jsonl has no field of a target beside",
    ),
    "a source that is none": ([(5, "y")], NAMES, {}, "data.source_field: 'text' of t.jsonl holds int, not text, in row 1"),
    "a target that is none": ([("x", [1])], NAMES, {}, "data.target_field: 'summary' of t.jsonl holds list, not text, in row"),
    "empty targets": (
        [("x", "")] * 5, NAMES, {}, "data.source: t.jsonl holds no pair of a source and a target; rows without a target, left",
    ),
    "a template without a place": (ROWS, NAMES, {"template": "TL;DR"}, "data.template: must hold {source}, got 'TL;DR'; put"),
    "no such template": (ROWS, NAMES, {"chat_template": "x.jinja"}, "data.chat_template: x.jinja is not a file; name a Jinja"),
    "a target of one token": (ROWS, NAMES, {"max_target_length": 1}, "data.max_target_length: 1 leaves room for the end alone"),
    "a minimum above the maximum": (
        ROWS, NAMES, {"generation": Decoding(min_new_tokens=9, max_new_tokens=4)},
        "data.generation.min_new_tokens: must be at most the 4 new tokens, got 9; give less",
    ),
    "no such teacher": (ROWS, NAMES, {"generated_by": "./nowhere"}, "data.generated_by: "),
    "too few for a step": (ROWS, NAMES, {"batch_size": 500}, "data.batch_size: t.jsonl has 48 training pairs and"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "names", "settings", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_refused(rows: Any, names: tuple[str, ...], settings: dict[str, Any], message: str) -> None:
    assert refused(write("t.jsonl", rows, names), **settings).startswith(message)


def test_sources_without_targets_are_refused() -> None:
    assert refused("pydoc").startswith(
        "data.source: pydoc has no summaries; give a table that has some, or requirements"
    )


def test_lengths_beyond_the_positions_are_refused() -> None:
    data = TextToTextData(max_source_length=200, max_target_length=150)
    assert [line.partition(":")[0] for line in data.fits({"model.model": 128})] == [
        "data.max_source_length", "data.max_target_length",
    ]  # fmt: skip
    data.connect(Connection("m", "model.model", config=load_config(GPT2, "model")))
    (problem,) = data.fits({"model.model": 300})
    assert problem == (
        "data.max_source_length: 200 with the 150 tokens of a target is longer than the 300 positions of model.model; give "
        "less of one of them"
    )
    source = write("t.jsonl", [(f"{i} word " * 40, "x") for i in range(60)], NAMES)
    long = refused(source, GPT2 | {"n_positions": 70}, max_target_length=10, template="long " * 20 + "{source}")
    assert long.startswith("data.max_source_length: with the template a prompt and its target have ")


# -- targets that a teacher writes ------------------------------------------------------------------------------------


def write_teacher(folder: Path, tokenizer: str = "tokenizer", seed: int = 0) -> None:
    """A random BART, which reads and writes the tokenizer's tokens."""
    read = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    shape = ENCODER_DECODERS["bart"] | {"vocab_size": len(read), "max_position_embeddings": 80}
    make_seq2seq("bart", seed, **shape).save_pretrained(folder)
    read.save_pretrained(folder)


def targets(data: TextToTextData) -> dict[str, str]:
    """What is learnt of each source of the training split."""
    return {
        text: decoded(data, labels).removeprefix("<s>").removesuffix("</s>")
        for batch in data.scoring_loader("train")
        for text, labels in zip(batch["texts"], batch["labels"], strict=True)
    }


def test_a_teacher_writes_the_training_split_s_targets_once_and_goes_on_where_it_was_stopped(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_teacher(here / "teacher")
    calls: list[int] = []
    plain = generated.generate
    monkeypatch.setattr(generated, "generate", lambda *args: calls.append(1) or plain(*args))
    settings: dict[str, Any] = {"generated_by": "teacher", "generation": Decoding(2), "max_target_length": 8}
    source = write("t.jsonl", ROWS, NAMES)
    whole = data_of(source, **settings)
    count = len(calls)
    assert count > 1
    learnt, own = targets(whole), dict(ROWS)
    assert all(learnt[text] != own[text] for text in learnt)
    assert dict(pairs(whole, "valid")).items() <= own.items()  # what is scored stays as it is
    assert targets(data_of(source, **settings)) == learnt
    assert len(calls) == count  # from the file
    (file,) = Path("checkpoints/.data").glob("targets-*.json")
    plain_text = file.read_text()

    def stopped(*args: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        return calls.append(1) or plain(*args)

    monkeypatch.setattr(generated, "generate", stopped)
    calls.clear()
    file.unlink()
    with pytest.raises(KeyboardInterrupt):
        data_of(source, **settings)
    journal = file.with_suffix(".partial")
    assert len(journal.read_text().splitlines()) == 2
    assert not file.exists()
    with journal.open("a") as half:
        half.write('["half a ba')
    monkeypatch.setattr(generated, "generate", lambda *args: calls.append(1) or plain(*args))
    assert targets(data_of(source, **settings)) == learnt
    assert len(calls) == count
    assert file.read_text() == plain_text
    assert not journal.exists()


def test_other_teachers_settings_and_texts_have_other_targets(here: Path) -> None:
    write_teacher(here / "teacher")
    source = write("t.jsonl", ROWS, NAMES)
    settings: dict[str, Any] = {"generated_by": "teacher", "generation": Decoding(1), "max_target_length": 8}
    files = [here / "checkpoints/.data"]

    def count() -> int:
        return len([*files[0].glob("targets-*.json")])

    data_of(source, **settings)
    assert count() == 1
    data_of(source, **settings | {"generation": Decoding(1, max_new_tokens=5)})
    assert count() == 2
    write_teacher(here / "teacher", seed=1)
    data_of(source, **settings)
    assert count() == 3
    data_of(write("u.jsonl", ROWS[:50], NAMES), **settings)
    assert count() == 4
    (file, *_) = files[0].glob("targets-*.json")
    damaged = json.loads(file.read_text())
    damaged["texts"][0] = "another"
    for each in files[0].glob("targets-*.json"):
        each.write_text(json.dumps(damaged))
    assert "another" not in targets(data_of(source, **settings)).values()  # written anew
