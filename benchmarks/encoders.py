"""Encoders on a CPU, in one interleaved run: forward passes of ours and of what else runs them.

    pip install -r benchmarks/requirements-inference.txt
    python -m benchmarks.encoders [--model FOLDER | --model distilbert] [--rounds 8] [--seconds 0.3] [--batch 1] [--length 128]

`--model` is a BERT or DistilBERT folder, or a model_type, whose default shape then gets random weights. The others: ONNX
Runtime on the export of torch, after its own optimizer for BERT, and after `quantize_dynamic` (per channel); OpenVINO in FP32
and INT8 (weights only, and static by NNCF, calibrated on random tokens), each with its own choice of precision (bfloat16 where
the CPU has it) and held to float32; PyTorch with and without dynamic INT8. Each has its own process and waits while the
others measure; a round's figure is the time that one forward pass in ten stays below, and ratios to PyTorch in FP32 are taken
inside the round. The error is the root of the mean squared difference from it over the deviation of its own states.
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import rounds
from benchmarks.common import machine, markdown, parser
from benchmarks.engines.base import Ids
from benchmarks.engines.encoders import feed
from benchmarks.rounds import Arm
from lightgpt2.conversions.onnx.decoder import Forms
from lightgpt2.conversions.onnx.encoder import write_encoder
from lightgpt2.models.families import ENCODERS
from lightgpt2.models.loading import load_encoder

BASELINE = "PyTorch FP32"
_CALIBRATION = 100

_ORT, _OPENVINO = "encoders:OnnxEncoder", "encoders:OpenVinoEncoder"
ARMS = [
    Arm(BASELINE, "encoders:TorchEncoder", "hf"),
    Arm("PyTorch dynamic INT8", "encoders:TorchEncoder", "hf", {"quantize": "int8"}),
    Arm("ONNX Runtime, optimizer FP32", _ORT, "optimized.onnx"),
    Arm("ONNX Runtime, optimizer INT8", _ORT, "optimized-int8.onnx"),
    *(
        Arm(f"OpenVINO {name}{more}", _OPENVINO, file, options)
        for name, file in (("FP32", "fp32.xml"), ("INT8 weights", "weights.xml"), ("INT8 static", "static.xml"))
        for more, options in (("", {}), (", f32", {"hint": "f32"}))
    ),
    Arm("lightgpt2 onnx", _ORT, "ours-fp32/model.onnx", {"exact": "true"}),
    Arm("lightgpt2 onnx-int8", _ORT, "ours-int8/model.onnx", {"exact": "true"}),
]


class Positional(torch.nn.Module):
    """An encoder that takes its inputs in order."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names  # a part, so that its weights are exported as weights to be quantized

    def forward(self, *tensors: Any) -> Any:
        """The last hidden states."""
        return self.model(**dict(zip(self.names, tensors, strict=True))).last_hidden_state


def convert(model: Any, folder: Path) -> None:
    """Everything that the arms run."""
    model.save_pretrained(folder / "hf")
    for name, forms in (("ours-fp32", Forms()), ("ours-int8", Forms("int8", "int8"))):
        (folder / name).mkdir()
        write_encoder(model, folder / name, forms)
    names = [*tokens(1, 1)] if model.config.model_type == "bert" else ["input_ids", "attention_mask"]
    inputs = tuple(torch.from_numpy(tokens(1, 128)[name]) for name in names)
    axes = {name: {0: "batch", 1: "sequence"} for name in [*names, "last_hidden_state"]}
    torch.onnx.export(
        Positional(model, names), inputs, str(folder / "plain.onnx"), input_names=names, output_names=["last_hidden_state"],
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

    samples = nncf.Dataset([{name: tokens(1, 64, seed)[name] for name in names} for seed in range(_CALIBRATION)])
    static = nncf.quantize(read(), samples, model_type=nncf.ModelType.TRANSFORMER, subset_size=_CALIBRATION)
    weights = nncf.compress_weights(read(), mode=nncf.CompressWeightsMode.INT8_SYM)
    for name, model in (("fp32", read()), ("weights", weights), ("static", static)):
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)


def tokens(batch: int, length: int, seed: int = 0) -> dict[str, Ids]:
    """Random tokens without padding."""
    return feed(np.random.default_rng(seed).integers(1000, 20000, (batch, length)))


def measure(folder: Path, options: argparse.Namespace, vocabulary: int) -> str:
    """Starts the arms and lets them take turns: the table."""
    arms = [arm for arm in ARMS if (folder / arm.files).exists()]
    shape = {"batches": [options.batch], "length": options.length, "threads": options.threads}
    settings = {**shape, "seconds": options.seconds, "tries": 1, "vocabulary": vocabulary}
    found, failed = rounds.measure(arms, lambda arm: folder / arm.files, settings, options.rounds)
    for name, reason in failed.items():
        print(f"{name}: not measured: {reason}", file=sys.stderr)
    rows = []
    for name, arm in found.items():
        (figures,) = arm["measures"].values()
        speed = "{:.2f} ({:.2f} - {:.2f})".format(*figures["ratio"])
        rows.append((figures["ratio"], [name, f"{figures['ms']:.2f}", speed, f"{arm['error']:.1e}"]))
    fastest = [row for _, row in sorted(rows, reverse=True)]
    return markdown(["arm", "ms", "speed vs PyTorch FP32 (range)", "error"], fastest)


def main() -> None:
    """Converts, measures and prints."""
    from transformers import AutoConfig, AutoModel

    defaults = {"model": "distilbert", "rounds": 8, "seconds": 0.3, "batch": 1, "length": 128, "threads": 2}
    options = parser(__doc__, **defaults).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    if options.model in ENCODERS:
        model = AutoModel.from_config(AutoConfig.for_model(options.model)).eval()
    else:
        model = load_encoder(options.model, "--model")[0]
    with tempfile.TemporaryDirectory() as folder:
        convert(model, Path(folder))
        table = measure(Path(folder), options, model.config.vocab_size)
    print(f"\n{options.model}, {options.batch}x{options.length}; {machine()}\n\n{table}")


if __name__ == "__main__":
    main()
