"""The engine over onnxruntime: the logits of a naive computation, from a cache that is written in place."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from transformers import PreTrainedModel

from lightgpt2.errors import UserError
from lightgpt2.runtime.engines import physical_cores
from lightgpt2.runtime.onnx_engine import OnnxEngine
from tests.conversions.test_onnx_decoder import uneven
from tests.support.cli import ROOT
from tests.support.onnx_client import Array, off, torch_logits, write_onnx
from tests.support.onnx_decoder import POSITIONS, VOCABULARY, tiny_model, write_decoder

PROMPTS = [[5, 7, 11], [3, 1, 4, 1, 5, 9, 2, 6], [299]]
MODELS = {"gpt2": tiny_model, "llama": lambda: uneven("llama")}  # of which the latter has layers without a cache


def engine_of(model: PreTrainedModel, folder: Path) -> OnnxEngine:
    return OnnxEngine(write_onnx(model, folder) / "model.onnx", POSITIONS, threads=1)


def padded(prompts: list[list[int]]) -> tuple[Array, Array]:
    longest = max(map(len, prompts))
    ids = np.array([[0] * (longest - len(p)) + p for p in prompts])
    mask = np.array([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]])
def test_steps_give_the_logits_of_whole_sequences(tmp_path: Path, family: str, prompts: list[list[int]]) -> None:
    model = MODELS[family]()
    engine = engine_of(model, tmp_path)
    assert (engine.vocabulary, engine.context) == (VOCABULARY, POSITIONS)
    ids, mask = padded(prompts)
    for row, prompt in zip(engine.logits(ids, mask), prompts, strict=True):
        assert off(row[-len(prompt) :], torch_logits(model, np.array([prompt]))[0]) < 1e-4
    random = np.random.default_rng(0)
    for room in (6, 9, 9):  # a second and a third batch begin anew, in a new cache and in an old one
        sequences = [list(prompt) for prompt in prompts]
        logits = engine.prefill(ids, mask, room)
        for step in range(room):
            wanted = np.stack([torch_logits(model, np.array([sequence]))[0, -1] for sequence in sequences])
            assert off(logits, wanted) < 1e-4
            logits[:] = np.nan  # they are the caller's
            if step < room - 1:
                tokens = random.integers(0, VOCABULARY, len(prompts))
                sequences = [[*sequence, int(token)] for sequence, token in zip(sequences, tokens, strict=True)]
                logits = engine.decode(tokens)


@pytest.mark.parametrize("family", MODELS)
def test_the_cache_is_allocated_once_for_a_batch(tmp_path: Path, family: str) -> None:
    engine = engine_of(MODELS[family](), tmp_path)
    engine.prefill(*padded(PROMPTS), 20)
    cache, length = engine._caches["past_key_values.0.key"], len(PROMPTS[1])
    assert cache.shape[2] == length + 20
    for count in range(1, 20):
        engine.decode(np.array([1, 2, 3]))
        written = np.abs(cache).sum(axis=(1, 3)) > 0
        assert written[:, : length + count].all(), "the new token's place is written in the buffer that was bound"
        assert not written[:, length + count :].any(), "nothing behind what is in use"
    assert engine._caches["past_key_values.0.key"] is cache


def test_what_is_no_decoder_is_refused(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path)
    model = onnx.load(folder / "model.onnx")
    model.graph.output.remove(model.graph.output[0])
    onnx.save(model, folder / "other.onnx")
    with pytest.raises(UserError, match=r"MODEL: .*other\.onnx must be a decoder with a cache"):
        OnnxEngine(folder / "other.onnx", POSITIONS)
    whole = (folder / "model.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"MODEL: .*cut\.onnx could not be loaded .*; export it again"):
        OnnxEngine(folder / "cut.onnx", POSITIONS)


def test_threads_are_cores_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    allowed, quota = {0, 1, 2, 3, 6}, tmp_path / "cpu.max"
    monkeypatch.setattr("os.sched_getaffinity", lambda _: allowed)
    monkeypatch.setattr("lightgpt2.runtime.engines._TOPOLOGY", str(tmp_path / "{}"))
    monkeypatch.setattr("lightgpt2.runtime.engines._QUOTA", quota)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for cpu in range(8):
        (tmp_path / str(cpu)).write_text(f"{cpu - cpu % 2}-{cpu - cpu % 2 + 1}\n")
    assert physical_cores() == 3, "0 and 1 are one core, 2 and 3 are one, 6 is half of one"
    quota.write_text("max 100000\n")
    assert physical_cores() == 3
    quota.write_text("150000 100000\n")
    assert physical_cores() == 2


@pytest.mark.slow
def test_an_exported_folder_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    write_decoder(tmp_path / "exported")
    script = (
        "import sys, lightgpt2.cli.verbs\n"
        "lightgpt2.cli.verbs.run(['generate', 'exported', '--prompt', 'The', '--max-new-tokens', '3'])\n"
        "print({name for name in sys.modules if name in ('torch', 'transformers', 'lightning', 'onnx')})\n"
    )
    how: Any = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", script], check=False, **how)
    assert done.stdout.endswith("\nset()\n"), done.stdout + done.stderr
