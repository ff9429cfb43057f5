"""A teacher to which the ids of the text are other tokens is refused before the first step; one that reads the same is not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lightgpt2.data.tokenizer import other_token
from tests.support.mistakes import Bench
from tests.support.models import write_model

_STUDENT: dict[str, Any] = {"model.layers": None, "model.student": "student"}


def edited(path: str, change: Callable[[dict[str, int]], dict[str, int]]) -> None:
    """Changes the ids of a folder's ordinary tokens; merges that no longer fit are left out."""
    file = Path(path, "tokenizer.json")
    parts = json.loads(file.read_text())
    special = {token["content"] for token in parts["added_tokens"]}
    vocabulary = parts["model"]["vocab"]
    ordinary = change({token: id_ for token, id_ in vocabulary.items() if token not in special})
    known = parts["model"]["vocab"] = {t: i for t, i in vocabulary.items() if t in special} | ordinary
    merges = [[*pair] if isinstance(pair, list) else pair.split() for pair in parts["model"]["merges"]]
    parts["model"]["merges"] = [[a, b] for a, b in merges if {a, b, a + b} <= known.keys()]
    file.write_text(json.dumps(parts))


def reversed_ids(vocabulary: dict[str, int]) -> dict[str, int]:
    return dict(zip(vocabulary, reversed(vocabulary.values()), strict=True))


def two_exchanged(vocabulary: dict[str, int]) -> dict[str, int]:
    first, *_, last = vocabulary
    return {**vocabulary, first: vocabulary[last], last: vocabulary[first]}


def one_renamed(vocabulary: dict[str, int]) -> dict[str, int]:
    *others, last = vocabulary
    return {**{token: vocabulary[token] for token in others}, "Ġzzz": vocabulary[last]}


def without_tokenizer(path: str) -> None:
    for file in Path(path).glob("tokenizer*"):
        file.unlink()


@pytest.mark.parametrize("change", [reversed_ids, two_exchanged, one_renamed])
def test_a_student_that_reads_other_tokens_is_refused(bench: Bench, change: Any) -> None:
    write_model(Path("student"), seed=3)
    edited("student", change)
    bench.configure(_STUDENT)
    message = bench.refused("fit")
    assert message.startswith("model.teacher: teacher reads other tokens than the text is cut into (")
    assert message.endswith("); choose models that share a tokenizer")
    assert bench.refused("check") == message


PRESETS: dict[str, dict[str, Any]] = {
    "FineTune": {"model": "student", "teacher": "teacher"},
    "LoRA": {"model": "student", "teacher": "teacher"},
    "QAT": {"model": "student", "teacher": "teacher"},
    "MovementPruning": {"model": "student", "teacher": "teacher", "pruning": {"attention": 0.5}},
}


@pytest.mark.parametrize("preset", PRESETS)
def test_with_every_preset(bench: Bench, preset: str) -> None:
    write_model(Path("student"), seed=3)
    edited("student", reversed_ids)
    bench.configure({"model": {"class_path": f"lightgpt2.methods.{preset}", "init_args": PRESETS[preset]}})
    assert bench.refused("fit").startswith("model.teacher: teacher reads other tokens")


@pytest.mark.parametrize("data", [{"data.tokenizer": "student"}, {"data.vocab_size": 290}])
def test_a_tokenizer_that_the_data_names(bench: Bench, data: dict[str, Any]) -> None:
    """The student is cut out of the teacher, and reads what that does."""
    write_model(Path("student"), seed=3)
    edited("student", reversed_ids)
    bench.configure(data)
    assert bench.refused("fit").startswith("model.teacher: teacher reads other tokens")


def nothing(path: str) -> None:
    pass


def more(path: str) -> None:
    """An added token, and the end of text under another name, as chat models have them."""
    words = PreTrainedTokenizerFast.from_pretrained(path)
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    words.save_pretrained(path)


@pytest.mark.parametrize("change", [nothing, without_tokenizer, more])
def test_a_teacher_that_reads_the_same_teaches(bench: Bench, change: Callable[[str], None]) -> None:
    write_model(Path("student"), seed=3)
    change("teacher")
    bench.configure({**_STUDENT, "trainer.max_steps": 1})
    assert "ok" in bench.succeed("check")


def test_vocabularies_that_are_cut_down_are_the_teachers_own(bench: Bench) -> None:
    method = {"class_path": "lightgpt2.methods.Trim", "init_args": {
        "model": "teacher", "layers": 2, "vocabulary": "used", "loss": {"hidden": 0.0},
    }}  # fmt: skip
    bench.configure({"model": method})
    code, _, err = bench.run("check")
    assert "reads other tokens" not in err, code


def test_tokens_are_compared_by_their_ids() -> None:
    class Words:
        def __init__(self, vocabulary: dict[str, int], *added: str) -> None:
            self.vocabulary, self.added = vocabulary, added

        def get_vocab(self) -> dict[str, int]:
            return self.vocabulary

        def get_added_vocab(self) -> dict[str, int]:
            return {token: self.vocabulary[token] for token in self.added}

    one: Any = Words({"a": 0, "b": 1, "<end>": 2}, "<end>")
    for other in ({"a": 0, "b": 1}, {"a": 0, "b": 1, "<stop>": 2}, {"a": 0}, {"a": 0, "b": 1, "<end>": 2, "c": 3}):
        assert other_token(one, Words(other)) is None  # type: ignore[arg-type]
    found = other_token(one, Words({"b": 0, "a": 1}))  # type: ignore[arg-type]
    assert found == "0 is 'a' in the one and 'b' in the other"
