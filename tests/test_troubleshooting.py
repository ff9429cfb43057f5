"""Each message of docs/troubleshooting.md is what the command says."""

import fcntl
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import ROOT, call
from tests.support.mistakes import Bench, errors

PAGE = (ROOT / "docs/troubleshooting.md").read_text()
MESSAGES = re.findall(r"^\| `([^`]*: [^`]*)` \|", PAGE, flags=re.MULTILINE)
TEXT = "\n\n".join(f"document {i} says that the function f{i} returns {i * 7}." for i in range(60))
FSDP = {"class_path": "lightning.pytorch.strategies.FSDPStrategy"}


def corpus(name: str, content: bytes, **settings: Any) -> dict[str, Any]:
    """Writes a file; the changes that make it the corpus."""
    Path(name).write_bytes(content)
    return {"data.source": name, **{f"data.{key}": value for key, value in settings.items()}}


def teacher(spoil: Callable[[Path], Any]) -> dict[str, Any]:
    spoil(Path("teacher"))
    return {"model.teacher": "./teacher"}


def other_tokens() -> dict[str, Any]:
    return {"model.layers": None, "model.student": {"n_layer": 2, "vocab_size": 200}}


# What changes the valid configuration so that `fit` refuses it.
SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "data.source: ... does not exist": lambda: {"data.source": "./gone"},
    "data.source: ... could not be loaded from the hub or its local cache": lambda: {"data.source": "nobody/nothing"},
    "data.source: ... holds no text": lambda: corpus("a.txt", b""),
    "data.source: ... is binary, not text": lambda: corpus("a.txt", TEXT.encode() + b"\0\1\2"),
    "data.source: ... is not valid UTF-8": lambda: corpus("a.txt", TEXT.encode() + b"\ncaf\xe9\n"),
    "data.text_field: ... has no field 'text'": lambda: corpus("a.csv", b"title,body\nx,y\n"),
    "data.valid_fraction: the ... documents of ... leave none": lambda: corpus("a.txt", b"one"),
    "data.sequence_length: ... has ... training tokens, which is ... windows of ..., and one optimizer step takes ...": (
        lambda: corpus("a.txt", TEXT.encode(), batch_size=1000)
    ),
    "...: no such key": lambda: {"model.optimizer": {"learning_rate": 1e-3}},
    "data.sequence_length: ... is longer than the ... positions of model.teacher": lambda: {"data.sequence_length": 65},
    "data.tokenizer: it has ... tokens and the model of ... has ...": other_tokens,
    "trainer.max_steps: nothing ends the run": lambda: {"trainer.max_steps": -1},
    "trainer.max_steps: 0 trains nothing": lambda: {"trainer.max_steps": 0},
    "trainer.val_check_interval: ... is more than the ... batches of an epoch": lambda: {
        "trainer.check_val_every_n_epoch": 1,
        "trainer.val_check_interval": 5000,
    },
    "trainer.limit_val_batches: a part of a split has no score": lambda: {"trainer.limit_val_batches": 1},
    "logger: must be one of tensorboard, csv, wandb, mlflow": lambda: {"logger": "tensorbord"},
    "logger: trainer.logger is given too": lambda: {"logger": "csv", "trainer.logger": False},
    "trainer.strategy: ... is not supported": lambda: {"trainer.strategy": FSDP},
    "model.teacher: ... does not exist": lambda: teacher(shutil.rmtree),
    "model.teacher: ... has no weights": lambda: teacher(lambda folder: (folder / "model.safetensors").unlink()),
    "model.teacher: ... is damaged": lambda: teacher(lambda folder: os.truncate(folder / "model.safetensors", 9000)),
    "model.teacher: models of type ... are not supported": lambda: teacher(
        lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}')
    ),
    "model.teacher: ... has its weights in a pickle": lambda: teacher(
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    ),
    "teacher/ledger.json: damaged": lambda: teacher(lambda folder: (folder / "ledger.json").write_text("[{")),
}


def of_command(bench: Bench, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    code, _, err = call(capsys, *args)
    assert code == 2
    return errors(err)[0]


def other_run(bench: Bench, capsys: pytest.CaptureFixture[str]) -> str:
    bench.succeed("fit")
    bench.configure({"model.layers": 3})
    return bench.refused("fit")


def unfinished(bench: Bench, capsys: pytest.CaptureFixture[str]) -> str:
    bench.succeed("fit")
    shutil.rmtree("checkpoints/r/model")
    return bench.refused("fit")


def another_process(bench: Bench, capsys: pytest.CaptureFixture[str]) -> str:
    Path("checkpoints/r").mkdir(parents=True)
    other = os.open("checkpoints/r", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    message = bench.refused("fit", touches=True)
    os.close(other)
    return message


def needed(bench: Bench, capsys: pytest.CaptureFixture[str]) -> str:
    Path("t.yaml").write_text("run: t\n")
    bench.configure({"model.teacher": "checkpoints/t/model", "needs": {"checkpoints/t/model": "t.yaml"}})
    return bench.refused("check")


def exists(bench: Bench, capsys: pytest.CaptureFixture[str]) -> str:
    Path("there").mkdir()
    return of_command(bench, capsys, "export", "teacher", "--format", "onnx", "--output", "there")


OTHERS: dict[str, Callable[[Bench, pytest.CaptureFixture[str]], str]] = {
    "...: no such verb": lambda bench, capsys: of_command(bench, capsys, "fti"),
    "--chat: the model has no chat template": lambda bench, capsys: of_command(
        bench, capsys, "generate", "teacher", "--chat", "--prompt", "Hello"
    ),
    "--run ...: ... belongs to another run": other_run,
    "--run ...: ... holds an unfinished run": unfinished,
    "--run ...: another process is at work in ...": another_process,
    "needs: not there yet: ...": needed,
    "--output: ... exists already": exists,
}


def test_every_message_of_the_page_is_tried() -> None:
    assert sorted(MESSAGES) == sorted([*SETTINGS, *OTHERS])


@pytest.mark.parametrize("message", MESSAGES)
def test_the_command_says_it(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if message in SETTINGS:
        bench.configure(SETTINGS[message]())
        said = bench.refused("fit")
    else:
        said = OTHERS[message](bench, capsys)
    pattern = re.escape(message).replace(re.escape("..."), ".+?")
    assert re.match(pattern, said), said
