"""Processes that are killed, asked to stop or refused by the disk, at any of their operations on files.

What the same command then makes is, bit for bit, what it makes undisturbed; nothing is lost, and nothing is left.
"""

import itertools
import random
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.support import cases
from tests.support.cli import run_cli, succeed, write_config
from tests.support.mistakes import spoilt
from tests.support.models import write_corpus, write_model
from tests.support.stages import _TASK, RATE

_LORA = {"model": "teacher", "optimizer": RATE, "task": _TASK}
_CONFIG = {"model": {"class_path": "lightgpt2.methods.LoRA", "init_args": _LORA}, "trainer.val_check_interval": 2}

# By name the command, what the same command needs to go on, and the files that it makes.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "fit": ("fit --config config.yaml --run r", "--ckpt_path last", "checkpoints/r/*/*.safetensors"),
    "predict": ("predict --config config.yaml --run done", "", "checkpoints/done/predictions.jsonl"),
    "generate": ("generate teacher --prompts p.jsonl --output o.jsonl --batch 2 --max-new-tokens 5", "", "o.jsonl"),
    "report": ("report checkpoints/done --output report", "", "report/**/*.*"),
    "onnx": ("export teacher --format onnx --data corpus --documents 2 --output onnx", "", "onnx/*.onnx*"),
    "gguf": ("export teacher --format gguf --data corpus --documents 2 --output gguf", "", "gguf/*.gguf"),
}
STOPS = ("SIGINT", "SIGTERM", "SIGHUP")
FAULTS = ("SIGKILL", *STOPS, "ENOSPC", "EROFS", "FSIZE")
# Not in turn: the first few try every command and every fault.
ATTACKS = [*itertools.islice(zip(itertools.cycle(COMMANDS), itertools.cycle(FAULTS), strict=False), 6 * 7)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", cases(metafunc.config, 7, 4 * len(ATTACKS)))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a corpus, prompts and a finished run, and the outputs of earlier calls."""
    folder = tmp_path_factory.mktemp("bench")
    write_model(folder / "teacher")
    write_corpus(folder / "corpus", documents=24)
    write_config(folder / "config.yaml", spoilt(_CONFIG))
    (folder / "p.jsonl").write_text("".join(f'{{"prompt": "{"The statement " * (n % 3 + 1)}"}}\n' for n in range(6)))
    succeed(folder, "fit", "--config", "config.yaml", "--run", "done", "--trainer.max_steps", "1")
    (folder / "report").mkdir()
    for name in ("checkpoints/done/predictions.jsonl", "o.jsonl", "report/report.md"):
        (folder / name).write_text("old")
    return folder


Made = dict[str, bytes]


@pytest.fixture(scope="module")
def whole(bench: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a command makes undisturbed, and how many operations it takes."""
    known: dict[str, tuple[Made, int]] = {}

    def make(name: str) -> tuple[Made, int]:
        if name not in known:
            folder = tmp_path_factory.mktemp(name) / "work"
            shutil.copytree(bench, folder)
            succeed(folder, "COUNT", "0", *COMMANDS[name][0].split(), module="tests.faults.dying")
            known[name] = made(folder, name), int((folder / "operations").read_text())
        return known[name]

    return make


def made(folder: Path, name: str) -> Made:
    """The files that a command has made."""
    files = (path for path in folder.glob(COMMANDS[name][2]) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if re.fullmatch(r"\..*\.(tmp|old|stale)|.*\.partial", path.name)]


def test_a_disturbed_command_loses_nothing_and_goes_on(bench: Path, whole: Any, tmp_path: Path, seed: int) -> None:
    name, fault = ATTACKS[seed % len(ATTACKS)]
    expected, operations = whole(name)
    number = random.Random(seed).randint(*((1, operations) if fault != "FSIZE" else (0, 40_000)))
    print(f"{fault} at {number} of {operations}: {COMMANDS[name][0]}")  # pytest shows it where the test fails
    folder = tmp_path / "work"
    shutil.copytree(bench, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    disturbed = run_cli(folder, fault, str(number), *COMMANDS[name][0].split(), module="tests.faults.dying")
    said = disturbed.stderr + disturbed.stdout
    assert "Traceback" not in said, said
    assert "Exception ignored" not in said, said
    if disturbed.returncode:
        assert disturbed.returncode == {"SIGKILL": -signal.SIGKILL, **dict.fromkeys(STOPS, 130)}.get(fault, 2), said
        assert fault == "SIGKILL" or re.search(r"^lightgpt2: (error: )?\S.+", said, re.MULTILINE), said
    for path, content in before.items():
        now = path.read_bytes()
        assert now in (content, expected.get(str(path.relative_to(folder)))), f"{path} is neither old nor new"
    succeed(folder, *COMMANDS[name][0].split(), *COMMANDS[name][1].split())
    assert made(folder, name) == expected
    assert leftovers(folder) == []
