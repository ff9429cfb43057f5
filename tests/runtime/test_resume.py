"""A sequence that is read on from any of its positions: the logits of one that is read anew."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lightgpt2.runtime.engines import Engine
from lightgpt2.runtime.onnx_engine import OnnxEngine
from lightgpt2.runtime.transformers_engine import TransformersEngine
from tests.conversions.test_onnx_decoder import uneven
from tests.support.models import make_restless_model
from tests.support.onnx_client import off, torch_logits, write_onnx

POSITIONS = 64


def transformers_engine(family: str, _: Path) -> tuple[Engine, torch.nn.Module]:
    model = uneven("gpt2") if family == "uneven" else make_restless_model(family)
    return TransformersEngine(model), model


def onnx_engine(family: str, folder: Path) -> tuple[Engine, torch.nn.Module]:
    model = uneven("llama") if family == "uneven" else make_restless_model(family)
    return OnnxEngine(write_onnx(model, folder) / "model.onnx", POSITIONS, threads=1), model


@pytest.mark.parametrize("make", [transformers_engine, onnx_engine])
@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "uneven"])
def test_any_row_of_resumes_gives_the_logits_of_a_whole_pass(
    make: Callable[[str, Path], tuple[Engine, torch.nn.Module]],
    family: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lightgpt2.runtime.onnx_engine._ROOM", 4)  # so that it grows
    engine, model = make(family, tmp_path)
    random, sequence = np.random.default_rng(0), list[int]()
    batch = np.array([[3, 1, 4], [1, 5, 9]])
    for step in range(40):
        kept = len(sequence) if step % 3 else int(random.integers(0, len(sequence) + 1))
        new = random.integers(0, 300, 1 if step % 2 else int(random.integers(1, 9)))
        if kept + len(new) > POSITIONS:
            kept = 0
        sequence = [*sequence[:kept], *new.tolist()]
        found = engine.resume(new, kept).copy()
        assert off(found, torch_logits(model, np.array([sequence]))[0, -1]) < 1e-5
        if step % 5 == 0:  # a batch in between does not disturb it
            engine.prefill(batch, np.ones_like(batch), 2)
            engine.decode(np.array([1, 2]))
            engine.logits(batch, np.ones_like(batch))
