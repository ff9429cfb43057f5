"""How graphs are opened: products are exact, what is packed is not kept twice in memory, cores are free between runs."""

import contextlib
import mmap
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx.parser
import onnx.printer
import onnx_ir as ir
import onnxruntime
import pytest

from lightgpt2.conversions.onnx.graph import MICROSOFT, Graph, Weights
from lightgpt2.conversions.onnx.writer import Forms
from lightgpt2.runtime.onnx_engine import OnnxEngine
from lightgpt2.runtime.ort import _PROBE, _page_out, clips_products, open_session, session_options
from tests.support.models import make_restless_model
from tests.support.onnx_client import Array, Client, off, plain_session, write_onnx

linux = pytest.mark.skipif(sys.platform != "linux", reason="mappings are read from /proc")


def extreme_products(folder: Path) -> tuple[Path, Array, Array]:
    """A graph of both operators for 8-bit weights, inputs whose products are as large as they get, and the results."""
    random = np.random.default_rng(0)
    weights, x = random.integers(-127, 128, (256, 48)).astype(np.int8), random.random((9, 256)).astype(np.float32)
    scales = (random.random(48) + 0.1).astype(np.float32)
    with Weights(folder) as stored:
        graph = Graph(folder, stored)
        read = graph.input("x", ir.DataType.FLOAT, ["M", 256])
        scale, zero = graph.weight(scales, "s"), graph.weight(np.zeros(48, np.int8), "z")
        layer = graph.op("DynamicQuantizeMatMul", read, graph.weight(weights, "w"), scale, domain=MICROSOFT)
        rounded, rows = graph.ops("DynamicQuantizeLinear", read, outputs=3), graph.weight(weights.T, "rows")
        head = graph.op("QGemm", *rounded, rows, scale, zero, domain=MICROSOFT, transB=1)
        for name, value in (("layer", layer), ("head", head)):
            graph.output(name, value, ir.DataType.FLOAT, ["M", 48])
        graph.save()
    step = x.max() / np.float32(255)
    return folder / "model.onnx", x, np.rint(x / step) @ weights.astype(np.float64) * step * scales


def test_products_of_8_bits_are_exact_on_every_processor(tmp_path: Path) -> None:
    graph, x, wanted = extreme_products(tmp_path)
    for session in (open_session(graph, 1), plain_session(graph)):
        for found in session.run(None, {"x": x}):
            assert off(found, wanted) < 1e-6
    plain = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    clipped = [off(found, wanted) > 1e-3 for found in plain.run(None, {"x": x})]
    assert clipped == [clips_products()] * 2, "the probe says what becomes of them otherwise"


@pytest.mark.parametrize("clips", [False, True])
def test_weights_become_unsigned_only_where_products_are_clipped(monkeypatch: pytest.MonkeyPatch, clips: bool) -> None:
    monkeypatch.setattr("lightgpt2.runtime.ort.clips_products", lambda: clips)
    options = session_options(2)
    assert options.intra_op_num_threads == 2
    with contextlib.nullcontext() if clips else pytest.raises(RuntimeError, match="x64quantprecision"):
        assert options.get_session_config_entry("session.x64quantprecision") == "1"


def test_the_probe_is_one_product() -> None:
    product = "(uint8[1,4] a, int8[4,1] b) => (int32[1,1] y) {y = MatMulInteger(a, b)}"
    model = onnx.parser.parse_model(f'<ir_version: 5, opset_import: ["": 10]> probe {product}')
    assert onnx.printer.to_text(onnx.ModelProto.FromString(_PROBE)) == onnx.printer.to_text(model)


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


@linux
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
    assert off(engine.prefill(ids, np.ones_like(ids), 1), wanted[:, -1]) < 0.1


@pytest.mark.slow
def test_engines_may_be_made_and_dropped_in_threads(tmp_path: Path) -> None:
    folder = write_onnx(make_restless_model("gpt2", n_layer=2), tmp_path, Forms("int4", "int4", prefill=[]))
    ids = np.arange(20)[None]

    def work(_: int) -> Array:
        return OnnxEngine(folder / "model.onnx", 64, threads=1).logits(ids, np.ones_like(ids)).copy()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(24)))
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])


@linux
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
