"""What a source of text gains, loses or leaks: files, folders, their names, their bytes and their values."""

import codecs
import gzip
import io
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from pyarrow import feather
from transformers import PreTrainedTokenizerFast

from lightgpt2.data import readers
from lightgpt2.data.base import Connection
from lightgpt2.data.corpora import Corpus
from lightgpt2.data.documents import Conversation
from lightgpt2.data.files import split_named
from lightgpt2.data.language_modeling import LanguageModelingData
from lightgpt2.data.remarks import Remarks
from lightgpt2.errors import UserError
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.tokenizers import load_tokenizer
from lightgpt2.models.vocabulary import needed_rows
from tests.support.models import write_tokenizer
from tests.support.text import letters, split_documents

Content = str | bytes


def write(folder: Path, files: dict[str, Content]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(source: Path, field: str = "text", separator: str | None = Corpus.separator) -> tuple[list[str], str]:
    """The documents of a source, and the remarks on it."""
    corpus, remarks = Corpus(str(source), field, separator), Remarks()
    found = [text.strip("\n") for _, text in corpus.documents(remarks)]
    return [text for text in found if text], "\n".join([*corpus.remarks(), *remarks.lines()])


def refused(source: Path, field: str = "text") -> str:
    with pytest.raises(UserError) as error:
        read(source, field)
    (problem,) = error.value.problems
    return str(problem)


# -- separators ----------------------------------------------------------------------------------------------------------

SEPARATORS = {
    "a group": (r"\n(---|===)\n", "one\n---\ntwo\n===\nthree\n"),
    "a group that may be absent": (r"\n(---)?\n", "one\n---\ntwo\n\nthree\n"),
    "groups in groups": (r"\n((-)+|(=)+)\n", "one\n---\ntwo\n===\nthree\n"),
    "a named group": (r"\n(?P<line>-+|=+)\n", "one\n---\ntwo\n===\nthree\n"),
    "a group before what stays": (r"\n(?=(\w+))", "one\ntwo\nthree\n"),
}


@pytest.mark.parametrize("name", SEPARATORS)
def test_a_separator_with_groups_is_no_document(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    separator, text = SEPARATORS[name]
    monkeypatch.setattr(readers, "_BLOCK", 20)
    source = write(tmp_path, {"a.txt": "\n".join([text.strip()] * 9) if "?=" in separator else text})
    assert Counter(read(source / "a.txt", separator=separator)[0]) == dict.fromkeys(
        ("one", "two", "three"), 9 if "?=" in separator else 1
    )


# -- splits that names say -----------------------------------------------------------------------------------------------

SPLIT_NAMES = {
    "train.txt": "train", "valid.txt": "valid", "val.txt": "valid", "dev.tsv": "valid", "validation.csv": "valid",
    "test.txt": "test", "testing.txt": "test", "eval.jsonl": "test", "evaluation.json": "test", "holdout.txt": "test",
    "TEST.TXT": "test", "Test/a.txt": "test", "train/a.txt": "train", "data/train-00000-of-00001.parquet": "train",
    "data/validation-00000-of-00001.parquet": "valid", "dev_matched.tsv": "valid", "test2.txt": "test",
    "wiki.test.raw.txt": "test",
    "testset.txt": "test", "TrainSet.txt": "train", "split=test/part-0.parquet": "test", "en/test/b/c.txt": "test",
    "test/train.txt": "test", "train/test.txt": "test", "test.jsonl.gz": "test", "msr_paraphrase_train.txt": "train",
    "held_out.txt": "test", "held-out/a.txt": "test", "hold-out.csv": "test", "devtest.txt": "test", "TestData.csv": "test",
    "testA.json": "test", "tests/a.txt": "test", "validate.txt": "valid", "development.txt": "valid",
    "train/held_out.txt": "test",
    "contest.txt": None, "latest.txt": None, "developer.txt": None, "trains.txt": None, "evaluate.txt": None, "a.txt": None,
}  # fmt: skip


@pytest.mark.parametrize("name", SPLIT_NAMES)
def test_a_name_says_its_split(name: str) -> None:
    assert split_named(name) == SPLIT_NAMES[name]


FOLDERS = {
    "hub": ["data/train-00000-of-00001", "data/validation-00000-of-00001", "data/test-00000-of-00001"],
    "hub, shards": ["data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001"],
    "folders": ["train/part", "test/part"],
    "folders in folders": ["en/train/a", "en/dev/a", "fr/train/a", "fr/test/a"],
    "eval": ["train", "eval"],
    "testing": ["train", "testing"],
    "held out alone is named": ["a", "b", "test"],
    "upper case": ["TRAIN", "Dev", "TeSt"],
}


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv.gz"])
@pytest.mark.parametrize("name", FOLDERS)
def test_what_a_name_holds_out_is_not_trained_on(tmp_path: Path, name: str, suffix: str) -> None:
    for stem in FOLDERS[name]:
        texts = [f"{stem}: document {i}" for i in range(30)]
        lines = {"txt": texts, "jsonl": [json.dumps({"text": text}) for text in texts], "csv.gz": ["text", *texts]}[
            suffix
        ]
        content = ("\n\n" if suffix == "txt" else "\n").join(lines).encode()
        write(tmp_path, {f"{stem}.{suffix}": gzip.compress(content) if suffix.endswith("gz") else content})
    found = [*split_documents(Corpus(str(tmp_path)), 0.1, 0.05)]
    assert len(found) == 30 * len(FOLDERS[name])
    said = {text: split_named(text.partition(":")[0]) for _, text in found}
    assert all(split == said[text] for split, text in found if said[text] in ("valid", "test"))
    assert any(split == "train" for split, _ in found)


def test_a_text_that_is_also_held_out_is_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path, {"train.txt": "one\n\ntwo\n\nshared", "valid.txt": "shared\n\nthree", "test.txt": "two"})
    remarks = Remarks()
    found = set(split_documents(Corpus(str(tmp_path)), 0.0, 0.0, remarks))
    assert found == {("train", "one"), ("valid", "shared"), ("valid", "three"), ("test", "two")}
    assert remarks.lines() == ["documents that occur again, left out: 2 (train: 2)"]


def test_what_names_no_split_beside_training_text_is_left_out_and_named(tmp_path: Path) -> None:
    write(tmp_path, {"README.md": "a card", "infos.json": "{}", "data/train.txt": "one", "data/dev.txt": "two"})
    found, said = read(tmp_path)
    assert found == ["two", "one"]
    assert "files whose names say no split, beside others whose names do: not read: 2 (README.md, infos.json)" in said
    assert "valid split by its name: 1 (data/dev.txt)" in said


CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: "a*.jsonl"}
  - {split: test, path: [b.jsonl, ./more/*]}
- config_name: other
  data_files: c.jsonl
---
# A card
"""


def test_a_dataset_card_says_the_splits_of_files(tmp_path: Path) -> None:
    names = ["a1", "a2", "b", "more/x", "c", "d", "test"]
    write(tmp_path, {"README.md": CARD, **{f"{name}.jsonl": lines({"text": name}) for name in names}})
    found = set(split_documents(Corpus(str(tmp_path)), 0.0, 0.0))
    assert found == {(split, name) for split, some in (("train", ["a1", "a2", "c"]), ("test", ["b", "more/x", "test"]))
                     for name in some}  # fmt: skip
    assert "not read: 1 (d.jsonl)" in read(tmp_path)[1]


def test_the_patterns_of_a_card_are_the_hub_s(tmp_path: Path) -> None:
    """`**/` also stands for no folder, and `*` for no part of a path."""
    patterns = {"train": "**/*.jsonl", "test": "data/**/h*.jsonl", "validation": "data/v*"}
    files = [f"  - {{split: {split}, path: '{pattern}'}}\n" for split, pattern in patterns.items()]
    names = ["a", "data/a", "data/h", "data/x/h", "data/v", "data/v/a"]
    write(tmp_path, {"README.md": "---\nconfigs:\n- data_files:\n" + "".join(files) + "---\n",
                     **{f"{name}.jsonl": lines({"text": name}) for name in names}})  # fmt: skip
    found = {str(text): split for split, text in split_documents(Corpus(str(tmp_path)), 0.0, 0.0)}
    assert found == dict(zip(names, ["train", "train", "test", "test", "valid", "train"], strict=True))


def test_a_dataset_card_is_no_text_and_another_one_another_source(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"README.md": CARD.replace("a*", "x"), "a1.jsonl": lines({"text": "one"}), "b.jsonl": lines({"text": "b"})},
    )
    corpus = Corpus(str(tmp_path))
    found, said = read(tmp_path)
    assert sorted(found) == ["b", "one"]
    assert "dataset cards, not read as text: 1 (README.md)" in said
    page = "---\ntitle: A page\n---\ntext"
    for name in ("pages/README.md", "pages/more/README.md"):
        write(tmp_path, {name: page if name.startswith("pages/R") else CARD})
    assert read(tmp_path / "pages") == ([page, *(part.strip("\n") for part in CARD.split("\n\n"))], ""), (
        "no card is there"
    )
    before = corpus.fingerprint()
    write(tmp_path, {"README.md": CARD.replace("b.jsonl", "a1.jsonl")})
    assert {text for split, text in split_documents(corpus, 0.0, 0.0) if split == "test"} == {"one"}
    assert corpus.fingerprint() != before


@pytest.mark.parametrize(
    "about", ["configs: [1, {data_files: 3}]", "configs: {a: 1}", ": : [", "license: mit", "- a list"]
)
def test_a_card_of_another_form_says_nothing(tmp_path: Path, about: str) -> None:
    write(tmp_path, {"README.md": f"---\n{about}\n---\n", "a.txt": "one"})
    assert {split for split, _ in split_documents(Corpus(str(tmp_path)), 0.0, 0.0)} == {"train"}


@pytest.mark.parametrize("named", ["test", "valid"])
def test_beside_a_held_out_file_the_others_are_shared_out(tmp_path: Path, named: str) -> None:
    texts = {name: [f"{name} {number}" for number in range(60)] for name in (named, "index", "notes")}
    write(tmp_path, {f"{name}.txt": "\n\n".join(found) for name, found in texts.items()})
    splits: dict[str, set[str]] = {"train": set(), "valid": set(), "test": set()}
    for split, text in split_documents(Corpus(str(tmp_path)), 0.2, 0.2):
        splits[split].add(str(text))
    assert splits.pop(named) == set(texts.pop(named)), "no more is held out"
    assert all(splits.values())
    assert set().union(*splits.values()) == set().union(*texts.values())
    said = read(tmp_path)[1]
    assert "beside others whose names do: training text: 2 (index.txt, notes.txt)" in said
    assert f"{named} split by its name: 1 ({named}.txt)" in said


@pytest.mark.parametrize("name", ["test.txt", "valid.txt", "train.txt"])
def test_a_file_that_is_given_itself_is_one_pool(tmp_path: Path, name: str) -> None:
    write(tmp_path, {name: "one\n\ntwo"})
    assert Corpus(str(tmp_path / name)).splits() == set()
    assert [split for split, _ in split_documents(Corpus(str(tmp_path / name)), 0.0, 0.0)] == ["train"] * 2


def test_splits_of_a_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"train_sft": "one", "test_sft": "two", "unsupervised": "three", "validation_matched": "one"}
    tables = DatasetDict({name: Dataset.from_dict({"other": [1], "text": [text]}) for name, text in names.items()})
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: tables)
    remarks = Remarks()
    found = set(split_documents(Corpus("some/dataset"), 0.0, 0.0, remarks))
    assert found == {("test", "two"), ("valid", "one")}, "the training text is held out by another split"
    assert any("not read: 1 (unsupervised)" in line for line in remarks.lines())


def test_splits_of_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"my_corpus.py": "def pairs():\n    return [('train', 'a'), ('train', 'b'), ('test', 'a'), (None, 'c')]\n"
                                     "def wrong():\n    return [('validation', 'a')]\n"})  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    found = set(split_documents(Corpus("python:my_corpus.pairs"), 0.0, 0.9))
    assert found == {("test", "a"), ("train", "b"), ("train", "c")}, "no more is held out than the function says"
    with pytest.raises(UserError, match="a split must be one of train, valid, test, got 'validation'"):
        [*Corpus("python:my_corpus.wrong").documents()]
    sys.modules.pop("my_corpus")


def test_a_function_that_gives_other_splits_or_documents_is_another_source(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [[("test", "ab"), ("train", "cd")], [("train", "ab"), ("train", "cd")], [("test", "a"), ("train", "bcd")]]
    found = set()
    for made in given:
        monkeypatch.setattr(Corpus, "_made", lambda self, made=made: made)
        found.add(Corpus("python:my_corpus.pairs").fingerprint())
    assert len(found) == 3


def test_several_files_without_a_split_are_a_document_each_and_others_are_cut(tmp_path: Path) -> None:
    text = "one {0}\n\ntwo {0}"
    folder = write(tmp_path / "many", {name: text.format(name) for name in ("a.txt", "b/c.md")})
    assert read(folder)[0] == ["one a.txt\n\ntwo a.txt", "one b/c.md\n\ntwo b/c.md"]
    assert len(read(folder, separator=r"\n\n")[0]) == 4, "they are cut where that is asked for"
    assert Corpus(str(folder)).fingerprint() != Corpus(str(folder), separator=r"\n\s*\n").fingerprint()
    single = write(tmp_path / "single", {"a.txt": text.format("a"), "b.jsonl": lines({"text": "row"})})
    assert sorted(read(single)[0]) == ["one a", "row", "two a"]
    shards = write(tmp_path / "shards", {f"train-{i}.txt": text.format(i) for i in range(2)})
    assert len(read(shards)[0]) == 4


@pytest.mark.parametrize("separator", ["", "x*"])
def test_a_separator_that_fits_everywhere_is_refused(tmp_path: Path, separator: str) -> None:
    source = write(tmp_path, {"a.txt": "one"})
    (problem,) = Corpus(str(source), separator=separator).problems()
    assert problem.startswith("data.separator: ")
    assert not Corpus(str(source), separator="(?!)").problems(), "files are kept whole"


# -- files of a folder -----------------------------------------------------------------------------------------------------

BOM = codecs.BOM_UTF8
HELD: dict[str, tuple[dict[str, Content], list[str], list[str]]] = {  # files, texts, words of the remarks
    "upper-case suffixes": ({"B.TXT": "one", "a.Txt": "two", "C.JSONL": '{"text": "three"}'}, ["one", "three", "two"], []),
    "Markdown": ({"a.md": "# One"}, ["# One"], []),
    "an editor's copies": (
        {"a.txt": "now", ".ipynb_checkpoints/a-checkpoint.txt": "before", "a.txt~": "before", ".a.txt.swp": "before"},
        ["now"],
        ["hidden files and folders, not read: 2 (.a.txt.swp, .ipynb_checkpoints)", "other kinds, not read: 1 (a.txt~)"],
    ),
    "hidden files": (
        {"a.txt": "one", "._a.txt": "AppleDouble", ".cache/b.txt": "x", "~$c.csv": "x", "d/.e.txt": "x"},
        ["one"], ["not read: 4 (._a.txt, .cache, d/.e.txt, ~$c.csv)"],
    ),
    "other kinds": (
        {"a.txt": "one", **{f"{i}.pdf": "x" for i in range(7)}, "data.jsonl.zst": "x"},
        ["one"], ["files of other kinds, not read: 8 (0.pdf, 1.pdf, 2.pdf, 3.pdf, 4.pdf, 3 more)"],
    ),
    "empty files": ({"a.txt": "one", "b.txt": "", "c.parquet": b""}, ["one"], ["empty files: 2 (b.txt, c.parquet)"]),
    "gzip": ({"a.txt.gz": gzip.compress(b"one"), "b.jsonl.GZ": gzip.compress(b'{"text": "two"}')}, ["one", "two"], []),
    "gzip in parts": ({"a.txt.gz": gzip.compress(b"one\n\n") + gzip.compress(b"two")}, ["one", "two"], []),
    "gzip by its bytes": ({"a.txt": gzip.compress(b"one"), "b.txt.gz": b"two"}, ["one", "two"], []),
    "byte order marks": (
        {"a.txt": BOM + b"one", "b.jsonl": BOM + b'{"text": "two"}', "c.csv": BOM + b"text\nthree\n",
         "d.json": BOM + b'[{"text": "4"}]',
         "e.txt": BOM},
        ["one", "two", "three", "4"], [],
    ),
    "UTF-16 and UTF-32": (
        {"a.txt": "one\r\n\r\ntwo \u0a0a".encode("utf-16"), 
         "b.csv": codecs.BOM_UTF16_BE + "text\r\ntwo\r\n".encode("utf-16-be"),
         "c.txt": "three".encode("utf-32")},
        ["one\n\ntwo \u0a0a", "two", "three"], [],
    ),
    "ends of lines": ({"a.txt": "one\r\n\r\ntwo", "b.csv": "text\r\nthree\r\n", "c.jsonl": '{"text": "4"}\r\n\r\n'},
                      ["one", "two", "three", "4"], []),
    "characters that end lines elsewhere": (
        {"a.jsonl": json.dumps({"text": "a\u2028b\x85c\x0bd"}, ensure_ascii=False), "b.csv": "text\na\u2028b\x85\x1cc\n",
         "c.tsv": "text\ta\na\u2029b\x0c\t1\n"},
        ["a\u2028b\x85c\x0bd", "a\u2028b\x85\x1cc", "a\u2029b\x0c"], [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HELD)
def test_files_of_a_folder(tmp_path: Path, name: str) -> None:
    files, texts, words = HELD[name]
    found, said = read(write(tmp_path, files))
    assert found == texts
    assert all(word in said for word in words), said
    assert words or not said


def test_links_are_followed_or_named(tmp_path: Path) -> None:
    write(tmp_path, {"text/a.txt": "here", "real/x.txt": "linked", "alone.txt": "a file"})
    (tmp_path / "text/more").symlink_to(tmp_path / "real")
    (tmp_path / "text/b.txt").symlink_to(tmp_path / "alone.txt")
    (tmp_path / "text/gone.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "text/loop").symlink_to(tmp_path / "text")
    os.mkfifo(tmp_path / "text/pipe.txt")
    found, said = read(tmp_path / "text")
    assert found == ["here", "a file", "linked"]
    assert "no files, not read: 2 (gone.txt, pipe.txt)" in said
    assert "not followed: 1 (loop)" in said
    (tmp_path / "all").symlink_to(tmp_path / "text")
    assert read(tmp_path / "all")[0] == found


def test_a_link_to_a_file_says_its_split_and_its_kind(tmp_path: Path) -> None:
    write(tmp_path, {"blobs/1": "one", "blobs/2": "two"})
    (tmp_path / "text").mkdir()
    for name, blob in (("train.txt", "1"), ("test.txt", "2")):
        (tmp_path / "text" / name).symlink_to(tmp_path / "blobs" / blob)
    assert set(split_documents(Corpus(str(tmp_path / "text")), 0.0, 0.0)) == {("train", "one"), ("test", "two")}


# -- rows --------------------------------------------------------------------------------------------------------------------


def lines(*rows: Any) -> str:
    return "\n".join(json.dumps(row) for row in rows)


LONG = "the pump shall open " * 10_000  # more than the csv module allows
MANY = 3000
KINDS = {
    "null, then text": lambda i: {"meta": None if i < 2500 else "x"},
    "only later": lambda i: {"meta": 1} if i > 2500 else {},
    "number, then text": lambda i: {"meta": 1 if i < 2500 else "x"},
    "number, then list": lambda i: {"meta": 1 if i < 2500 else [{"a": 1}]},
}
ROWS: dict[str, tuple[str, Content, list[str], str]] = {  # name, content, texts, words of the remarks
    "marks of a benchmark": (
        "a.tsv", 'text\tlabel\n" it begins\t0\nplain\t1\nand ends "\t0\n', ['" it begins', "plain", 'and ends "'],
        "a quotation mark that begins a field is read as text: 1 (",
    ),
    "marks around a field": ("a.tsv", 'text\tlabel\n" all of it "\t0\n', ['" all of it "'], "is read as text: 1 ("),
    "marks of two fields": ("a.tsv", 'text\tb\n" one\t" two\n', ['" one'], "is read as text: 1 ("),
    "marks around lines that are all whole rows": (
        "a.tsv", 'text\tlabel\n"one\t0\ntwo"\t1\n', ['"one', 'two"'], "is read as text: 1 (",
    ),
    "a mark inside a field": ("a.tsv", 'text\tlabel\nfive " inch\t0\n', ['five " inch'], ""),
    "marks in one column": ("a.tsv", 'text\n" one "\n"two\n', ['" one "', '"two'], "is read as text: 2 ("),
    "a quoted TSV": ("a.tsv", 'text\tlabel\n"She said ""no""."\t0\nplain\t1\n', ['She said "no".', "plain"], ""),
    "a TSV that is quoted throughout": ("a.tsv", '"text"\t"label"\n"one"\t"0"\n', ["one"], ""),
    "a quoted TSV of several lines": ("a.tsv", 'text\tlabel\n"one\nthree"\t0\n', ["one\nthree"], ""),
    "a quoted TSV of one column": ("a.tsv", 'text\n"one\n""two"""\nthree\n', ['one\n"two"', "three"], ""),
    "values that look like none": ("a.csv", "text\nNA\nnull\nNone\nnan\n1984\n1.50\ntrue\n",
                                   ["NA", "null", "None", "nan", "1984", "1.50", "true"], ""),
    "a comma, a quotation mark, an end of line": ("a.csv", 'id,text\n1,"a, ""b""\r\nc"\n', ['a, "b"\r\nc'], ""),
    "a long field": ("a.csv", f"text\n{LONG}\n", [LONG], ""),
    "a long quoted field": ("a.tsv", f'text\tid\n"{LONG}\n"\t1\n', [LONG], ""),
    "a long field among quoted ones": (
        "a.tsv", f'text\tid\n"{LONG} ""x"" {LONG}"\t1\n"b ""q"""\t2\n', [f'{LONG} "x" {LONG}', 'b "q"'], "",
    ),
    "rows without text": ("a.csv", 'id,text\n1,one\n2,\n3,"  "\n', ["one"], "rows without text, left out: 2 ("),
    "blank lines": ("a.csv", "\ntext\n\none\n\n\ntwo\n\n", ["one", "two"], ""),
    "null, empty and absent": (
        "a.jsonl", lines({"id": 1}, {"text": None}, {"text": ""}, {"text": "one"}), ["one"], "rows without text, left out: 3 (",
    ),
    "half a surrogate pair": ("a.jsonl", '{"text": "one"}\n{"text": "\\ud83d"}\n{"text": "\\ud83d\\ude00"}', ["one", "😀"],
                              "rows that are not valid Unicode, left out: 1 ("),
    "JSON lines in a .json": ("a.json", lines({"text": "one"}, {"text": "two"}), ["one", "two"], ""),
    "a list in a .jsonl": ("a.jsonl", json.dumps([{"text": "one"}, {"text": "two"}], indent=2), ["one", "two"], ""),
    "one object": ("a.json", json.dumps({"text": "one"}, indent=2), ["one"], ""),
    "a list that begins with a whole object": ("a.json", '[{"text": "one"}\n,{"text": "two"}\n]', ["one", "two"], ""),
    "an object whose first line ends in a brace": ("a.json", '{"text": "one", "x": {"a": 1}\n}', ["one"], ""),
    "numbers that only JSON of Python has": (
        "a.jsonl", '{"text": "one", "x": NaN}\n{"text": "two", "x": 1e999}', ["one", "two"], "",
    ),
    "a number of many digits": ("a.jsonl", f'{{"text": "one", "x": {"9" * 400}}}', ["one"], ""),
    **{
        name: ("a.jsonl", lines(*({"text": f"{i}", **meta(i)} for i in range(MANY))), [f"{i}" for i in range(MANY)], "")
        for name, meta in KINDS.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_a_file(tmp_path: Path, name: str) -> None:
    file, content, texts, words = ROWS[name]
    found, said = read(write(tmp_path, {file: content}) / file)
    assert found == texts
    assert words in said
    assert words or not said


QUOTED = {
    "a line break in a field": 'text\tlabel\n"one\ntwo"\t0\nthree\t1\n',
    "two columns of several lines": 'text\tlabel\n"one\n\ntwo"\t"a\nb"\nthree\t1\n',
    "the last column": 'id\ttext\n1\t"one\ntwo"\n2\tthree\n',
    "one column": 'text\n"one\ntwo"\nthree\n',
    "tabs and marks, too": 'text\tlabel\n"one\t\t""two""\n""three"""\t0\nfour\t1\n',
    "Windows' ends of lines": 'text\tlabel\r\n"one\r\ntwo"\t0\r\nthree\t1\r\n',
    "a quoted header": '"text"\t"label"\n"one\ntwo"\t"0"\n"three"\t"1"\n',
    "the last line without an end": 'text\tlabel\nthree\t1\n"one\ntwo"\t0',
    "marks inside of other fields": 'text\tlabel\n"one\ntwo"\t0\n5" pipe\t1\n',
}  # fmt: skip


@pytest.mark.parametrize("name", QUOTED)
def test_a_quoted_tsv_is_read_as_pandas_and_datasets_read_it(tmp_path: Path, name: str) -> None:
    write(tmp_path, {"a.tsv": QUOTED[name]})
    assert read(tmp_path / "a.tsv") == (pd.read_csv(tmp_path / "a.tsv", sep="\t")["text"].tolist(), "")


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.string_view()]
)
@pytest.mark.parametrize("packed", [False, True])
def test_columns_of_a_parquet_file(tmp_path: Path, kind: Any, packed: bool) -> None:
    columns = {"other": [{"a": [1]}, None, {"a": []}], "my.text": pa.array(["one", None, "two"], kind), "n": [1, 2, 3]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
    if packed:
        (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    found, said = read(tmp_path / f"a.parquet{'.gz' * packed}", "my.text")
    assert found == ["one", "two"]
    assert "rows without text, left out: 1 (" in said


def parquet(**columns: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def twice(write_table: Any) -> bytes:
    out = io.BytesIO()
    write_table(pa.table([pa.array(["one"]), pa.array(["two"])], names=["text", "text"]), out)
    return out.getvalue()


LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 12345\n"


def test_datasets_that_were_saved_to_disk(tmp_path: Path) -> None:
    tables = {
        "train": Dataset.from_dict({"n": [1, 2], "text": ["one", "two"]}),
        "test": Dataset.from_dict({"text": ["three"]}),
    }
    DatasetDict(tables).save_to_disk(tmp_path / "several")
    assert set(split_documents(Corpus(str(tmp_path / "several")), 0.0, 0.0)) == {
        ("train", "one"), ("train", "two"), ("test", "three"),
    }  # fmt: skip
    tables["train"].save_to_disk(tmp_path / "alone", num_shards=2)
    found, said = read(tmp_path / "alone")
    assert (found, said) == (["one", "two"], "files about a dataset, not read: 2 (dataset_info.json, state.json)")
    write(tmp_path, {"names/state.json": lines({"text": "a state"})})
    assert read(tmp_path / "names") == (["a state"], ""), "without such a file beside it, it is a text"


@pytest.mark.parametrize("packed", [False, True])
def test_an_arrow_file_of_the_other_format(tmp_path: Path, packed: bool) -> None:
    feather.write_feather(pa.table({"n": [1, 2], "text": ["one", None]}), str(tmp_path / "a.arrow"))
    if packed:
        (tmp_path / "a.arrow").write_bytes(gzip.compress((tmp_path / "a.arrow").read_bytes()))
    assert read(tmp_path / "a.arrow") == (["one"], f"rows without text, left out: 1 ({tmp_path / 'a.arrow'})")


def test_what_a_table_s_types_add_to_structs_is_no_part_of_a_row(tmp_path: Path) -> None:
    """In an Arrow table every struct of a column has all fields; only those that were given reach the chat template."""
    rows = [
        {
            "text": [
                {"role": "user", "content": "a", "calls": [{"a": 1}, {"b": "x"}]},
                {"role": "assistant", "content": "b"},
            ]
        }
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    ((_, document),) = Corpus(str(tmp_path / "a.parquet")).documents()
    assert isinstance(document, Conversation)
    assert [*document.messages] == rows[0]["text"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet"])
def test_a_column_of_splits_that_decides_nothing_is_said(tmp_path: Path, name: str) -> None:
    rows = [{"text": "one", "split": "train"}, {"text": "two", "split": "test"}]
    mark = "\t" if name.endswith("tsv") else ","
    table = "\n".join(mark.join(row) for row in (["text", "split"], *(row.values() for row in rows)))
    contents: dict[str, Content] = {
        "a.jsonl": lines(*rows), "a.json": json.dumps(rows),
        "a.parquet": parquet(text=["one", "two"], split=["train", "test"]),
    }  # fmt: skip
    source = write(tmp_path, {name: contents.get(name, table)}) / name
    said = f"tables with a column 'split', which decides nothing; give each split a file of its own: 1 ({source})"
    assert read(source) == (["one", "two"], said)


REFUSED: dict[str, tuple[str, Content, str]] = {
    "a column twice": ("a.csv", "text,text\none,two\n", "a.csv has 2 columns 'text'; rename the others"),
    "too many fields": ("a.csv", "text,id\none,1\ntwo, three,2\n", "(row 3 has 3 fields and the header 2)"),
    "too few fields": ("a.tsv", "text\tid\none\t1\ntwo\n", "(row 3 has 1 fields and the header 2)"),
    "a mark that ends nowhere": ("a.csv", 'text,id\n"one,1\n', "(line 2: unexpected end of data)"),
    "another escape": ("a.csv", 'text,id\n"a \\"b\\"",1\n', "a.csv is not a readable csv file (line 2: "),
    "a list of texts": ("a.json", '["one"]', "row 1 of "),
    "a number": ("a.jsonl", lines({"text": "one"}, {"text": 2}), "holds int, not text or a list of messages, in row 2"),
    "bytes": ("a.parquet", parquet(text=[b"one"]), "holds bytes, not text or a list of messages, in row 1"),
    "lists of texts": ("a.parquet", parquet(text=[["one"]]), "the role of message 1 must be one of"),
    "columns of lists": ("a.json", '{"text": ["one", "two"]}', "the role of message 1 must be one of"),
    "columns by index": ("a.json", '{"text": {"0": "one"}}', "holds dict, not text or a list of messages, in row 1"),
    "a field of rows": ("a.json", '{"version": 1, "data": [{"text": "one"}]}', "name one of version, data"),
    "objects over several lines": ("a.jsonl", '{\n"text": "a"\n}\n{\n"text": "b"\n}', "a.jsonl is not a readable jsonl file ("),
    "a byte order mark inside": ("a.jsonl", '{"text": "one"}\n\ufeff{"text": "two"}', "in line 2, column 1)"),
    "semicolons": ("a.csv", "text;label\none;1\n", "name one of text;label"),
    "carriage returns alone": ("a.csv", "text\rone\r", "a.csv is not a readable csv file (line "),
    "a column twice in a Parquet file": ("a.parquet", twice(pq.write_table), "a.parquet has 2 columns 'text'; rename"),
    "a column twice in an Arrow file": ("a.arrow", twice(feather.write_feather), "a.arrow has 2 columns 'text'; rename"),
    "a pointer of Git LFS": ("a.txt", LFS, "a.txt is a pointer of Git LFS, not the file itself; fetch it with git lfs pull"),
    "such a pointer to a table": ("a.parquet", LFS, "a.parquet is a pointer of Git LFS"),
    "no Arrow": ("a.arrow", "some text", "a.arrow is not a readable arrow file ("),
    "no such field": ("a.tsv", "body\tid\none\t1\n", "name one of body, id"),
    "no such field anywhere": ("a.jsonl", lines({"a": 1}, {"b": 2}), "name one of a"),
    "bad JSON": ("a.jsonl", '{"text": "one"}\n\n{"text": }\n', "(Expecting value in line 3, column 10)"),
    "Latin-1": ("a.csv", "text\ncaf\xe9\n".encode("latin-1"), "is not valid UTF-8 (invalid continuation byte in line 2)"),
    "UTF-16 without a mark": ("a.txt", "one".encode("utf-16-le"), "or UTF-16 without a byte order mark"),
    "half of UTF-16": ("a.txt", "one".encode("utf-16")[:-1], "is not valid UTF-16"),
    "a part of a gzip file": ("a.txt.gz", gzip.compress(b"one" * 99)[:-9], "a.txt.gz is not a readable txt file ("),
    "a spoilt gzip file": ("a.txt.gz", gzip.compress(b"one" * 99)[:-8] + b"12345678", "a.txt.gz cannot be read (CRC check"),
    "too deep": ("a.jsonl", '{"text": ' + "[" * 100_000, "a.jsonl is not a readable jsonl file ("),
    "a folder without text": ("d/.a.txt", "x", "hidden files and folders, not read: 1 (.a.txt)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_one_message(tmp_path: Path, name: str) -> None:
    file, content, words = REFUSED[name]
    write(tmp_path, {file: content})
    message = refused(tmp_path / ("d" if file.startswith("d/") else file))
    assert message.startswith(("data.source: ", "data.text_field: "))
    assert words in message
    assert len(message.replace(str(tmp_path), "")) < 300


# -- tokens ------------------------------------------------------------------------------------------------------------------


def wide(folder: Path, first: int) -> Path:
    """A tokenizer whose last twenty ids begin at `first`, after a gap; zero-width spaces become no token."""
    write_tokenizer(folder)
    path = folder / "tokenizer.json"
    parts = json.loads(path.read_text())
    parts["normalizer"] = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
    vocabulary = parts["model"]["vocab"]
    for place, token in enumerate(sorted(vocabulary, key=vocabulary.get)[280:]):
        vocabulary[token] = first + place
    path.write_text(json.dumps(parts))
    return folder


def prepared(source: Path, tokenizer: Path, trims: bool = False) -> LanguageModelingData:
    data = LanguageModelingData(str(source), sequence_length=8, valid_fraction=0.0, tokenizer=str(tokenizer))
    data.connect(Connection({}, "model.model", trims_vocabulary=trims))
    data.prepare_data()
    data.setup("validate")
    return data


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


TEXT = "a class is an object of its own and the target of an assignment"


@pytest.mark.parametrize("first", [400, 65_500, 65_530, 66_000, 150_000])
@pytest.mark.parametrize("trims", [False, True])
def test_token_ids_with_gaps_and_above_two_bytes(here: Path, first: int, trims: bool) -> None:
    write(here, {"text/train.txt": TEXT, "text/valid.txt": TEXT + " too"})
    data = prepared(here / "text", wide(here / "t", first), trims)
    whole = load_tokenizer("t", "data.tokenizer")
    assert needed_rows(whole) == first + 20 > len(whole)
    tokens = data._splits["train"].tokens[:]
    assert data.tokenizer.decode(tokens[1:].tolist()) == TEXT
    assert tokens.max() < needed_rows(data.tokenizer)
    if not trims:
        assert tokens[1:].tolist() == whole(TEXT, add_special_tokens=False)["input_ids"]
        assert tokens.max() >= first, "one of the last ids is in the text"


def test_a_tokenizer_that_is_not_what_its_folder_s_ledger_says_is_refused(here: Path) -> None:
    write(here, {"a.txt": TEXT})
    wide(here / "t", 400)
    Ledger([{"files": {}}]).write(here / "t")
    (here / "t/tokenizer.json").write_text((here / "t/tokenizer.json").read_text() + "\n")
    with pytest.raises(UserError, match=r"^data.tokenizer: tokenizer.json in t is not what was written"):
        LanguageModelingData("a.txt", tokenizer="t").prepare_data()


@pytest.mark.parametrize("largest", [65_535, 65_536])
def test_the_largest_id_decides_the_bytes_of_a_token(here: Path, largest: int) -> None:
    write(here, {"a.txt": "x"})
    data = LanguageModelingData("a.txt", valid_fraction=0.0, test_fraction=0.0, tokenizer="t")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters({"x": largest}), bos_token="<unk>")
    tokenizer.save_pretrained("t")
    data.prepare_data()
    data.predict_split = "train"
    data.setup("predict")
    tokens = data._splits["train"].tokens[:]
    assert tokens.tolist() == [0, largest]
    assert tokens.dtype == (np.uint16 if largest < 2**16 else np.uint32)


def test_documents_without_a_token_count_for_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = ["\u200b", "\u200b\u200b"]
    for name, texts in (("plain", ["one", "two words"]), ("more", [*empty, "one", "two words"])):
        write(here, {f"{name}/train.txt": TEXT, f"{name}/valid.jsonl": lines(*({"text": text} for text in texts))})
    tokenizer = wide(here / "t", 400)
    plain, more = (prepared(here / name, tokenizer) for name in ("plain", "more"))
    assert plain.meta["splits"] == more.meta["splits"]
    assert plain.meta["sha256"] == more.meta["sha256"]
    said = capsys.readouterr().out
    assert f"{here}/more: documents without a token, left out: 2 (valid: 2)\n" in said
    prepared(here / "more", tokenizer)
    assert "documents without a token, left out: 2" in capsys.readouterr().out, (
        "also where the tokens are there already"
    )


NO_TOKEN = "data.source: the valid split of text has no text of at least one token; give it some"
EMPTY_SPLITS: dict[str, tuple[dict[str, Content], str]] = {
    "no tokens": (
        {"train.txt": TEXT, "valid.txt": "\u200b\n\n\u200b\u200b"},
        NO_TOKEN,
    ),
    "no text": (
        {"train.txt": TEXT, "valid.jsonl": '{"text": ""}'},
        NO_TOKEN,
    ),
    "no training": ({"test.txt": TEXT}, "text has no training text: all of it is named test"),
    "nothing": ({"a.txt": "\u200b"}, "text holds no text"),
    "one document": ({"a.txt": TEXT}, "the 1 documents of text leave none for the valid split"),
}


@pytest.mark.parametrize("name", EMPTY_SPLITS)
def test_a_split_of_nothing_is_refused(here: Path, name: str) -> None:
    files, words = EMPTY_SPLITS[name]
    write(here / "text", files)
    with pytest.raises(UserError) as error:
        prepared(Path("text"), wide(here / "t", 400))
    assert words in str(error.value)
