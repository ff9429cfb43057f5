"""Models that are only looked at."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import write_model, write_uneven_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `teacher`, a `llama`, a `gpt_neox`, one of `uneven` layers, and ones that say that they are quantized."""
    folder = tmp_path_factory.mktemp("models")
    for family in ("llama", "gpt_neox"):
        write_model(folder / family, family)
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
