"""Shared fixtures."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

pytest_plugins = ["tests.support.mistakes"]


@pytest.fixture
def real_data() -> Path:
    """The folder of real text that LIGHTGPT2_DATA names; the test is skipped without one."""
    folder = os.environ.get("LIGHTGPT2_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("LIGHTGPT2_DATA names no folder")
    return Path(folder)
