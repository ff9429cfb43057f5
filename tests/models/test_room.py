"""The estimate of what a model needs."""

import copy
from pathlib import Path

import pytest

from lightgpt2.models.room import free_disk, free_memory, lack, parameters
from tests.support.models import SHAPES, make_model


@pytest.mark.parametrize("family", SHAPES)
def test_estimated_parameters_are_those_of_the_model(family: str) -> None:
    model = make_model(family)
    assert parameters(copy.deepcopy(model.config)) == sum(parameter.numel() for parameter in model.parameters())


def test_one_layer_is_enough() -> None:
    model = make_model("gpt2", n_layer=1)
    assert parameters(model.config) == sum(parameter.numel() for parameter in model.parameters())


def test_what_is_needed_and_what_is_free_are_said(tmp_path: Path) -> None:
    assert lack(2 * 10**6, 1000, "disk") == "2.000 MB of disk are needed, and 0.001 MB are free"
    assert lack(2 * 10**9, 10**9, "memory") == "2.0 GB of memory are needed, and 1.0 GB are free"
    assert lack(10**9, 10**9, "memory") is None
    assert free_memory() > 10**8
    assert free_disk(tmp_path / "a" / "b") > 0
