"""Shared fixtures."""

import gc
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import write_model, write_uneven_model

# Processes inherit ignored signals, and what starts the tests may ignore them (nohup, a script's `&`).
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # the threads of two processes on two cores would wait for each other, spinning

os.fsync = lambda descriptor: None  # no test cuts the power, and a fit waits for the disk thirty times

pytest_plugins = ["tests.support.mistakes", "tests.support.pipelines"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that are only looked at: a `teacher`, a `llama`, one of `uneven` layers, and ones that say they are quantized."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "llama", "llama")
    write_uneven_model(folder / "uneven")
    bitsandbytes = {"quant_method": "bitsandbytes"}
    marks: dict[str, dict[str, Any]] = {
        "teacher": {},
        "nf4": {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", **bitsandbytes}},
        "int8": {"quantization_config": {"load_in_8bit": True, **bitsandbytes}},
        "int4": {"lightgpt2": {"stored": "int4"}},
    }
    for name, mark in marks.items():
        config = write_model(folder / name) / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | mark))
    return folder


@pytest.fixture
def inside(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder is the one with the models."""
    monkeypatch.chdir(models)


@pytest.fixture
def real_data() -> Path:
    """The folder of real text that LIGHTGPT2_DATA names; the test is skipped without one."""
    folder = os.environ.get("LIGHTGPT2_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("LIGHTGPT2_DATA names no folder")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Begins with the longest file: with `--dist loadscope` a file's tests, which share what is costly, are one process's."""
    items.sort(key=lambda item: item.path.name != "test_resume.py")


def pytest_collection_finish() -> None:
    """Keeps the garbage collector from looking through what was imported: a third of a second in every fit."""
    gc.freeze()
