"""The typing simulator: its counts by hand, with suggestions that are known."""

import inspect
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lightgpt2.cli import typing, verbs
from lightgpt2.data import LanguageModelingData
from lightgpt2.measure import keystrokes
from lightgpt2.runtime.completion import Completion
from tests.support.cli import refused
from tests.support.models import write_classifier
from tests.support.onnx_decoder import write_decoder

TEXT = "The pump shall open the valve. It isn't open at 5pm or x_y, <unk> said. " * 12


def oracle(text: str, words: int) -> Completion:
    """Suggests what follows in TEXT, as far as `words` go."""
    at = (TEXT + TEXT).index(text) + len(text)
    rest = (TEXT + TEXT)[at:]
    inside = text[-1].isalpha() or text[-1] == "'"
    partial = rest[: next(i for i, c in enumerate(rest) if not (c.isalpha() or c == "'"))] if inside else ""
    parts, at = [partial], len(partial)
    for _ in range(words):
        found = keystrokes._WORD.search(rest, at)
        assert found
        parts.append(rest[at : found.end()])
        at = found.end()
    return Completion("".join(parts), tuple(parts), 0.5)


def test_places_are_inside_words_and_before_words_and_the_seed_decides() -> None:
    plan = keystrokes.plan([TEXT, "no", TEXT], "t", 60, 400, 1000, 1, seed=1)
    for place in plan.incomplete:
        text = plan.documents[place.document]
        assert text[place.at - 1].isalpha() or text[place.at - 1] == "'"
        word = next(m for m in keystrokes._WORD.finditer(text) if m.start() < place.at < m.end())
        assert text[place.at : word.end()] == place.right
        assert word[0] not in ("unk", "pm", "x", "y")
    for place in plan.complete:
        text = plan.documents[place.document]
        assert text[place.at - 1] == " "
        assert text[place.at :].startswith(place.right)
    assert sum(len(place.right) for place in plan.passages) == 400
    assert plan == keystrokes.plan([TEXT, "no", TEXT], "t", 60, 400, 1000, 1, seed=1)
    assert plan.incomplete != keystrokes.plan([TEXT, "no", TEXT], "t", 60, 400, 1000, 1, seed=2).incomplete


def test_the_text_before_a_place_begins_at_the_same_character_for_many_keys() -> None:
    plan = keystrokes.plan([TEXT], "t", 1, 200, 100, 1, seed=0)
    place = keystrokes.Place(0, 300, "")
    texts = [plan.before(place, typed) for typed in range(200)]
    assert all(TEXT[: 300 + typed].endswith(text) for typed, text in enumerate(texts))
    assert all(50 <= len(text) <= 100 for text in texts)
    assert sum(not later.startswith(text) for text, later in pairwise(texts)) == 4


def test_what_always_knows_is_always_right_and_saves_what_can_be_saved() -> None:
    plan = keystrokes.plan([TEXT], "t", 100, 200, 1000, 1, seed=0)
    played = keystrokes.play(plan, oracle, lambda: None)
    assert played["metrics"]["incomplete"].value() == played["metrics"]["complete"].value() == 1
    keys = len(played["milliseconds"]) + len(played["first"])
    assert played["metrics"]["savings"].value() == 1 - keys / 200
    assert keys < 80
    silent = keystrokes.play(plan, lambda text, words: Completion("", ("",), 1.0), lambda: None)
    assert [metric.value() for metric in silent["metrics"].values()] == [0, 0, 0]
    assert len(silent["milliseconds"]) == 199
    found = keystrokes.summary(played, silent)
    assert found["difference"]["incomplete"]["value"] == found["incomplete"]["value"]
    assert found["difference"]["complete"]["p"] < 1e-9
    assert found["difference"]["savings"]["value"] == pytest.approx(played["metrics"]["savings"].value())


@pytest.mark.parametrize(
    ("parts", "rest", "keys"),
    [
        (("mp", " shall"), "mp shall open", 7 + 1 - 2),  # all of it with one key; then " open"
        (("mp", " may"), "mp shall", 1 + 6),  # the next word only
        (("", " shall"), "s shall", 7),  # a word that goes on
        (("mps",), "mp", 2),
        (("m",), "m ", 2),  # saves no key
    ],
)
def test_keys(parts: tuple[str, ...], rest: str, keys: int) -> None:
    document = f"the pu{rest}"
    plan = keystrokes.Plan([document], [], [], [], 100, 1)

    def once(text: str, words: int) -> Completion:
        return Completion("".join(parts), parts, 1.0) if text == "the pu" else Completion("", ("",), 1.0)

    assert keystrokes._type(plan, keystrokes.Place(0, 6, rest), once)[0] == keys


def test_the_curve_is_the_precision_of_the_likeliest() -> None:
    right = np.array([1.0, 0, 1, 1] * 5)
    likely = [0.9, 0.1, 0.8, 0.0] * 5
    points = dict(keystrokes.curve(right, likely))
    assert points[0.25] == points[0.5] == 1
    assert points[0.75] == pytest.approx(2 / 3)
    assert max(points) == 0.75, "where nothing is shown there is no precision"


def test_models_are_compared_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_decoder(tmp_path / "model")
    write_classifier(tmp_path / "classifier")
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": TEXT[:300]}) + "\n" for _ in range(2)))
    (tmp_path / "numbers.txt").write_text("1 2 3 " * 9)
    whole = ["type", "model", "--text", "text.jsonl", "--samples", "9", "--keys", "30"]
    verbs.run([*whole, "--context", "60", "--unconstrained", "--partial", "model"])
    table = capsys.readouterr().out
    rows = ["model", "model, unconstrained", "model + model"]
    assert all(f"\n{row} " in table for row in rows)
    assert "points more than model" in table
    result = json.loads((tmp_path / "typing.json").read_text())
    assert [*result["rows"]] == rows
    model, _, hybrid = result["rows"].values()
    assert model["incomplete"]["value"] == hybrid["incomplete"]["value"]
    assert model["incomplete"]["wilson_95"]
    assert model["milliseconds"]["p95"] > 0
    for name in ("incomplete", "complete"):
        assert (tmp_path / f"typing-{name}.svg").read_text().startswith("<svg")

    for changed, wanted in (
        (
            ["--samples", "200"],
            "--samples: must be at most 100, the words behind a space of text.jsonl, got 200; give fewer",
        ),
        (
            ["--text", "numbers.txt"],
            "--text: must have words, got none in numbers.txt; give a text that someone would type",
        ),
        (
            ["--text", "absent.txt"],
            "--text: absent.txt cannot be read (No such file or directory); give a text or JSONL file",
        ),
        (["--beams", "99"], "--beams: must be from 1 to 32, got 99; correct it"),
    ):
        (message,) = refused([*whole, *changed], capsys)
        assert message.startswith(wanted), message
    (message,) = refused([whole[0], "classifier", *whole[2:]], capsys)
    assert message == "MODEL: classifier does not continue texts; give a model that does"


def test_the_test_split_of_the_embedded_text_is_that_of_training() -> None:
    shares = inspect.signature(LanguageModelingData).parameters
    assert (shares["valid_fraction"].default, shares["test_fraction"].default) == typing._SHARES
    texts = typing._test_split("pydoc")
    assert len(texts) == 10, "as a fit prints"
    assert typing._test_split("pydoc.txt") == []
