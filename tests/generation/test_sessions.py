"""How graphs are opened: what is packed is not kept in memory a second time."""

import sys
from pathlib import Path

import numpy as np
import pytest

from lightgpt2.exporting.onnx_decoder import Forms
from lightgpt2.generation.onnx_engine import OnnxEngine
from tests.support.models import make_restless_model
from tests.support.onnx_client import Client, off, write_onnx

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mappings are read from /proc")


def resident(path: Path) -> int:
    """Bytes of a file's pages in this process's memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        key, *values = line.split(maxsplit=5)
        if not key.endswith(":"):
            ours = len(values) == 5 and values[4] == str(path)
        elif ours and key == "Rss:":
            total += int(values[0]) * 1024
    return total


def test_pages_of_the_file_are_let_go_and_come_again(tmp_path: Path) -> None:
    model = make_restless_model("gpt2", n_embd=256, n_head=4, vocab_size=1000)
    file = write_onnx(model, tmp_path, Forms("int4", "int4", group=16)) / "model.onnx_data"
    client, ids = Client(tmp_path), np.arange(20)[None]
    wanted, _ = client.run(ids, np.ones_like(ids))
    kept = resident(file)
    assert kept > 0, "a plain session keeps scales mapped"
    engine = OnnxEngine(tmp_path / "model.onnx", 64, threads=1)
    assert resident(file) <= kept
    del client
    assert resident(file) == 0
    for _ in range(2):
        np.testing.assert_allclose(engine.logits(ids, np.ones_like(ids)), wanted, atol=1e-5)
    assert off(engine.start(ids, np.ones_like(ids), 1), wanted[:, -1]) < 0.1
