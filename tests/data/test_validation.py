"""The text that a finished model is held against."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lightgpt2.data.validation import validation_data
from lightgpt2.errors import UserError
from tests.support.models import write_corpus, write_model, write_seq2seq


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_corpus(Path("corpus"))
    return write_model(Path("model"))


def note(model: Path, *entries: dict[str, Any] | None) -> None:
    """Writes a ledger whose entries have this for the data."""
    stages = [{"config": {"data": {"init_args": found}} if found is not None else {}} for found in entries]
    (model / "ledger.json").write_text(json.dumps(stages))


def test_without_a_ledger_it_is_the_default(model: Path) -> None:
    data = validation_data("model", None)
    assert data.corpora[0].source == "pydoc"
    assert data.sequence_length == 64, "the model has no more positions"
    assert len(list(data.scoring_loader("valid")))


def test_it_is_what_the_last_training_read(model: Path) -> None:
    note(model, {"source": "requirements:50"}, {"source": "corpus", "sequence_length": 32, "stride": 8, "batch_size": 3,
                                                "valid_fraction": 0.4}, None)  # fmt: skip
    data = validation_data("model", None)
    assert (data.corpora[0].source, data.sequence_length, data.stride, data.valid_fraction) == ("corpus", 32, 8, 0.4)
    assert data.tokenizer.get_vocab() == validation_data("model", "corpus").tokenizer.get_vocab()


def test_another_source_keeps_nothing_of_the_ledger(model: Path) -> None:
    note(model, {"source": "requirements:50", "sequence_length": 32, "valid_fraction": 0.4})
    data = validation_data("model", "corpus")
    assert (data.corpora[0].source, data.sequence_length, data.valid_fraction) == ("corpus", 64, 0.1)


def test_another_source_keeps_how_an_encoder_decoder_reads(model: Path) -> None:
    write_seq2seq(Path("pairs"), "t5")
    Path("t.jsonl").write_text("".join(json.dumps({"text": f"a {i}", "summary": "b"}) + "\n" for i in range(40)))
    note(Path("pairs"), {"source": "requirements:50", "prefix": "short: ", "max_source_length": 20, "max_target_length": 9,
                         "valid_fraction": 0.4})  # fmt: skip
    data = validation_data("pairs", "t.jsonl")
    assert (data.source, data.prefix, data.max_source_length, data.max_target_length) == ("t.jsonl", "short: ", 20, 9)
    assert data.valid_fraction == 0.1


def test_windows_fit_the_model(model: Path) -> None:
    note(model, {"source": "corpus", "sequence_length": 256, "stride": 128})
    data = validation_data("model", None)
    assert (data.sequence_length, data.stride) == (64, 32)


@pytest.mark.parametrize("found", [{}, {"source": None}, {"source": "corpus", "of_another_module": 1}])
def test_data_that_says_nothing_is_passed_over(model: Path, found: dict[str, Any]) -> None:
    note(model, {"source": "requirements:50"}, found)
    assert validation_data("model", None).corpora[0].source == "requirements:50"
    note(model, found)
    assert validation_data("model", None).corpora[0].source == "pydoc"


def test_text_that_is_gone_is_one_message(model: Path) -> None:
    note(model, {"source": "./gone"})
    with pytest.raises(UserError, match=r"^--data: the text that model was trained on [^\n]*\./gone does not exist; "):
        validation_data("model", None)


@pytest.mark.parametrize("source", ["./none", "empty", "requirements:x"])
def test_text_that_cannot_be_is_one_message(model: Path, source: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError, match=rf"^--data: {source}[^\n]*$"):
        validation_data("model", source)


@pytest.mark.parametrize("name", ["./gone", "bert", "wordless"])
def test_a_model_that_cannot_be_is_called_one(model: Path, name: str) -> None:
    shutil.copytree(model, "bert")
    Path("bert/config.json").write_text('{"model_type": "bert"}')
    shutil.copytree(model, "wordless", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UserError, match=r"^MODEL: "):
        validation_data(name, "corpus")


def test_a_damaged_ledger(model: Path) -> None:
    (model / "ledger.json").write_text("{")
    with pytest.raises(UserError, match=r"ledger\.json: damaged"):
        validation_data("model", None)
