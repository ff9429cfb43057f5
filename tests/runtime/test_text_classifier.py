"""`lightgpt2.load` of classifiers, and `lightgpt2 classify`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lightgpt2
from lightgpt2.cli.verbs import run
from lightgpt2.conversions.onnx.conversion import writer_of
from lightgpt2.conversions.onnx.writer import Forms
from lightgpt2.errors import UserError
from lightgpt2.models.families import CLASSIFICATION
from lightgpt2.models.loading import load_config
from lightgpt2.models.saving import save_tokenizer
from lightgpt2.runtime.text_classifier import TextClassifier
from tests.support.cli import ENVIRONMENT
from tests.support.models import make_classifier, write_model, write_tokenizer
from tests.support.onnx_decoder import seal

NAMES = ["down", "up", "still"]
TEXTS = [
    "The assert statement",
    "x",
    "a longer text with some more words in it",
    "def f(x): return x + 1",
    "while True",
]


def save(family: str, folder: Path) -> Path:
    tokenizer = write_tokenizer(folder / family)
    tokenizer.pad_token = tokenizer.eos_token
    if family == "bert":
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    exported = folder / f"{family}-onnx"
    exported.mkdir()
    for each in (folder / family, exported):
        save_tokenizer(tokenizer, each)
    model = make_classifier(family)
    model.config.id2label, model.config.label2id = dict(enumerate(NAMES)), {n: i for i, n in enumerate(NAMES)}
    model.save_pretrained(folder / family)
    writer_of(model.config).into(exported, model, Forms())
    model.config.save_pretrained(exported)
    seal(exported, {"format": "onnx"})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classifiers, exported ones, and a file of texts."""
    folder = tmp_path_factory.mktemp("classifiers")
    for family in ("bert", "gpt2"):
        save(family, folder)
    rows = [{"id": index, "text": text} for index, text in enumerate(TEXTS)] + [{"text": "one", "text_pair": "other"}]
    (folder / "texts.jsonl").write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@torch.no_grad()
def expected(folder: Path, text: Any) -> np.ndarray:
    """The probabilities of plain transformers, each text alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    parts = (text,) if isinstance(text, str) else text
    encoded = tokenizer(*parts, truncation=True, max_length=model.config.max_position_embeddings, return_tensors="pt")
    probabilities: np.ndarray = model(**encoded).logits.softmax(dim=1)[0].numpy()
    return probabilities


@pytest.mark.parametrize("kind", ["bert", "bert-onnx", "gpt2", "gpt2-onnx"])
def test_texts_get_the_classes_of_plain_transformers(
    folder: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = lightgpt2.load(folder / kind, threads=1)
    assert isinstance(model, TextClassifier)
    texts: list[Any] = [*TEXTS, ("one text", "and another"), "many words " * 90]
    found = model.classify(texts, batch_size=2)
    for text, row in zip(texts, found, strict=True):
        wanted = expected(folder / kind.partition("-")[0], text)
        np.testing.assert_allclose([*row["probabilities"].values()], wanted, atol=1e-5)
        assert [*row["probabilities"]] == NAMES
        assert row["label"] == NAMES[wanted.argmax()]
        assert row["score"] == row["probabilities"][row["label"]] == max(row["probabilities"].values())
    assert "1 of 7 texts are longer than " in capfd.readouterr().err
    one = model.classify(texts[0])
    assert one["label"] == found[0]["label"]
    assert model.classify([]) == []


def test_what_is_no_text_is_refused(folder: Path) -> None:
    model = lightgpt2.load(folder / "bert-onnx", threads=1)
    with pytest.raises(UserError) as error:
        model.classify(["fine", " ", 3, ("a", "b", "c"), "\udcff"])
    assert [problem.key for problem in error.value.problems] == ["text 2", "text 3", "text 4", "text 5"]
    with pytest.raises(UserError, match="batch_size: must be at least 1, got 0"):
        model.classify(TEXTS, batch_size=0)


def test_an_export_is_run_without_torch(folder: Path) -> None:
    code = (
        "import sys, lightgpt2; sys.modules['torch'] = None\n"
        "print(lightgpt2.load(sys.argv[1], threads=1).classify('The assert statement')['label'])"
    )
    command = [sys.executable, "-c", code, str(folder / "bert-onnx")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    wanted = lightgpt2.load(folder / "bert-onnx").classify("The assert statement")["label"]
    assert (done.returncode, done.stdout) == (0, f"{wanted}\n"), done.stderr


def test_the_verb_adds_classes_to_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run(["classify", "bert-onnx", "--text", TEXTS[0], "--threads", "1"])
    wanted = lightgpt2.load("bert-onnx", threads=1).classify([*TEXTS, ("one", "other")])
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["text"] == TEXTS[0]
    assert line["label"] == wanted[0]["label"]
    run(
        [
            "classify",
            "bert-onnx",
            "--texts",
            "texts.jsonl",
            "--output",
            "out/found.jsonl",
            "--batch",
            "2",
            "--threads",
            "1",
        ]
    )
    rows = [json.loads(line) for line in Path("out/found.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [row["label"] for row in wanted]
    assert [*rows[0]] == ["id", "text", "label", "score", "probabilities"]
    assert not Path("out/found.jsonl.partial").exists()


def stopped_with(code: int, args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that fails with this code."""
    with pytest.raises(SystemExit) as stop:
        run(args)
    assert stop.value.code == code
    return capsys.readouterr().err


def test_what_was_done_before_a_stop_is_not_done_again(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    args = ["classify", "bert-onnx", "--texts", "texts.jsonl", "--batch", "2", "--threads", "1", "--output"]
    run([*args, "whole.jsonl"])
    classify, calls = TextClassifier._classify, []

    def stopped(self: Any, indices: Any, encoded: Any) -> Any:
        calls.append([*indices])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return classify(self, indices, encoded)

    monkeypatch.setattr(TextClassifier, "_classify", stopped)
    assert "2 of 6 texts are done, and kept in parts.jsonl.partial" in stopped_with(130, [*args, "parts.jsonl"], capsys)
    run([*args, "parts.jsonl"])
    assert sorted(index for batch in (calls[0], *calls[2:]) for index in batch) == [*range(6)]
    assert Path("parts.jsonl").read_text() == Path("whole.jsonl").read_text()


@pytest.mark.parametrize("key", ["label", "score", "probabilities"])
def test_what_a_line_says_already_is_not_written_over(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.chdir(folder)
    Path("labelled.jsonl").write_text(f'{{"text": "a"}}\n{{"text": "b", "{key}": "up"}}\n')
    said = stopped_with(2, ["classify", "bert-onnx", "--texts", "labelled.jsonl"], capsys)
    assert f"--texts: text 2 has a key {key}, in the place of which the result would be written; give it" in said


NUMBERED = {
    "one name twice": {"0": "up", "1": "up", "2": "still"},
    "a gap": {"0": "down", "2": "up", "5": "still"},
    "no name": {"0": None, "1": "up", "2": "still"},
}


@pytest.mark.parametrize("names", NUMBERED.values(), ids=NUMBERED)
def test_classes_that_cannot_be_told_apart_are_refused(folder: Path, tmp_path: Path, names: dict[str, Any]) -> None:
    copy = shutil.copytree(folder / "bert", tmp_path / "bert")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"id2label": names}))
    with pytest.raises(UserError, match=r"^path: the classes of .* are not numbered from 0, each with its own name"):
        lightgpt2.load(copy)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
@pytest.mark.parametrize("name", ["bert", "bert-onnx"])
def test_outputs_that_are_no_probabilities_of_one_class_are_refused(
    folder: Path, tmp_path: Path, name: str, kind: str
) -> None:
    copy = shutil.copytree(folder / name, tmp_path / name)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"problem_type": kind}))
    if name == "bert-onnx":
        seal(copy, {"format": "onnx"})
    said = f"{name} is a model for {kind}, and here each text has one class"
    with pytest.raises(UserError, match=f"^path: .*{said}"):
        lightgpt2.load(copy)
    if name == "bert":
        with pytest.raises(UserError, match=f"^model: .*{said}"):
            load_config(str(copy), "model", auto_classes=(CLASSIFICATION,))


BROKEN = {
    "not an object": ("3", "--texts: line 1 of broken.jsonl must be of the form"),
    "no text": ('{"txt": "a"}', "--texts: line 1 of broken.jsonl must be of the form"),
    "blank": ('{"text": " "}', "--texts: line 1 of broken.jsonl must be of the form"),
    "a pair of other things": ('{"text": "a", "text_pair": 3}', "--texts: line 1 of broken.jsonl must be of the form"),
    "none": ("", "--texts: broken.jsonl has no lines"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_no_texts(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    Path("broken.jsonl").write_text(BROKEN[name][0])
    said = stopped_with(2, ["classify", "bert-onnx", "--texts", "broken.jsonl"], capsys)
    assert said.startswith(f"lightgpt2: error: {BROKEN[name][1]}")


def test_each_verb_names_the_other(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    write_model(Path("language"))
    capsys.readouterr()
    for args, message in {
        ("generate", "bert-onnx", "--prompt", "A"): "MODEL: bert-onnx classifies texts; use lightgpt2 classify",
        ("generate", "gpt2", "--prompt", "A"): "MODEL: gpt2 classifies texts; use lightgpt2 classify",
        ("classify", "language", "--text", "A"): "MODEL: language generates text; use lightgpt2 generate",
        ("classify", "bert-onnx"): "--text: give it or --texts, one of the two",
        ("classify", "bert-onnx", "--text", " "): "--text: must not be empty; give some text",
    }.items():
        assert stopped_with(2, [*args], capsys) == f"lightgpt2: error: {message}\n"
