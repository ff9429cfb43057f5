"""For any tokens, decoding while streaming gives what decoding whole does; characters that are cut in two are completed."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lightgpt2.errors import UserError
from lightgpt2.models.vocabulary import is_unicode
from lightgpt2.runtime.options import resolve
from lightgpt2.runtime.text import Writer
from tests.support import tokenizers

_BROKEN = "\ufffd"


@cache
def made(kind: str) -> Tokenizer:
    return tokenizers.KINDS[kind]()


def streamed(tokenizer: Tokenizer, prompt: list[int], tokens: list[int]) -> tuple[str, list[str]]:
    """The text of some tokens behind a prompt, and its pieces: whole at the end, streamed and with a stop text alike."""
    pieces: list[str] = []
    writers = [
        Writer(tokenizer, prompt, stop, on)
        for stop, on in (((), None), ((), pieces.append), (("\0no text has this",), None))
    ]
    for token in tokens:
        for writer in writers:
            writer.add(token)
    (text,) = {writer.finish() for writer in writers}
    assert "".join(pieces) == text
    return text, pieces


@pytest.mark.parametrize("kind", tokenizers.KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_tokens_decode_as_the_whole_does(kind: str, data: st.DataObject) -> None:
    tokenizer = made(kind)
    some = st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=24)
    tokens, prompt = data.draw(some), tokenizer.encode("the pump ").ids
    wanted = tokenizer.decode([*prompt, *tokens])
    assert wanted.startswith(before := tokenizer.decode(prompt))
    assert streamed(tokenizer, prompt, tokens)[0] == wanted[len(before) :]
    assert streamed(tokenizer, [], tokens)[0] == tokenizer.decode(tokens)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "unigram", "added"])
@settings(max_examples=150, deadline=None)
@given(text=st.text(min_size=1, max_size=12), data=st.data())
def test_a_text_cut_at_any_token_is_completed(kind: str, text: str, data: st.DataObject) -> None:
    """Also inside a character: the prompt's whole characters and the new text are the text, and no piece is a part of one."""
    tokenizer = made(kind)
    tokens = tokenizer.encode(f"the {text}").ids
    cut = data.draw(st.integers(1, len(tokens)))
    whole, begun = tokenizer.decode(tokens), tokenizer.decode(tokens[:cut])
    found, pieces = streamed(tokenizer, tokens[:cut], tokens[cut:])
    assert whole.endswith(found)
    if not begun.endswith(_BROKEN):
        assert begun + found == whole
    assert _BROKEN in whole or not any(_BROKEN in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["byte_fallback", "unigram"])
@pytest.mark.parametrize(
    ("prompt", "rest"),
    [
        ("the pump 👩‍💻", "🙂🙂 the"),
        ("龘龘龘", "龘龘"),  # longer in bytes than any context of a few tokens
        ("🙂" * 40, "🙂 the"),
        ("the", " 🙂 the 龘"),
        ("the e\u0301", "\u0301 the"),  # combining marks
        ("the 🇩", "🇪 the"),  # a flag of two characters
        ("the 日", "本 the"),
    ],
)
def test_text_goes_on_behind_characters_outside_the_vocabulary(kind: str, prompt: str, rest: str) -> None:
    tokenizer = made(kind)
    before, whole = tokenizer.encode(prompt).ids, tokenizer.encode(prompt + rest).ids
    assert whole[: len(before)] == before
    assert streamed(tokenizer, before, whole[len(before) :])[0] == rest


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "unigram"])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_prompt_that_ends_inside_a_character_is_completed(kind: str, cut: int) -> None:
    tokenizer = made(kind)
    tokens = tokenizer.encode("the 龘😶 the").ids
    end = len(tokenizer.encode("the 龘😶").ids) - cut
    assert streamed(tokenizer, tokens[:end], tokens[end:])[0] == "😶 the"


@pytest.mark.parametrize("kind", ["byte_fallback", "unigram"])
def test_bytes_that_make_no_character_spoil_none_of_the_prompts(kind: str) -> None:
    tokenizer = made(kind)
    prompt, broken = tokenizer.encode("the 龘龘").ids, tokenizer.token_to_id("<0xE9>")
    assert streamed(tokenizer, prompt, [broken])[0] == _BROKEN
    assert streamed(tokenizer, prompt, [broken, tokenizer.token_to_id("t")])[0] == f"{_BROKEN}t"


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_text_is_handed_out_while_it_comes(kind: str) -> None:
    tokenizer = made(kind)
    tokens = tokenizer.encode("the pump shall open the valve when the pressure is above the limit").ids
    assert len(streamed(tokenizer, tokens[:1], tokens[1:])[1]) >= 10


def test_the_work_does_not_grow_with_the_text() -> None:
    tokenizer, longest = made("byte_level"), 0

    class Counted:
        def decode(self, tokens: list[int]) -> str:
            nonlocal longest
            longest = max(longest, len(tokens))
            return tokenizer.decode(tokens)

        def id_to_token(self, token: int) -> str | None:
            return tokenizer.id_to_token(token)

    tokens = tokenizer.encode("日本🙂 the pump " * 50).ids
    writer = Writer(Counted(), [5], on_text=lambda _: None)  # type: ignore[arg-type]
    for token in tokens:
        writer.add(token)
    assert longest < 12


@pytest.mark.parametrize("text", ["\ud83d", "the \udcff pump", "\ude42\ud83d"])
def test_half_of_a_surrogate_pair_is_no_stop_text(text: str) -> None:
    assert not is_unicode(text)
    with pytest.raises(UserError) as error:
        resolve({"stop": ["ok", text]}, {})
    assert error.value.problems == [f"stop: must be valid Unicode, got {text!a}; correct it"]


@pytest.mark.parametrize("text", ["", "🙂", "\ufffd\uffff\0\u2028", "\U0010ffff"])
def test_unusual_characters_are_characters(text: str) -> None:
    assert is_unicode(text)
