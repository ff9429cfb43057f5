"""Shared fixtures."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # the threads of two processes on two cores would wait for each other, spinning

pytest_plugins = ["tests.support.mistakes"]


@pytest.fixture
def real_data() -> Path:
    """The folder of real text that LIGHTGPT2_DATA names; the test is skipped without one."""
    folder = os.environ.get("LIGHTGPT2_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("LIGHTGPT2_DATA names no folder")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Keeps tests of one fitted chain in one process, so that it is fitted once; and begins with the longest tests."""
    items.sort(key=lambda item: item.path.name != "test_resume.py")
    for item in items:
        if "chain" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group(f"chain {item.callspec.params['chain']}"))
