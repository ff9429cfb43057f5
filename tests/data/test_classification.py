"""Labelled texts: which columns, labels and splits are read, what is left out and said, and what is refused."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from lightgpt2.data import ClassificationData
from lightgpt2.data.base import Connection
from lightgpt2.data.tokenizer import train_wordpiece
from lightgpt2.errors import UserError
from lightgpt2.models.families import CLASSIFICATION
from lightgpt2.models.loading import load_config
from tests.support.models import write_tokenizer

ROWS = [(f"text {number} of class {number % 3}", "abc"[number % 3]) for number in range(60)]
NAMES = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    train_wordpiece([text for text, _ in ROWS], 100, tmp_path / "tokenizer")
    return tmp_path


def write(path: str, rows: list[tuple[Any, ...]], names: tuple[str, ...] = ("text", "label")) -> str:
    """A table in the format that the name says."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    records = [dict(zip(names, row, strict=True)) for row in rows]
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif file.suffix == ".json":
        file.write_text(json.dumps(records))
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), file)
    else:
        mark = "," if file.suffix == ".csv" else "\t"
        file.write_text("".join(mark.join(map(str, row)) + "\n" for row in [names, *rows]))
    return path


def data_of(source: str, config: dict[str, Any] | None = None, **settings: Any) -> ClassificationData:
    """Data that is set up, of a model of this configuration."""
    data = ClassificationData(source, **{"tokenizer": "tokenizer", "batch_size": 2} | settings)
    found = config and load_config({"model_type": "bert", **config}, "model", auto_classes=(CLASSIFICATION,))
    data.connect(Connection("model", "model.model", config=found or None))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        accumulate_grad_batches=1, global_rank=0, world_size=1, global_step=0
    )
    data.prepare_data()
    data.setup("fit")
    return data


def refused(source: str, config: dict[str, Any] | None = None, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        data_of(source, config, **settings)
    (problem,) = error.value.problems
    return problem


def texts(data: ClassificationData, split: str) -> list[tuple[str, str | None, int]]:
    """The texts of a split with their classes, in the order in which they were read."""
    found = {}
    for batch in data.scoring_loader(split):
        for number, (text, pair), label in zip(
            batch["example"].tolist(), batch["texts"], batch["labels"].tolist(), strict=True
        ):
            found[number] = text, pair, label
    return [found[number] for number in sorted(found)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_format_is_read_whole(suffix: str) -> None:
    data = data_of(write(f"table.{suffix}", ROWS))
    assert data.labels == NAMES
    read = [text for split in ("train", "valid", "test") for text in texts(data, split)]
    assert sorted(read) == sorted((text, None, NAMES.index(label)) for text, label in ROWS)


@pytest.mark.parametrize(
    ("fields", "settings", "paired"),
    [
        (("sentence", "label"), {}, False),
        (("sentence1", "sentence2", "label"), {}, True),
        (("premise", "hypothesis", "label"), {}, True),
        (("question", "sentence", "label"), {}, True),
        (("idx", "sentence", "label"), {}, False),
        (("a", "b", "gold"), {"text_field": "a", "pair_field": "b", "label_field": "gold"}, True),
        (("a", "b", "gold"), {"text_field": "b", "label_field": "gold"}, False),
    ],
)
def test_the_usual_names_of_fields(fields: tuple[str, ...], settings: dict[str, Any], paired: bool) -> None:
    rows = [(*(f"{name} {i}" for name in fields[:-1]), i % 2) for i in range(40)]
    found = texts(data_of(write("t.jsonl", rows, fields), **settings), "train")
    assert all((pair is not None) == paired for _, pair, _ in found)
    chosen = [settings[key] for key in ("text_field", "pair_field") if key in settings] or [
        n for n in fields[:-1] if n != "idx"
    ]
    assert all(text.startswith(f"{chosen[0]} ") for text, _, _ in found)


def test_pairs_have_segments() -> None:
    data = data_of(write("t.csv", [(f"one {i}", f"two {i}", i % 2) for i in range(40)], ("text", "text_pair", "label")))
    batch = next(iter(data.train_dataloader()))
    for ids, segments, mask in zip(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"], strict=True):
        first = ids.tolist().index(data.tokenizer.sep_token_id) + 1
        assert segments[:first].sum() == 0
        assert segments[first : int(mask.sum())].all()


def test_pairs_without_segments_need_something_between_their_texts() -> None:
    source = write("p.csv", [(f"one {i}", f"two {i}", i % 2) for i in range(40)], ("text", "text_pair", "label"))
    about = Path("tokenizer/tokenizer_config.json")
    inputs = {"model_input_names": ["input_ids", "attention_mask"]}  # as DistilBERT's
    about.write_text(json.dumps(json.loads(about.read_text()) | inputs))
    batch = next(iter(data_of(source).train_dataloader()))
    assert "token_type_ids" not in batch
    write_tokenizer(Path("decoders"))
    assert refused(source, tokenizer="decoders") == (
        "data.pair_field: the tokenizer puts nothing between the two texts of a pair; give an encoder's, "
        "or join them in one field"
    )


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([0, 1, 2], ["LABEL_0", "LABEL_1", "LABEL_2"]),
        (["0", "1", "2"], ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ([0.0, 1.0, 2.0], ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ([1, 2, 10], ["1", "2", "10"]),  # stars, say: they do not begin at 0
        ([True, False], ["false", "true"]),
        (["spam", "ham"], ["ham", "spam"]),
        ([" spam", "ham "], ["ham", "spam"]),
    ],
)
def test_labels_are_names_or_numbers(labels: list[Any], names: list[str]) -> None:
    count = len(labels)
    data = data_of(write("t.jsonl", [(f"text {i}", labels[i % count]) for i in range(60)]))
    assert data.labels == names
    for text, _, number in texts(data, "train"):
        label = labels[int(text.split()[1]) % count]
        wanted = str(label).strip().lower() if isinstance(label, bool) else str(label).strip()
        assert names[number] in (wanted, f"LABEL_{wanted.removesuffix('.0')}")


def test_names_that_are_given_or_that_the_model_has() -> None:
    numbered = write("numbers.csv", [(f"text {i}", i % 2) for i in range(40)])
    assert data_of(numbered, class_names=["negative", "positive"]).labels == ["negative", "positive"]
    trained = {"id2label": {0: "positive", 1: "negative"}}
    assert data_of(numbered, trained).labels == ["positive", "negative"]
    named = write("names.csv", [(f"text {i}", ["negative", "positive"][i % 2]) for i in range(40)])
    data = data_of(named, trained)  # the model's order, not the alphabet's
    assert data.labels == ["positive", "negative"]
    assert all(number == 1 - int(text.split()[1]) % 2 for text, _, number in texts(data, "train"))


def test_a_hub_data_set_names_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    features = Features(sentence=Value("string"), label=ClassLabel(names=["negative", "positive"]), idx=Value("int32"))
    rows = {"sentence": [f"text {i}" for i in range(30)], "label": [i % 2 for i in range(30)], "idx": [*range(30)]}
    hidden = {"sentence": ["secret"] * 3, "label": [-1] * 3, "idx": [*range(3)]}
    tables = {
        "train": Dataset.from_dict(rows, features),
        "validation": Dataset.from_dict({**rows, "sentence": [f"other {i}" for i in range(30)]}, features),
        "test": Dataset.from_dict(hidden, features),
    }
    asked: list[Any] = []
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **_: asked.append(args) or DatasetDict(tables))
    data = data_of("glue:sst2", valid_fraction=0.0, test_fraction=0.0)
    assert asked[0] == ("glue", "sst2")
    assert data.labels == ["negative", "positive"]
    assert [len(texts(data, split)) for split in ("train", "valid")] == [30, 30]
    with pytest.raises(UserError, match="no test texts"):
        data.setup("test")


def test_splits_that_files_name_are_kept_and_texts_of_held_out_ones_are_not_trained_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("d/train.tsv", ROWS)
    write("d/dev.tsv", [*ROWS[:3], ("new", "a"), ("new", "a")])
    write("d/test.tsv", [*ROWS[2:5], ("newer", "b")])
    data = data_of("d")
    held_out = [text for split in ("valid", "test") for text, _, _ in texts(data, split)]
    assert not {*held_out} & {text for text, _, _ in texts(data, "train")}
    assert Counter(held_out)["new"] == 2  # a split that is scored stays what it is
    assert {split: len(texts(data, split)) for split in ("train", "valid", "test")} == {
        "train": 55,
        "valid": 4,
        "test": 4,
    }
    assert "examples that a held-out split has too, left out: 6 (valid, train: 5)" in capsys.readouterr().out


def test_what_is_left_out_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    odd = [
        ("", "a"),
        ("   ", "b"),
        (None, "b"),
        ("no label", None),
        ("hidden", "-1"),
        ("lone \ud800", "a"),
        ("empty", ""),
    ]
    data = data_of(write("t.jsonl", [*ROWS, *odd]))
    said = capsys.readouterr().out
    assert "rows without text, left out: 3 (t.jsonl: 3)" in said
    assert "rows without a label, left out: 3 (t.jsonl: 3)" in said
    assert "rows that are not valid Unicode, left out: 1 (t.jsonl)" in said
    assert sum(len(texts(data, split)) for split in ("train", "valid", "test")) == len(ROWS)


def test_long_texts_are_truncated_and_counted_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    source = write("t.jsonl", [(f"text {i} " + "of " * (30 * (i % 4 == 0)), "ab"[i % 2]) for i in range(80)])
    data = data_of(source, max_length=12)
    lengths = [int(n) for batch in data.scoring_loader("train") for n in batch["attention_mask"].sum(dim=1)]
    assert max(lengths) == 12
    ids = next(iter(data.scoring_loader("train")))["input_ids"]
    assert ids[0, 0] == data.tokenizer.cls_token_id
    assert ids[0, 11] == data.tokenizer.sep_token_id  # truncation keeps the end that the model was trained with
    assert "train texts longer than 12 tokens, truncated: " in capsys.readouterr().out
    assert "have more than 12 tokens; set data.max_length, or data.longer" in refused(
        source, max_length=12, longer="refuse"
    )


def test_texts_of_similar_length_share_a_batch_and_an_epoch_has_each_once() -> None:
    data = data_of(write("t.jsonl", [(f"text {i} " + "of " * (i % 40), "ab"[i % 2]) for i in range(400)]), batch_size=8)
    padded, used, seen = 0, 0, []
    for batch in data.train_dataloader():
        padded, used = padded + batch["attention_mask"].numel(), used + int(batch["attention_mask"].sum())
        seen += batch["example"].tolist()
    assert used / padded > 0.9  # 0.6 in random order
    assert len({*seen}) == len(seen) == 8 * data.steps_per_epoch
    again = [row for batch in data.train_dataloader() for row in batch["example"].tolist()]
    assert again == seen
    data.seed = 1
    assert [row for batch in data.train_dataloader() for row in batch["example"].tolist()] != seen


def test_pads_stand_behind_texts_whatever_the_tokenizer_says() -> None:
    about = Path("tokenizer/tokenizer_config.json")
    about.write_text(json.dumps(json.loads(about.read_text()) | {"padding_side": "left"}))
    data = data_of(write("d.csv", [*ROWS, ("a longer text of some more words", "a")]))
    masks = [batch["attention_mask"] for batch in data.scoring_loader("train")]
    assert any((mask == 0).any() for mask in masks)
    assert all(mask[:, 0].all() for mask in masks)
    assert data.tokenizer.padding_side == "right", "it is saved beside the model"


def test_processes_share_a_step_and_resume_in_the_middle() -> None:
    source = write("t.jsonl", [(f"text {i} " + "of " * (i % 7), "ab"[i % 2]) for i in range(100)])

    def rows(rank: int, world: int, step: int) -> list[int]:
        data = data_of(source, batch_size=4 // world)
        data.trainer.global_rank, data.trainer.world_size, data.trainer.global_step = rank, world, step  # type: ignore[union-attr,misc]
        return [row for batch in data.train_dataloader() for row in batch["example"].tolist()]

    whole, halves = rows(0, 1, 0), [rows(rank, 2, 0) for rank in (0, 1)]
    for step in range(len(whole) // 4):
        mine = slice(2 * step, 2 * step + 2)
        assert {*whole[4 * step : 4 * step + 4]} == {*halves[0][mine], *halves[1][mine]}
    assert rows(0, 1, 5) == whole[20:]


def test_balanced_weights_count_each_class_alike() -> None:
    source = write("t.jsonl", [(f"text {i}", "a" if i % 5 else "b") for i in range(200)])
    data = data_of(source, class_weights="balanced", valid_fraction=0.2, test_fraction=0.0)
    totals: dict[int, float] = {0: 0.0, 1: 0.0}
    for batch in data.train_dataloader():
        assert batch["step_items"] == pytest.approx(float(batch["weights"].sum()))
        for label, weight in zip(batch["labels"].tolist(), batch["weights"].tolist(), strict=True):
            totals[label] += weight
    assert totals[0] == pytest.approx(totals[1], rel=0.1)


def test_requirements_hold_unseen_combinations_out() -> None:
    data = data_of("requirements:500")
    assert data.labels == ["functional", "interface", "performance", "security", "usability"]
    assert all("[" not in text for text, _, _ in texts(data, "train"))
    assert min(Counter(label for _, _, label in texts(data, "valid")).values()) > 0


MISTAKES: dict[str, tuple[list[tuple[Any, ...]], tuple[str, ...], dict[str, Any], str]] = {
    "no label column": ([("x",)], ("text",), {}, "data.label_field: t.jsonl has no field label; name one of text"),
    "no text column": ([(1, "a")], ("id", "label"), {}, "data.text_field: t.jsonl has no field text or sentence; name one of"),
    "another text column": (ROWS, ("text", "label"), {"text_field": "body"}, "data.text_field: t.jsonl has no field body"),
    "no pair column": (
        ROWS, ("text", "label"), {"text_field": "text", "pair_field": "b"}, "data.pair_field: t.jsonl has no field b; name",
    ),
    "empty labels": ([("x", "")] * 9, ("text", "label"), {}, "data.label_field: all texts of t.jsonl are of class none"),
    "one class": ([(f"x {i}", "a") for i in range(9)], ("text", "label"), {}, "data.label_field: all texts of t.jsonl are of"),
    "text that is none": ([(5, "a")], ("text", "label"), {}, "data.text_field: 'text' of t.jsonl holds int, not text, in row"),
    "label that is none": (
        [("x", [1, 2])], ("text", "label"), {}, "data.label_field: 'label' of t.jsonl holds list, no name or number, in row 1",
    ),
    "label with a fraction": ([("x", 0.5)], ("text", "label"), {}, "data.label_field: 'label' of t.jsonl holds float, no name"),
    "unknown classes": (
        ROWS, ("text", "label"), {"class_names": ["x", "y", "z"]}, "data.label_field: the data has classes a, b, c and",
    ),
    "too few names": (
        [(f"x {i}", i % 3) for i in range(60)], ("text", "label"), {"class_names": ["x", "y"]}, "data.label_field: the data",
    ),
    "too few texts for a step": (ROWS, ("text", "label"), {"batch_size": 500}, "data.batch_size: t.jsonl has 5"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "names", "settings", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_refused(rows: Any, names: tuple[str, ...], settings: dict[str, Any], message: str) -> None:
    assert refused(write("t.jsonl", rows, names), **settings).startswith(message)


def test_a_class_that_is_held_out_only_is_refused() -> None:
    write("d/train.csv", [(f"text {i}", "ab"[i % 2]) for i in range(20)])
    write("d/valid.csv", [(f"more {i}", "abc"[i % 3]) for i in range(20)])
    assert refused("d").startswith("data.label_field: no training text of d is of class c, which others are")


def test_a_class_that_validation_lacks_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    write("d/train.csv", [(f"text {i}", "abc"[i % 3]) for i in range(20)])
    write("d/valid.csv", [(f"more {i}", "ab"[i % 2]) for i in range(20)])
    data_of("d")
    said = capsys.readouterr().out
    assert "classes that the valid split lacks: 1 (c)" in said
    assert "20 validation texts; an interval over so few says little" in said


def test_sources_without_labels_are_refused() -> None:
    Path("notes.txt").write_text("words\n\nmore words")
    assert refused("notes.txt").startswith("data.source: notes.txt is not one of .jsonl, .json, .csv, .tsv, .parquet")
    assert refused("pydoc").startswith("data.source: pydoc has no labels")


def test_settings_that_contradict_each_other_are_refused() -> None:
    problems = ClassificationData(
        pair_field="b", valid_fraction=0.9, test_fraction=0.2, tokenizer="t", vocab_size=100
    ).problems()
    assert sorted([problem.partition(":")[0] for problem in problems]) == [
        "data.text_field",
        "data.valid_fraction",
        "data.vocab_size",
    ]
    assert "two classes have one name" in str(ClassificationData(class_names=["a", "a"]).problems())
    (problem,) = ClassificationData(max_length=600).fits({"model.model": 512})
    assert problem == "data.max_length: 600 is longer than the 512 positions of model.model; give at most that"


def test_calibration_is_training_text() -> None:
    data = data_of(write("t.csv", ROWS))
    inputs = data.calibration(5)
    trained = {tuple(data._splits["train"].tokens(i)) for i in range(len(data._splits["train"].labels))}
    assert all(tuple(ids[0].tolist()) in trained for ids in inputs)
    assert inputs[0].dtype == torch.int64
    assert np.unique([len(ids) for ids in inputs]).tolist() == [1]
    with pytest.raises(UserError, match="calibration: the training split has"):
        data.calibration(1000)


def test_what_cannot_be_read_is_said_without_a_tokenizer() -> None:
    """As before a stage whose model is not there yet; labelled text has other fields than text that is only read."""
    whole = write("whole.tsv", ROWS, ("sentence", "label"))
    assert ClassificationData(whole).unreadable(fetch=False) == []
    lacking = write("lacking.tsv", ROWS, ("sentence", "class"))
    (problem,) = ClassificationData(lacking).unreadable()
    assert problem.startswith("data.label_field: ")
    assert ClassificationData("glue:sst2").unreadable(fetch=False) == [], "which is not at hand"


@pytest.mark.parametrize("first", [0, 1])
def test_rows_of_one_text_and_of_two_are_refused(first: int) -> None:
    rows = [{"text": f"one {i}", "label": i % 2} | ({"text_pair": "two"} if i % 2 == first else {}) for i in range(40)]
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = {"two": 1 + first, "one": 2 - first}
    said = f"row {places['two']} of t.jsonl has two texts and row {places['one']} of t.jsonl one"
    assert refused("t.jsonl").startswith(f"data.text_field: {said}; ")
    assert all(pair is None for _, pair, _ in texts(data_of("t.jsonl", text_field="text"), "train"))


def test_a_label_with_half_a_surrogate_pair_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    data = data_of(write("t.jsonl", [*ROWS, ("text", "\ud83d")]))
    assert data.labels == NAMES
    assert "rows that are not valid Unicode, left out: 1 (t.jsonl)" in capsys.readouterr().out


def test_white_space_around_a_text_makes_no_other_one(capsys: pytest.CaptureFixture[str]) -> None:
    write("t/train.jsonl", [*ROWS, (" held out ", "a")])
    write("t/test.jsonl", [(f"{text} ", label) for text, label in [*ROWS[:5], ("held out", "a")]])
    write("t/valid.jsonl", [(f"other {text}", label) for text, label in ROWS[:6]])
    found = {text for text, *_ in texts(data_of("t"), "train")}
    assert found == {text for text, _ in ROWS[5:]}
    assert "examples that a held-out split has too, left out: 6 (train: 6)" in capsys.readouterr().out
