"""Pieces of text: whole characters, no part of a stop text, and together the whole."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lightgpt2.runtime.text import Writer
from tests.support.models import write_tokenizer

TEXT = "naïve café — 日本語 🙂👩‍👩‍👧 class x: pass"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer")).backend_tokenizer


def written(tokenizer: Tokenizer, prompt: str, tokens: list[int], *stop: str) -> tuple[list[str], int]:
    """The pieces of a text, and how many tokens it took until it stopped."""
    pieces: list[str] = []
    writer, silent = (Writer(tokenizer, tokenizer.encode(prompt).ids, stop, on) for on in (pieces.append, None))
    count = 0
    while count < len(tokens) and not writer.stopped:
        writer.add(tokens[count])
        silent.add(tokens[count])
        count += 1
    assert writer.finish() == silent.finish() == "".join(pieces)
    return pieces, count


def test_pieces_are_whole_characters(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(TEXT).ids
    pieces, _ = written(tokenizer, "The ", tokens)
    assert "".join(pieces) == TEXT
    assert len(tokens) > len(pieces) > 20, "some characters take several tokens, and none waits for the end"
    assert not any("\ufffd" in piece for piece in pieces)
    assert written(tokenizer, "x", tokenizer.encode("a🙂").ids[:-1])[0] == ["a", "\ufffd"], (
        "an incomplete one at the end"
    )


def test_any_tokens_give_what_the_tokenizer_decodes(tokenizer: Tokenizer) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        tokens = random.integers(1, tokenizer.get_vocab_size(), 40).tolist()
        assert "".join(written(tokenizer, "The ", tokens)[0]) == tokenizer.decode(tokens)
    tokens = [*tokenizer.encode("one").ids, 0, *tokenizer.encode(" two").ids]
    assert "".join(written(tokenizer, "x", tokens)[0]) == "one two", "special tokens have no text"


def test_the_space_that_a_decoder_drops_at_the_start_is_kept() -> None:
    words = {"▁The": 0, "▁end": 1, "s": 2, "▁": 3}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="▁"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    writer = Writer(tokenizer, [0])
    for token in (1, 2, 1):
        writer.add(token)
    assert writer.finish() == " ends end"


@pytest.mark.parametrize(
    ("stop", "wanted"),
    [
        (["—"], "naïve café "),  # a character of several tokens
        (["fé — 日"], "naïve ca"),  # spans tokens
        (["日本語 🙂", "— 日本"], "naïve café "),  # the one that comes first
        (["pass"], TEXT.removesuffix("pass")),
        (["pass!"], TEXT),  # begun and never complete
        (["x: passing", "na "], TEXT),
    ],
)
def test_text_ends_before_a_stop_text(tokenizer: Tokenizer, stop: list[str], wanted: str) -> None:
    tokens = tokenizer.encode(TEXT).ids
    pieces, count = written(tokenizer, "The ", tokens, *stop)
    assert "".join(pieces) == wanted
    whole = tokenizer.decode(tokens[:count])
    assert (count == len(tokens)) == (wanted == TEXT or stop == ["pass"])
    assert any(text in whole for text in stop) == (wanted != TEXT)


def test_no_part_of_a_stop_text_is_handed_out(tokenizer: Tokenizer) -> None:
    (token,) = tokenizer.encode("ment").ids
    assert written(tokenizer, "The ", [5, token], "nt", "me")[0] == [tokenizer.decode([5])], (
        "the first of two in a token"
    )
    shown: list[str] = []
    writer = Writer(tokenizer, [1], ["END OF"], shown.append)
    for token in tokenizer.encode("the END OF").ids:
        writer.add(token)
        assert "E" not in "".join(shown)
    assert writer.stopped
