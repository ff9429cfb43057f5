"""Encoders on a CPU, in one interleaved run: forward passes of ours and of what else runs them.

    pip install -r benchmarks/requirements-inference.txt
    python -m benchmarks.encoders [--model FOLDER | --model distilbert] [--rounds 8] [--batch 1] [--length 128]

`--model` is a BERT or DistilBERT folder, or a model_type, whose default shape then gets random weights. The others: ONNX
Runtime on the export of torch, after its own optimizer for BERT, and after `quantize_dynamic` (per channel); OpenVINO in FP32
and INT8 (weights only, and static by NNCF, calibrated on random tokens), each with its own choice of precision (bfloat16 where
the CPU has it) and held to float32; PyTorch with and without dynamic INT8. Each has a process of its own and waits while the
others measure; a round's figure is the time that one forward pass in ten stays below, and ratios to PyTorch in FP32 are taken
inside the round. The error is the root of the mean squared difference from it over the deviation of its own states.
"""

import argparse
import importlib.util
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import machine, ratios

Feed = dict[str, NDArray[np.int64]]

BASELINE = "PyTorch FP32"
_NAMES = ("input_ids", "attention_mask", "token_type_ids")
_CALIBRATION = 100

# What it is called: (engine, file in the folder, setting)
ARMS = {
    BASELINE: ("torch", "hf", ""),
    "PyTorch dynamic INT8": ("torch", "hf", "int8"),
    "ONNX Runtime, optimizer FP32": ("onnx", "optimized.onnx", ""),
    "ONNX Runtime, optimizer INT8": ("onnx", "optimized-int8.onnx", ""),
    "OpenVINO FP32": ("openvino", "fp32.xml", ""),
    "OpenVINO FP32, f32": ("openvino", "fp32.xml", "f32"),
    "OpenVINO INT8 weights": ("openvino", "weights.xml", ""),
    "OpenVINO INT8 weights, f32": ("openvino", "weights.xml", "f32"),
    "OpenVINO INT8 static": ("openvino", "static.xml", ""),
    "OpenVINO INT8 static, f32": ("openvino", "static.xml", "f32"),
    "lightgpt2 onnx": ("onnx", "ours-fp32/model.onnx", ""),
    "lightgpt2 onnx-int8": ("onnx", "ours-int8/model.onnx", ""),
}


def feed(batch: int, length: int, seed: int = 0) -> Feed:
    """Random tokens without padding."""
    ids = np.random.default_rng(seed).integers(1000, 20000, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def convert(model: Any, folder: Path) -> None:
    """Everything that the arms run."""
    import torch

    from lightgpt2.conversions.onnx.decoder import Forms
    from lightgpt2.conversions.onnx.encoder import write_encoder

    model.save_pretrained(folder / "hf")
    for name, forms in (("ours-fp32", Forms()), ("ours-int8", Forms("int8", "int8"))):
        (folder / name).mkdir()
        write_encoder(model, folder / name, forms)
    names = [name for name in _NAMES if model.config.model_type == "bert" or name != "token_type_ids"]

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = (
                model  # as a part, so that its weights are exported as weights, which `quantize_dynamic` looks for
            )

        def forward(self, *tensors: Any) -> Any:
            return self.model(**dict(zip(names, tensors, strict=True))).last_hidden_state

    inputs = tuple(torch.from_numpy(feed(1, 128)[name]) for name in names)
    axes = {name: {0: "batch", 1: "sequence"} for name in [*names, "last_hidden_state"]}
    torch.onnx.export(
        Positional(), inputs, str(folder / "plain.onnx"), input_names=names, output_names=["last_hidden_state"],
        dynamic_axes=axes, opset_version=17, dynamo=False,
    )  # fmt: skip
    _optimize(model.config, folder)
    if importlib.util.find_spec("openvino") and importlib.util.find_spec("nncf"):
        _to_openvino(folder, names)
    else:
        print("OpenVINO: left out; pip install -r benchmarks/requirements-inference.txt", file=sys.stderr)


def _optimize(config: Any, folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    shape = {"num_heads": config.num_attention_heads, "hidden_size": config.hidden_size}
    fused = optimizer.optimize_model(str(folder / "plain.onnx"), model_type="bert", opt_level=0, **shape)
    fused.save_model_to_file(str(folder / "optimized.onnx"))
    quantize_dynamic(
        folder / "optimized.onnx", folder / "optimized-int8.onnx", weight_type=QuantType.QInt8, per_channel=True,
        extra_options={"DefaultTensorType": 1},
    )  # fmt: skip


def _to_openvino(folder: Path, names: list[str]) -> None:
    import nncf
    import openvino

    def read() -> Any:
        return openvino.convert_model(folder / "plain.onnx")

    samples = [{name: feed(1, 64, seed)[name] for name in names} for seed in range(_CALIBRATION)]
    static = nncf.quantize(
        read(), nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=_CALIBRATION
    )
    weights = nncf.compress_weights(read(), mode=nncf.CompressWeightsMode.INT8_SYM)
    for name, model in (("fp32", read()), ("weights", weights), ("static", static)):
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)


def _torch(path: Path, setting: str, inputs: Feed, threads: int) -> Callable[[], Any]:
    import torch
    from transformers import AutoModel

    torch.set_num_threads(threads)
    model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    if setting == "int8":
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    if model.config.model_type != "bert":
        del tensors["token_type_ids"]

    def run() -> Any:
        with torch.inference_mode():
            return model(**tensors).last_hidden_state.numpy()

    return run


def _onnx(path: Path, setting: str, inputs: Feed, threads: int) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {value.name: inputs[value.name] for value in session.get_inputs()}
    return lambda: session.run(None, given)[0]


def _openvino(path: Path, setting: str, inputs: Feed, threads: int) -> Callable[[], Any]:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if setting:
        settings["INFERENCE_PRECISION_HINT"] = setting
    model = openvino.Core().compile_model(path, "CPU", settings)
    given = {name: inputs[name] for value in model.inputs for name in value.names if name in inputs}
    request = model.create_infer_request()
    return lambda: np.array(next(iter(request.infer(given).values())))


ENGINES = {"torch": _torch, "onnx": _onnx, "openvino": _openvino}


def work(pipe: Connection, engine: str, path: Path, setting: str, inputs: Feed, threads: int) -> None:
    """One arm's process: its states first, then a time for every number of seconds that it is sent."""
    run = ENGINES[engine](path, setting, inputs, threads)
    pipe.send(run())
    while (seconds := pipe.recv()) is not None:
        times: list[float] = []
        run()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times) < 3:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        pipe.send(float(np.percentile(times, 10)))


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Starts the arms, lets them take turns, and prints the table."""
    context = multiprocessing.get_context("spawn")
    inputs = feed(options.batch, options.length, seed=1)
    pipes: dict[str, Connection] = {}
    states: dict[str, Any] = {}
    for name, (engine, file, setting) in ARMS.items():
        if not (folder / file).exists():
            continue
        pipes[name], there = context.Pipe()
        arguments = (there, engine, folder / file, setting, inputs, options.threads)
        context.Process(target=work, args=arguments, daemon=True).start()
        there.close()
        states[name] = pipes[name].recv()
    times: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(options.rounds):
        for name, pipe in pipes.items():
            pipe.send(options.seconds)
            times[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(None)
    plain = states[BASELINE]
    print("| arm | ms | speed vs PyTorch FP32 (range) | error |\n| --- | --- | --- | --- |")
    for name, (middle, low, high) in sorted(ratios(times, BASELINE).items(), key=lambda item: -item[1][0]):
        error = float(np.sqrt(((states[name] - plain) ** 2).mean()) / plain.std())
        print(
            f"| {name} | {statistics.median(times[name]) * 1e3:.2f} | {middle:.2f} ({low:.2f} - {high:.2f}) | {error:.1e} |"
        )


def main() -> None:
    """Converts, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="distilbert", help="folder, or bert or distilbert for random weights")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.3, help="that an arm measures in a round")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    import torch
    from transformers import AutoConfig, AutoModel

    from lightgpt2.models.loading import ENCODERS, load_encoder

    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    if options.model in ENCODERS:
        model = AutoModel.from_config(AutoConfig.for_model(options.model)).eval()
    else:
        model = load_encoder(options.model, "--model")[0]
    with tempfile.TemporaryDirectory() as folder:
        convert(model, Path(folder))
        print(f"\n{options.model}, {options.batch}x{options.length}; {machine()}\n")
        measure(Path(folder), options)


if __name__ == "__main__":
    main()
