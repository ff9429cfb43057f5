"""Tokenizers of single characters: an alphabet of the training text, and any text back as it was."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from lightgpt2.data import LanguageModelingData
from lightgpt2.data.tokenizer import train_characters
from lightgpt2.models.tokenizers import load_tokenizer

ALPHABET = "aeioué \n\t\r\u2028東😀'.<>|endoftx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("characters") / "t"
    train_characters([ALPHABET, ALPHABET[:5] * 3], None, path)
    return path


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=ALPHABET, max_size=60), more=st.text(max_size=20))
def test_text_comes_back_as_it_was(folder: Path, text: str, more: str) -> None:
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = text.replace("<|endoftext|>", "")
    ids = plain.encode(text).ids
    assert len(ids) == len(text)
    assert plain.decode(ids) == text
    known = "".join(c if c in ALPHABET else "\ufffd" for c in more)
    assert plain.decode(plain.encode(more).ids, skip_special_tokens=False) == known


def test_transformers_reads_it_and_special_tokens_are_named(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "oie \n\n\t  é東 ."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.convert_ids_to_tokens([0, 1]) == ["<|endoftext|>", "\ufffd"]
    special = [getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")]
    assert special == [0, 0, 0, 1]
    assert len(tokenizer) == len({*ALPHABET}) + 2


def test_the_commonest_characters_stay(tmp_path: Path) -> None:
    train_characters(["zzzyyyxxxab", "ab", "a"], 6, tmp_path / "t")
    assert {*load_tokenizer(str(tmp_path / "t"), "t").get_vocab()} == {"<|endoftext|>", "\ufffd", *"axyz"}


def test_the_alphabet_is_the_training_split_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = {
        "train": "\n\n".join(f"{'abc def'[i:]}{'abc def' * i}" for i in range(7)),
        "valid": "abc xyz",
        "test": "123",
    }
    (tmp_path / "corpus").mkdir()
    for name, text in corpus.items():
        (tmp_path / f"corpus/{name}.txt").write_text(text)
    data = LanguageModelingData(source="corpus", tokenizer="characters", sequence_length=4)
    data.setup("validate")
    assert {*data.tokenizer.get_vocab()} == {"<|endoftext|>", "\ufffd", *"abc def"}
    assert data.tokenizer.decode(next(iter(data.scoring_loader("valid")))["input_ids"][0, 1:3]) == "ab"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 3}, "data.vocab_size: 3 cannot hold two characters"),
        (
            {"source": [{"source": "a/b", "streaming": True}]},
            "data.tokenizer: would read a stream to its end; name a tokenizer",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], message: str) -> None:
    found = LanguageModelingData(**{"tokenizer": "characters", "token_budget": 10, **settings}).problems()  # type: ignore[arg-type]
    assert any(line.startswith(message) for line in map(str, found)), found
    assert not LanguageModelingData(tokenizer="characters", vocab_size=57).problems()
