"""Tokenizers that are cut down: the corpus is cut as before, everything else can still be written."""

import json
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

from lightgpt2.data.base import Connection
from lightgpt2.data.language_modeling import LanguageModelingData
from lightgpt2.data.tokenizer import check_trims, train_wordpiece, trimmed
from lightgpt2.errors import UserError
from tests.support.models import write_tokenizer

TRAINING = [topics["assert"], topics["break"], topics["pass"]]
OTHER = ["Zürich ☃ 你好 \t\r\n\n  qwerty", topics["del"], topics["lambda"], "\x00\x07"]


def trained(folder: Path) -> PreTrainedTokenizerFast:
    """As `teacher.yaml` makes them: the special token is the first."""
    return write_tokenizer(folder, 700)


def of_gpt2(folder: Path) -> PreTrainedTokenizerFast:
    """GPT-2's own class, which builds itself anew from vocabulary and merges; the special token is the last."""
    model = json.loads(write_tokenizer(folder, 700).backend_tokenizer.to_str())["model"]
    tokens = [*list(model["vocab"])[1:], "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return GPT2TokenizerFast(vocab=vocabulary, merges=[tuple(merge) for merge in model["merges"]])


def of_llama3(folder: Path) -> PreTrainedTokenizerFast:
    """Whole words looked up first, tokens added behind the vocabulary, one of them put before each text."""
    old = json.loads(write_tokenizer(folder, 700).backend_tokenizer.to_str())["model"]
    merges = [(a, b) for a, b in old["merges"]]
    backend = Tokenizer(models.BPE(vocab=old["vocab"], merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(r"\w+| ?\w+|\s+|[^\w\s]+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<begin>", "<end>"])
    begin = backend.token_to_id("<begin>")
    template = processors.TemplateProcessing("<begin> $A", "<begin> $A $B", [("<begin>", begin)])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<begin>", eos_token="<end>", pad_token="<end>")


KINDS: dict[str, Callable[[Path], PreTrainedTokenizerFast]] = {
    "trained": trained,
    "GPT-2": of_gpt2,
    "Llama 3": of_llama3,
}


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str], **options: Any) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, verbose=False, **{"add_special_tokens": False, **options})["input_ids"]
    return ids


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_training_text_is_cut_as_before_and_all_other_text_can_be_written(
    tmp_path: Path, kind: Callable[[Path], PreTrainedTokenizerFast]
) -> None:
    whole = kind(tmp_path / "whole")
    before = encode(whole, TRAINING)
    used = {token for text in before for token in text}
    smaller, ids = trimmed(whole, used)
    smaller.save_pretrained(tmp_path / "small")
    new = {old: index for index, old in enumerate(ids)}
    for tokenizer in (smaller, AutoTokenizer.from_pretrained(tmp_path / "small")):
        assert type(tokenizer) is type(whole)
        assert encode(tokenizer, TRAINING) == [[new[token] for token in text] for text in before]
        assert tokenizer.get_vocab() == {token: new[old] for token, old in whole.get_vocab().items() if old in new}, (
            "in the old order, without gaps"
        )
        assert set(tokenizer.get_vocab()) >= {*ByteLevel.alphabet(), *whole.all_special_tokens}
        assert used <= set(ids)
        assert len(tokenizer) == len(ids) < len(whole)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            assert getattr(tokenizer, name) == new.get(getattr(whole, name))
        assert [tokenizer.decode(text) for text in encode(tokenizer, OTHER)] == OTHER
        marked = encode(tokenizer, TRAINING, add_special_tokens=True)
        assert marked == [[new[token] for token in text] for text in encode(whole, TRAINING, add_special_tokens=True)]
    assert sum(map(len, encode(smaller, OTHER))) > sum(map(len, encode(whole, OTHER))), "in more, smaller pieces"


@pytest.mark.parametrize("seed", range(10))
def test_merges_that_never_applied_are_missed_by_no_text(tmp_path: Path, seed: int) -> None:
    """Texts of few letters, where nearly every pair has a merge and the order of the list decides."""
    draw = np.random.default_rng(seed)
    letters = ["a", "b", "c"]
    vocabulary, merges = {letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}, []
    while len(merges) < 60:
        pair = (str(draw.choice(letters)), str(draw.choice(letters)))
        if "".join(pair) not in vocabulary and len("".join(pair)) < 7:
            merges.append(pair)
            letters.append("".join(pair))
            vocabulary["".join(pair)] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    whole = PreTrainedTokenizerFast(tokenizer_object=backend)
    texts = ["".join(draw.choice(["a", "b", "c", " "], size=int(draw.integers(1, 12)))) for _ in range(8)]
    before = encode(whole, texts)
    smaller, ids = trimmed(whole, {token for text in before for token in text})
    assert len(json.loads(smaller.backend_tokenizer.to_str())["model"]["merges"]) < 60
    assert [[ids[token] for token in text] for text in encode(smaller, texts)] == before


@pytest.mark.parametrize(
    ("model", "pre_tokenizer", "decoder"),
    [
        (models.WordLevel({"a": 0}, unk_token="a"), pre_tokenizers.ByteLevel(), decoders.ByteLevel()),
        (models.BPE({"a": 0}, []), pre_tokenizers.Metaspace(), decoders.Metaspace()),
        (models.BPE({"a": 0}, [], end_of_word_suffix="</w>"), pre_tokenizers.ByteLevel(), decoders.ByteLevel()),
        (models.BPE({"a": 0}, []), None, None),
    ],
    ids=["words", "SentencePiece", "ends of words", "letters"],
)
def test_a_tokenizer_of_another_kind_is_refused(model: Any, pre_tokenizer: Any, decoder: Any) -> None:
    backend = Tokenizer(model)
    if pre_tokenizer is not None:
        backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoder
    with pytest.raises(UserError, match=r"model\.vocabulary: only byte-level BPE"):
        check_trims(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_the_data_keep_what_training_text_needs_and_look_at_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tokenizer(Path("tokenizer"), 700)
    found = []
    for valid in (topics["del"], topics["lambda"]):
        for name, text in (("train", TRAINING[0]), ("valid", valid), ("test", TRAINING[1])):
            Path("text").mkdir(exist_ok=True)
            Path("text", f"{name}.txt").write_text(text)
        streams = {}
        for trims in (True, False):
            data = LanguageModelingData(source="text", tokenizer="tokenizer", sequence_length=16, batch_size=1)
            data.connect(Connection("tokenizer", "model.model", trims_vocabulary=trims))
            data.prepare_data()
            data.setup("validate")
            streams[trims] = {split: data._splits[split].tokens[:] for split in ("train", "valid")}  # type: ignore[index]
            if trims:
                ids, smaller = data.kept_tokens, data.tokenizer
        assert np.array_equal(np.array(ids)[streams[True]["train"]], streams[False]["train"])
        assert len(streams[True]["valid"]) > len(streams[False]["valid"])
        texts = smaller.decode(streams[True]["valid"]).split("<|endoftext|>")[1:]
        assert "\n\n".join(texts) == "\n\n".join(part.strip("\n") for part in valid.strip("\n").split("\n\n") if part)
        found.append((ids, smaller.backend_tokenizer.to_str()))
    assert found[0] == found[1]


@pytest.mark.slow
def test_gpt2_s_own_tokenizer_on_real_text(real_data: Path) -> None:
    whole = GPT2TokenizerFast.from_pretrained(real_data / "gpt2-tokenizer")
    train, valid = ((real_data / "wikitext2" / f"{name}.txt").read_text().split("\n") for name in ("train", "valid"))
    before = encode(whole, train)
    smaller, ids = trimmed(whole, {token for text in before for token in text})
    assert [[ids[token] for token in text] for text in encode(smaller, train)] == before
    assert smaller.batch_decode(encode(smaller, valid)) == valid
    assert len(smaller) < len(whole) / 2


def test_word_pieces_are_cut_down_and_cut_text_as_before(tmp_path: Path) -> None:
    train_wordpiece([topics["assignment"], topics["class"]], 600, tmp_path)
    whole = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = topics["class"][:2000]
    used = {*whole(text)["input_ids"]}
    smaller, ids = trimmed(whole, used)
    assert len(smaller) == len(ids) < len(whole)
    assert [ids[token] for token in smaller(text)["input_ids"]] == whole(text)["input_ids"]
    assert smaller.convert_ids_to_tokens(smaller("a", "b")["input_ids"]) == ["[CLS]", "a", "[SEP]", "b", "[SEP]"]
    other = smaller.convert_ids_to_tokens(smaller("zqxjk assignment")["input_ids"])
    assert "".join(token.removeprefix("##") for token in other[1:-1]) == "zqxjkassignment"  # in smaller pieces
