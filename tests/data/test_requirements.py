"""The grammar of requirements and its check agree, and validation asks for combinations that training does not show."""

import random

import pytest

from lightgpt2.data.corpora import Corpus
from lightgpt2.data.requirements import CONDITIONS, KINDS, MODALITIES, SUBJECTS, is_requirement, requirements

SENTENCE = (
    "[security] If the clock is not set, then the boot loader shall lock the service port after 3 failed attempts."
)


def parts(text: str) -> tuple[str, str, str, str]:
    """Class, subject, verb and object."""
    name, rest = text[1:].split("] ", 1)
    subject = next(s for s in SUBJECTS if f"he {s} " in rest)
    _, verb, rest = rest.split(f" {subject} ", 1)[1].split(" ", 2)
    return name, subject, verb, next(o for o in KINDS[name].actions[verb] if rest.startswith(o))


def test_every_sentence_is_well_formed_and_none_comes_twice() -> None:
    sentences = [text for _, text in requirements(3000)]
    assert len(set(sentences)) == 3000
    assert all(map(is_requirement, sentences))
    for words in (*(f"[{name}]" for name in KINDS), *MODALITIES, *SUBJECTS, *CONDITIONS):
        assert any(words in text for text in sentences), words


def test_a_longer_list_begins_with_the_shorter() -> None:
    assert list(requirements(500))[:100] == list(requirements(100))


def test_validation_combines_what_training_shows_only_apart() -> None:
    combinations: dict[str, set[tuple[str, ...]]] = {"train": set(), "valid": set(), "test": set()}
    for split, text in requirements():
        combinations[split].add(parts(text))
    train, held = combinations["train"], combinations["valid"] | combinations["test"]
    assert not train & held
    assert not combinations["valid"] & combinations["test"]
    assert len(held) > 300
    for place in range(4):
        assert {one[place] for one in held} <= {one[place] for one in train}


@pytest.mark.parametrize(
    ("words", "others"),
    [
        ("[security] ", ""), ("security", "usability"), (" shall", ""), ("shall", "must"), ("boot loader", "loader"),
        (" then the", " the"), ("the service port", "all outgoing data"), (" after 3 failed attempts", ""), ("3", "some"),
        ("attempts.", "attempts"), ("attempts.", "attempts. It shall lock the service port."),
    ],
)  # fmt: skip
def test_a_sentence_with_other_words_is_none(words: str, others: str) -> None:
    assert is_requirement(SENTENCE)
    assert words in SENTENCE
    assert not is_requirement(SENTENCE.replace(words, others))


def test_no_sentence_survives_the_loss_or_exchange_of_a_word() -> None:
    generator = random.Random(0)
    for _, text in requirements(400):
        words = text.split()
        for place in range(len(words)):
            assert not is_requirement(" ".join(words[:place] + words[place + 1 :])), (text, place)
        one, two = sorted(generator.sample(range(len(words)), 2))
        words[one], words[two] = words[two], words[one]
        assert words == text.split() or not is_requirement(" ".join(words)), text


def test_is_a_corpus_of_any_size_with_splits_of_its_own() -> None:
    corpus = Corpus("requirements:50")
    assert list(corpus.documents()) == list(requirements(50))
    assert corpus.splits() == {"train", "valid", "test"} & {split for split, _ in requirements(50)}
    assert Corpus("requirements").fingerprint() == Corpus("requirements").fingerprint() != corpus.fingerprint()
    for size in ("", "0", "-5", "many", "1000001", "9" * 30):
        (problem,) = Corpus(f"requirements:{size}").problems()
        assert problem.startswith(f"data.source: requirements:{size}: must be requirements:SIZE with 1 to 1000000 ")
