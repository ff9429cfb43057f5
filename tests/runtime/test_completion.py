"""Completion: its probabilities are the sums over all token sequences that spell a text, found by brute force."""

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedModel

import lightgpt2
from lightgpt2.errors import UserError
from lightgpt2.runtime.completion import Cancelled, Completer, Completion, _rest
from lightgpt2.runtime.engines import Engine, Floats, Ints
from lightgpt2.runtime.language_model import LanguageModel
from lightgpt2.runtime.paths import Paths
from lightgpt2.runtime.spellings import Spellings, in_word
from lightgpt2.runtime.transformers_engine import TransformersEngine
from tests.support.models import make_restless_model, write_classifier
from tests.support.onnx_client import torch_logits
from tests.support.onnx_decoder import write_decoder
from tests.support.tokenizers import KINDS

TEXTS = {
    "byte_level": ("the v", "s日", ". é"),
    "byte_fallback": (" th", " 日é"),
    "unigram": ("the v", " é"),
    "sentencepiece": (" the v", " val", " 日a"),
    "characters": ("the v", "日a"),
}


def model_of(tokenizer: Tokenizer, seed: int = 0) -> tuple[LanguageModel, PreTrainedModel]:
    size = tokenizer.get_vocab_size()
    model = make_restless_model("gpt2", seed, n_layer=1, n_embd=16, n_head=2, vocab_size=size, n_positions=64)
    return LanguageModel(TransformersEngine(model), tokenizer, {"eos_token_id": 0}), model


def brute_force(tokenizer: Tokenizer, model: PreTrainedModel, text: str) -> tuple[float, float]:
    """The probability that a text follows token 0; and that it does and a word ends with it. By decoding alone."""
    anchor = tokenizer.encode("a").ids
    silent = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    silent |= {0} if tokenizer.id_to_token(0) == "<unk>" else set()
    start = len(tokenizer.decode(anchor))

    def said(tokens: tuple[int, ...]) -> str:
        return tokenizer.decode([*anchor, *tokens], skip_special_tokens=False)[start:]

    @cache
    def chances(tokens: tuple[int, ...]) -> np.ndarray:
        logits = torch_logits(model, np.array([[0, *tokens]]))[0, -1].astype(np.float64)
        weights = np.exp(logits - logits.max())
        return np.asarray(weights / weights.sum())

    def goes_on(tokens: tuple[int, ...], token: int) -> bool:
        rest = said((*tokens, token))[len(text) :]
        cut = rest[:1] == "\ufffd" and tokenizer.token_to_id("\ufffd") is None
        return token not in silent and rest != "" and (in_word(rest[0]) or cut)

    of = dict(zip(Spellings(tokenizer).ids.tolist(), Spellings(tokenizer).bytes, strict=True))  # of cut characters
    found, ended = 0.0, 0.0
    open_: list[tuple[float, tuple[int, ...]]] = [(1.0, ())]
    every = [token for token in range(tokenizer.get_vocab_size()) if token not in silent]
    while open_:
        weight, tokens = open_.pop()
        for token in every:
            longer = (*tokens, token)
            whole = said(longer)
            if whole.startswith(text):
                chance = weight * chances(tokens)[token]
                found += chance
                if whole == text:
                    following = chances(longer)
                    ended += chance * sum(following[t] for t in range(len(following)) if not goes_on(longer, t))
                else:
                    ended += chance * (not goes_on(tokens, token))
            else:
                kept = whole.rstrip("\ufffd")
                cut = len(whole) - len(kept)
                if text.startswith(kept) and (len(kept) > len(said(tokens).rstrip("\ufffd")) or 0 < cut <= 3):
                    begun = b"".join(of[each] for each in longer)[len(kept.encode()) :]
                    if cut and not text[len(kept) :].encode().startswith(begun):
                        continue
                    open_.append((weight * chances(tokens)[token], longer))
    return found, ended


@pytest.mark.parametrize("kind", TEXTS)
def test_the_probability_of_a_text_is_the_sum_over_all_its_spellings(kind: str) -> None:
    model, plain = model_of(KINDS[kind]())
    paths = Paths(model.reader, 0, 10**6)
    for text in TEXTS[kind]:
        wanted, wanted_ended = brute_force(model.tokenizer, plain, text)
        found = paths.spell((0,), text.encode())[1]
        assert 0 < wanted == pytest.approx(found, rel=1e-6), text
        if in_word(text[-1]):
            ended = paths.spell((0,), text.encode(), ended=True)[1]
            assert ended == pytest.approx(wanted_ended, rel=1e-5), text


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return model_of(KINDS["byte_level"]())[0]


def test_what_follows_a_text_that_ends_anywhere_is_a_distribution(model: LanguageModel) -> None:
    paths = Paths(model.reader, 0, 10**6)
    for text in ("the v", "the va"):
        whole = paths.spell((0,), text.encode())[1]
        following = [paths.spell((0,), text.encode() + bytes([byte]))[1] for byte in range(256)]
        leaves, _ = paths.spell((0,), text.encode(), ended=True)
        special = sum(leaf.weight * leaf.node.special for leaf in leaves if leaf.passed == 0)
        assert sum(following) + special == pytest.approx(whole, rel=1e-5)


def test_the_probability_of_a_completion_is_what_brute_force_says(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightgpt2.runtime.completion._SHARE", 0)
    monkeypatch.setattr("lightgpt2.runtime.completion._PASSES", 10**6)
    completer = Completer(model)
    for text, words in (("th", 0), ("s", 1), ("the val", 0)):
        done = completer.complete(text, words=words, beams=3)
        start, rest = completer._whole._split(text, _rest(text))
        paths = Paths(model.reader, 0, 10**6)
        whole, ended = paths.spell(start, rest)[1], paths.spell(start, rest + done.text.encode(), ended=True)[1]
        assert ended / whole * (1 - 0.02) < done.probability <= ended / whole * (1 + 1e-6), "without further passes"


def test_with_many_beams_no_word_is_more_likely(model: LanguageModel) -> None:
    """Of all single paths, as far as words of a few letters go."""
    completer = Completer(model)
    for text in ("pr", "the pump a", "val", "shall b"):
        best = completer.complete(text, words=0, beams=32)
        greedy = completer.complete(text, words=0)
        assert best.probability >= greedy.probability * 0.99
        assert all(map(in_word, best.text))
        assert best.words == (best.text,)


def test_a_completion_is_the_same_whatever_was_typed_before(model: LanguageModel) -> None:
    texts = [
        "the pump shall op",
        "the pump shall ope",
        "the pump shall o",
        "the valve",
        "the valve ",
        "a motor st",
        "the pump shall op",
    ]
    typing = Completer(model)
    for text in texts:
        anew = Completer(model_of(KINDS["byte_level"]())[0]).complete(text)
        typed = typing.complete(text)
        assert (typed.text, typed.words) == (anew.text, anew.words)
        assert typed.probability == pytest.approx(anew.probability, rel=0.05)
        assert "".join(typed.words) == typed.text
        assert len(typed.words) <= 4


def test_a_letter_costs_few_forward_passes_and_a_known_text_none(model: LanguageModel) -> None:
    completer, text = Completer(model), "the pump shall open when the pressure is above"
    completer.complete(text[:20])
    before = model.reader.passes
    for end in range(21, len(text)):
        completer.complete(text[:end], words=0)
    assert model.reader.passes - before < 4 * (len(text) - 21)
    before = model.reader.passes
    completer.complete(text[: len(text) - 1], words=0)
    assert model.reader.passes == before


def test_a_second_completer_of_a_model_does_not_disturb_the_first(model: LanguageModel) -> None:
    one, other = Completer(model), Completer(model)
    for end in range(8, 20):
        text = "the pump shall open when"[:end]
        assert one.complete(text, words=1) == other.complete(text, words=1)
        model.generate(text, max_new_tokens=2)


class Bigrams:
    """An engine that knows which token follows which in a text, and reads the sequence that `resume` says."""

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self.vocabulary, self.context, self._sequence = tokenizer.get_vocab_size(), 64, list[int]()
        self._counts = np.full((self.vocabulary, self.vocabulary), 1e-3)
        for one, other in pairwise(tokenizer.encode(text).ids):
            self._counts[one, other] += 1

    def resume(self, ids: Ints, kept: int) -> Floats:
        assert 0 <= kept <= len(self._sequence)
        self._sequence = [*self._sequence[:kept], *ids.tolist()]
        logits: Floats = np.log(self._counts[self._sequence[-1]]).astype(np.float32)
        return logits


def bigrams(kind: str, text: str) -> LanguageModel:
    tokenizer = KINDS[kind]()
    return LanguageModel(cast(Engine, Bigrams(tokenizer, text)), tokenizer, {"eos_token_id": 0})


def test_words_are_what_the_model_has_seen() -> None:
    known = bigrams("sentencepiece", "the pump shall open. motor starts " * 9)
    complete = Completer(known).complete
    assert complete("the pu", words=3).words == ("mp", " shall", " open", ". motor")
    assert complete("the pump", words=1).words == ("", " shall")
    assert complete("the pump ", words=2).words == ("", "shall", " open")
    assert complete("the pump sh", words=0) == complete("pump sh", words=0)
    assert complete("the pump shall open.", words=1).words == ("", " motor")
    assert complete("the pump shall open.", words=0) == Completion("", ("",), 1.0)
    assert complete("the pu", words=3).probability > 0.9


def test_a_completion_ends_before_its_line_does() -> None:
    known = bigrams("characters", "the pump shall\nopen " * 9)
    assert known.tokenizer.token_to_id("\n") is None
    tokenizer = KINDS["byte_level"]()
    known = LanguageModel(
        cast(Engine, Bigrams(tokenizer, "the pump shall\nopen\n" * 9)), tokenizer, {"eos_token_id": 0}
    )
    assert Completer(known).complete("the pump sh", words=3).words == ("all",)


def test_characters_that_a_model_does_not_know_are_left_to_its_tokenizer() -> None:
    complete = Completer(bigrams("characters", "bar " * 9)).complete
    assert complete("the #b", words=0).text == "ar"
    assert complete("the #", words=0).text == ""
    assert complete("the b#", words=1).words[0] == ""
    assert complete("XYZ", words=0).text == complete("#", words=0).text == ""


def test_a_hybrid_takes_the_partial_word_from_one_model_and_the_words_from_the_other() -> None:
    words, letters = bigrams("sentencepiece", "the pump shall open " * 9), bigrams("characters", "the pis " * 9)
    hybrid = Completer(words, letters)
    done = hybrid.complete("the p", words=1)
    assert done.words[0] == "is"
    assert Completer(words).complete("the p", words=1).words == ("ump", " shall")
    assert hybrid.complete("the pump ", words=2) == Completer(words).complete("the pump ", words=2)
    words, letters = bigrams("sentencepiece", "the bar shall open " * 9), bigrams("characters", "bar " * 9)
    assert Completer(words, letters).complete("the b", words=2).words == ("ar", " shall", " open")


def test_unconstrained_continues_behind_the_last_token(model: LanguageModel) -> None:
    done = Completer(model).complete("the pump shall op", words=0, constrained=False)
    logits = model.logits(np.array([model.tokenizer.encode("the pump shall op").ids]))[0, -1]
    token = model.tokenizer.decode([int(logits.argmax())])
    assert done.text.startswith(token) or not in_word(token[0]) or done.text == ""


def test_a_text_longer_than_the_context_is_cut_in_steps(
    model: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    completer, text = Completer(model), "the pump shall open the valve when " * 40
    completer.complete(text[:1000], words=1)
    assert "its last part is used" in capsys.readouterr().err
    before = model.reader.passes
    for end in range(1001, 1010):
        completer.complete(text[:end], words=1)
    assert capsys.readouterr().err == ""
    assert model.reader.passes - before < 60


def test_what_is_not_wanted_any_more_is_given_up(model: LanguageModel) -> None:
    completer = Completer(model)
    with pytest.raises(Cancelled):
        completer.complete("no text that was here before op", stop=lambda: True)
    answers = iter([False] * 2 + [True] * 99)
    with pytest.raises(Cancelled):
        completer.complete("nor this one, whose completion is begun op", stop=lambda: next(answers))
    again = completer.complete("nor this one, whose completion is begun op")
    assert again == Completer(model).complete("nor this one, whose completion is begun op")


def test_bad_input_is_one_message_each(model: LanguageModel, tmp_path: Path) -> None:
    completer = Completer(model)
    for text, options, wanted in (
        ("", {}, "text: must be some text, got ''; give what was typed so far"),
        ("\ud800", {}, r"text: must be some text, got '\ud800'; give what was typed so far"),
        ("a", {"words": -1}, "words: must be from 0 to 50, got -1; correct it"),
        ("a", {"beams": 0}, "beams: must be from 1 to 32, got 0; correct it"),
    ):
        with pytest.raises(UserError) as caught:
            completer.complete(text, **options)  # type: ignore[arg-type]
        assert str(caught.value) == wanted
    with pytest.raises(
        UserError, match="model: must be a model that continues texts, got a TextClassifier; give another"
    ):
        lightgpt2.complete(write_classifier(tmp_path / "classifier"), "a")
    with pytest.raises(
        UserError, match=r"depends on their neighbours \(decoder: WordPiece\); give a model with byte-level"
    ):
        Completer(model_of(KINDS["word_piece"]())[0])


def test_from_a_folder(tmp_path: Path) -> None:
    done = lightgpt2.complete(write_decoder(tmp_path / "exported"), "The assert stat", words=2)
    assert 0 < done.probability <= 1
    assert len(done.words) <= 3
