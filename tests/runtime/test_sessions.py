"""How graphs are opened: what is packed is not kept in memory a second time, and cores are free between runs."""

import mmap
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lightgpt2.conversions.onnx.decoder import Forms
from lightgpt2.runtime.onnx_engine import OnnxEngine
from lightgpt2.runtime.ort import _page_out
from tests.support.models import make_restless_model
from tests.support.onnx_client import Array, Client, off, write_onnx

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


def reclaims(folder: Path) -> bool:
    """Whether the system takes back pages of a file there at once (not in a tmpfs, say)."""
    file = folder / "probe"
    file.write_bytes(b"x" * (1 << 20))
    os.sync()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped.find(b"y") == -1
        before = resident(file)
        _page_out(f"{folder}/")
        return resident(file) < before


def test_pages_of_the_file_are_let_go_and_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not reclaims(tmp_path):
        pytest.skip("the system does not take pages back at once")
    model = make_restless_model("gpt2", n_embd=256, n_head=4, vocab_size=1000)
    file = write_onnx(model, tmp_path / "out", Forms("int4", "int4", group=16)) / "model.onnx_data"
    neighbour = write_onnx(model, tmp_path / "out-2", Forms()) / "model.onnx_data"
    os.sync()
    client, ids = Client(tmp_path / "out"), np.arange(20)[None]
    wanted, _ = client.run(ids, np.ones_like(ids))
    kept = resident(file)
    assert kept > 0, "a plain session keeps scales mapped"
    del client
    with neighbour.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped.find(b"no such bytes") == -1
        others = resident(neighbour)
        monkeypatch.chdir(tmp_path)
        engine = OnnxEngine(Path("out/model.onnx"), 64, threads=1)
        assert resident(file) < 0.75 * kept
        assert resident(neighbour) > 0.75 * others, "another folder's, whose name begins alike"
    for _ in range(2):
        np.testing.assert_allclose(engine.logits(ids, np.ones_like(ids)), wanted, atol=1e-5)
    assert off(engine.start(ids, np.ones_like(ids), 1), wanted[:, -1]) < 0.1


def test_engines_may_be_made_and_dropped_in_threads(tmp_path: Path) -> None:
    folder = write_onnx(make_restless_model("gpt2", n_layer=2), tmp_path, Forms("int4", "int4", prefill=[]))
    ids = np.arange(20)[None]

    def work(_: int) -> Array:
        return OnnxEngine(folder / "model.onnx", 64, threads=1).logits(ids, np.ones_like(ids)).copy()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(24)))
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])


def test_an_engine_takes_no_time_of_the_processor_between_steps(tmp_path: Path) -> None:
    model = make_restless_model("gpt2", n_embd=256, n_head=4, vocab_size=1000)
    engine = OnnxEngine(write_onnx(model, tmp_path, Forms()) / "model.onnx", 64, threads=2)
    ids = np.arange(60)[None]
    spent = []
    for _ in range(3):
        engine.logits(ids, np.ones_like(ids))
        before = time.process_time()
        time.sleep(0.1)
        spent.append(time.process_time() - before)
    assert min(spent) < 0.01
