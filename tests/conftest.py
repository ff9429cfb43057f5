"""Shared fixtures."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # the threads of two processes on two cores would wait for each other, spinning

pytest_plugins = ["tests.support.mistakes", "tests.support.pipelines"]


@pytest.fixture
def real_data() -> Path:
    """The folder of real text that LIGHTGPT2_DATA names; the test is skipped without one."""
    folder = os.environ.get("LIGHTGPT2_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("LIGHTGPT2_DATA names no folder")
    return Path(folder)


_MADE_ONCE = ("chain", "real", "result")  # what these fixtures of a module make takes many seconds


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in its own
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Keeps tests that share something costly in one process, so that it is made once; and begins with the longest tests."""
    items.sort(key=lambda item: item.path.name != "test_resume.py")
    for item in items:
        for name in set(_MADE_ONCE).intersection(item.fixturenames):
            kind = item.callspec.params.get(name, "") if hasattr(item, "callspec") else ""
            item.add_marker(pytest.mark.xdist_group(f"{item.path.name} {name} {kind}"))
