"""A bench for bad input: the real command in this process, and what it must and must not do when it refuses."""

import copy
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from lightgpt2.models import loading
from tests.support.cli import call, write_config
from tests.support.models import write_corpus, write_model

_ERROR = "lightgpt2: error: "
_TASK = "lightgpt2.tasks.language_modeling.LanguageModeling"
_CONFIG: dict[str, Any] = {
    "seed_everything": 7,
    "model": {
        "class_path": "lightgpt2.methods.Distill",
        "init_args": {
            "teacher": "teacher", "layers": 2, "optimizer": {"lr": 1.0e-3},
            "task": {"class_path": _TASK, "init_args": {"samples": 1, "sample_tokens": 2}},
        },
    },
    "data": {
        "class_path": "lightgpt2.data.LanguageModelingData",
        "init_args": {"source": "corpus", "sequence_length": 32, "batch_size": 4},
    },
    "checkpoint": {"every_n_steps": 1},
    "trainer": {
        "accelerator": "cpu", "devices": 1, "max_steps": 3, "enable_progress_bar": False,
        "check_val_every_n_epoch": None, "val_check_interval": 2,
    },
}  # fmt: skip


class Bench:
    """A working folder with a teacher, a corpus, and a valid configuration to spoil."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def configure(self, changes: dict[str, Any] | None = None) -> None:
        write_config(Path("config.yaml"), spoilt(changes or {}))

    def run(self, verb: str, *args: str) -> tuple[int, str, str]:
        """Runs `lightgpt2 VERB --config config.yaml --run r ARGS`: exit code, standard output, standard error."""
        loading._named_config.cache_clear()  # a process would start without
        handler = signal.getsignal(signal.SIGINT)
        code, out, err = call(self._capsys, verb, "--config", "config.yaml", "--run", "r", *args)
        if code == 130:  # Lightning ignores a further Ctrl-C while the process ends
            signal.signal(signal.SIGINT, handler)
        assert signal.getsignal(signal.SIGINT) is handler, "the signal handlers were left behind"
        return code, out, err

    def succeed(self, verb: str, *args: str) -> str:
        code, out, err = self.run(verb, *args)
        assert code == 0, err
        return out

    def refuse(self, verb: str, *args: str, touches: bool = False) -> list[str]:
        """Runs the command, which must refuse and touch nothing unless it `touches` the run's folder first; the messages."""
        before = files()
        code, _, err = self.run(verb, *args)
        messages = errors(err)
        assert code == 2
        assert messages, err
        assert touches or before == files()
        assert not [path for path in Path().rglob("*") if path.suffix in (".tmp", ".old")]
        return messages

    def refused(self, verb: str, *args: str, touches: bool = False) -> str:
        """The one message with which the command refuses, as `refuse` runs it."""
        (message,) = self.refuse(verb, *args, touches=touches)
        return message


def spoilt(changes: dict[str, Any]) -> dict[str, Any]:
    """The valid configuration with some dotted keys changed, as a person names them; None removes one."""
    config = copy.deepcopy(_CONFIG)
    for key, value in changes.items():
        *parents, name = key.split(".")
        section: dict[str, Any] = config
        for parent in parents:
            section = section.setdefault(parent, {})
            section = section.get("init_args", section)
        if value is None:
            section.pop(name, None)
        else:
            section[name] = value
    return config


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


class Poison(Callback):
    """Makes the loss of one micro-batch of the epoch NaN, and leaves the weights alone."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            pl_module.model.transformer.wte.register_forward_hook(lambda *given: torch.full_like(given[-1], torch.nan))


def errors(stderr: str) -> list[str]:
    """The error messages in what a command wrote to standard error, where there may be nothing else but progress bars."""
    bars = r"(Tokenizing|Scoring [\w ]+):"
    lines = [line for line in stderr.splitlines() if line.strip() and not re.match(bars, line)]
    assert "Traceback" not in stderr
    assert all(line.startswith(_ERROR) for line in lines), stderr
    return [line.removeprefix(_ERROR) for line in lines]


def files() -> dict[Path, bytes]:
    """Every file of a run but the cached corpora, and event files with only their head: Lightning opens one before all else."""
    paths = [*Path("checkpoints").rglob("*"), *Path("tb-logs").rglob("*")]
    contents = {path: path.read_bytes() for path in paths if path.is_file() and ".data" not in path.parts}
    return {path: content for path, content in contents.items() if "tfevents" not in path.name or len(content) > 100}


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a corpus, made once."""
    folder = tmp_path_factory.mktemp("stock")
    write_model(folder / "teacher")
    write_corpus(folder / "corpus", documents=24)
    return folder


@pytest.fixture
def bench(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """A bench in a folder of its own, with the valid configuration."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # which main changes
    monkeypatch.chdir(tmp_path)
    shutil.copytree(stock, tmp_path, dirs_exist_ok=True)
    made = Bench(capsys)
    made.configure()
    return made


@pytest.fixture
def finished(bench: Bench, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Bench:
    """A bench where the run `r` has finished; trained once, copied after that."""
    kept = request.config.stash.get(_FINISHED, None)
    if kept is None:
        bench.succeed("fit")
        kept = request.config.stash[_FINISHED] = tmp_path_factory.mktemp("finished")
        for name in ("checkpoints", "tb-logs"):
            shutil.copytree(name, kept / name)
    else:
        shutil.copytree(kept, Path(), dirs_exist_ok=True)
    return bench


_FINISHED = pytest.StashKey[Path]()
