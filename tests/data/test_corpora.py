"""Corpora from every kind of source, their splits, and their tokens on disk."""

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset

from lightgpt2.data import readers
from lightgpt2.data.corpora import Corpus, licences
from lightgpt2.data.encoding import Encoder
from lightgpt2.data.splits import SPLITS, split_of
from lightgpt2.data.tokenizer import train_tokenizer
from lightgpt2.models.tokenizers import load_tokenizer
from tests.support.models import write_tokenizer
from tests.support.text import built, split_documents

TEXTS = ["First text, é.", "Second\ntext.", "Third  text."]


def documents(source: Path | str, separator: str = r"\n\s*\n", field: str = "text") -> list[str]:
    return [text for _, text in Corpus(str(source), field, separator).documents()]


def test_every_file_format_gives_the_same_documents(tmp_path: Path) -> None:
    table = Dataset.from_dict({"id": [1, 2, 3], "body": TEXTS})
    table.to_json(tmp_path / "a.jsonl")
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    table.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("\n \n".join(TEXTS), encoding="utf-8")
    for suffix in ("jsonl", "csv", "tsv", "parquet", "txt"):
        assert documents(tmp_path / f"a.{suffix}", field="body") == TEXTS, suffix


def test_a_licence_is_that_of_the_corpus_or_of_its_dataset_card(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Text.")
    assert Corpus(str(tmp_path)).licence() is None
    assert licences([Corpus(str(tmp_path))]) == {}
    (tmp_path / "README.md").write_text("---\nlicense: [cc0-1.0, mit]\n---\n")
    assert Corpus(str(tmp_path)).licence() == Corpus(str(tmp_path / "a.txt")).licence() == "cc0-1.0, mit"
    assert licences([Corpus(), Corpus("python:os.path"), Corpus("requirements:10")]) == {
        "licence": "PSF-2.0 + unknown + Apache-2.0"
    }
    assert Corpus("owner/nothing").licence() is None


def test_a_licence_is_read_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: odc-by\n---\n")
    asked: list[tuple[str, ...]] = []

    def cached(name: str, file: str, repo_type: str) -> str:
        asked.append((name, file, repo_type))
        return str(card)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    assert Corpus("owner/text:config").licence() == "odc-by"
    assert asked == [("owner/text", "README.md", "dataset")]


def test_a_separator_may_keep_what_it_finds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" = One = \n\nText.\n = = Part = = \nMore.\n = Two = \nText.")
    assert [d.split()[1] for d in documents(tmp_path / "a.txt", r"\n(?= = [^=\n]+ = \s*\n)")] == ["One", "Two"]


@pytest.mark.parametrize("separator", ["\n\n", "\n \n\n", "\r\n\r\n"])
def test_a_text_file_of_many_blocks_is_cut_as_one_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str
) -> None:
    monkeypatch.setattr(readers, "_BLOCK", 50)
    texts = [f"document {i} " * (i % 7 + 1) for i in range(300)]
    (tmp_path / "a.txt").write_bytes(separator.join(texts).encode())
    assert documents(tmp_path / "a.txt") == texts


def test_splits_that_files_name_are_kept_and_missing_ones_carved_from_training(tmp_path: Path) -> None:
    for name, count in (("train", 300), ("valid", 20)):
        lines = [json.dumps({"text": f"{name} document {i}"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    found = list(split_documents(Corpus(str(tmp_path), "text", r"\n\n"), 0.1, 0.1))
    assert {text for split, text in found if split == "valid"} == {f"valid document {i}" for i in range(20)}
    test = [text for split, text in found if split == "test"]
    assert 10 < len(test) < 60
    assert all(text.startswith("train") for text in test)
    assert len(found) == 320


def test_no_document_is_in_two_splits_or_twice(tmp_path: Path) -> None:
    texts = [f"text {i % 150}" for i in range(400)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    found = list(split_documents(Corpus(str(tmp_path / "a.txt"), "text", r"\n\n"), 0.2, 0.2))
    assert len(found) == len({text for _, text in found}) == 150
    assert all(split == split_of(text, 0.2, 0.2) for split, text in found)
    assert {split for split, _ in found} == {"train", "valid", "test"}


def test_hash_split_has_the_shares_asked_for() -> None:
    splits = [split_of(f"document {i}", 0.1, 0.05) for i in range(20_000)]
    shares = [splits.count(split) / 20_000 for split in SPLITS]
    assert shares == pytest.approx([0.85, 0.1, 0.05], abs=0.01)


def test_embedded_corpus_is_prose_without_duplicates() -> None:
    found = [text for _, text in split_documents(Corpus("pydoc", "text", ""), 0.1, 0.05)]
    assert sum(map(len, found)) > 300_000
    assert len(found) > 100
    assert not any(re.search(r"^[*=~^-]{4,}$", text, flags=re.MULTILINE) for text in found)


def test_tokens_on_disk_are_the_tokenizer_s_with_a_separator_before_each_document(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    texts = ["A class.", "An object é"]
    encoder = Encoder(tokenizer.backend_tokenizer.to_str(), 0, None, "uint16", None)
    files = {"train.txt": "\n\n".join(texts), "valid.txt": "Names."}
    meta, splits = built(tmp_path, files, encoder)
    split = splits["train"]
    pieces = [split.tokens[a:b].tolist() for a, b in zip(split.offsets[:-1], split.offsets[1:], strict=True)]
    assert [p[0] for p in pieces] == [0, 0]
    assert [tokenizer.decode(p[1:]) for p in pieces] == texts
    assert split.sizes.tolist() == [len(t.encode()) for t in texts]
    assert meta["splits"]["test"] == {"documents": 0, "tokens": 0, "bytes": 0}
    assert len(splits["test"].tokens) == 0
    again = tmp_path / "again"
    again.mkdir()
    assert built(again, files, encoder, processes=2)[0] == meta


def test_trained_tokenizer_is_lossless_and_loads_by_path(tmp_path: Path) -> None:
    train_tokenizer(["some text to learn from, some text"] * 5, 270, tmp_path / "t")
    tokenizer = load_tokenizer(str(tmp_path / "t"), "data.tokenizer")
    text = "Any tëxt at all: \t\n 漢字"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
