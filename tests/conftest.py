"""Shared fixtures."""

import gc
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

# Processes inherit ignored signals, and what starts the tests may ignore them (nohup, a script's `&`).
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # the threads of two processes on two cores would wait for each other, spinning

os.fsync = lambda descriptor: None  # no test cuts the power, and a fit waits for the disk thirty times

pytest_plugins = ["tests.support.models", "tests.support.mistakes", "tests.support.pipelines"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", choices=("small", "large"), default="small", help="how many cases tests/faults tries")


@pytest.fixture
def real_data() -> Path:
    """The folder of real text that LIGHTGPT2_DATA names; the test is skipped where that is not set."""
    folder = os.environ.get("LIGHTGPT2_DATA")
    if not folder:
        pytest.skip("LIGHTGPT2_DATA names no folder")
    if not Path(folder).is_dir():
        pytest.fail(f"LIGHTGPT2_DATA names {folder}, which is not there")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Begins with the slowest files: with `--dist loadscope` a file's tests, which share what is costly, are one process's."""
    slow = Counter(
        item.path for item in items if item.get_closest_marker("slow") and not item.get_closest_marker("long")
    )
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Keeps the garbage collector from looking through what was imported: a third of a second in every fit."""
    gc.freeze()
