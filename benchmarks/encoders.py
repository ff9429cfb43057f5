"""Encoders on a CPU, in one interleaved run: forward passes of ours and of what else runs them.

    pip install -r benchmarks/requirements-inference.txt
    pip install --no-deps --target PACKAGES -r benchmarks/requirements-optimum.txt
    python -m benchmarks.encoders [--model FOLDER | --model distilbert] [--rounds 8] [--seconds 0.3] [--batch 1] [--length 128]
      [--optimum PACKAGES]

`--model` is a BERT or DistilBERT folder, or a model_type, whose default shape then gets random weights. The others: ONNX
Runtime on the export of torch, after its own optimizer for BERT, and after `quantize_dynamic` (per channel); OpenVINO in
FP32 and INT8 (weights only, and static by NNCF, calibrated on random tokens), each with its own choice of precision
(bfloat16 where the CPU has it) and held to float32; PyTorch with and without dynamic INT8; Optimum's INT8 export, which
needs transformers 4 in a folder of its own. Ours in INT8 has one scale per
token for a layer's inputs; beside it are one for the whole batch, which makes texts depend on each other, and one per block
of each token. A round's figure is the time that one forward pass in ten stays below. Measured as by `benchmarks.inference`.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel

from benchmarks import rounds
from benchmarks.common import parser
from benchmarks.rounds import Arm
from lightgpt2.conversions.onnx.encoder import Encoder, write_encoder
from lightgpt2.conversions.onnx.weights import Form
from lightgpt2.conversions.onnx.writer import Forms
from lightgpt2.models.families import ENCODERS
from lightgpt2.models.loading import load_encoder
from lightgpt2.runtime.engines import Ints
from lightgpt2.runtime.ort import clips_products

BASELINE = "PyTorch FP32"
_CALIBRATION = 100

ARMS = [
    Arm(BASELINE, "pytorch:encoder", "hf"),
    Arm("PyTorch dynamic INT8", "pytorch:encoder", "hf", {"int8": True}),
    Arm("ONNX Runtime, optimizer FP32", "onnx:encoder", "optimized.onnx"),
    Arm("ONNX Runtime, optimizer INT8", "onnx:encoder", "optimized-int8.onnx"),
    Arm("Optimum INT8", "onnx:encoder", "optimum/model_quantized.onnx"),
    *(
        Arm(f"OpenVINO {name}{more}", "openvino_engine:encoder", file, options)
        for name, file in (("FP32", "fp32.xml"), ("INT8 weights", "weights.xml"), ("INT8 static", "static.xml"))
        for more, options in (("", {}), (", f32", {"hint": "f32"}))
    ),
    Arm("lightgpt2 onnx", "onnx:encoder", "ours-fp32/model.onnx", {"exact": True}),
    Arm("lightgpt2 onnx-int8", "onnx:encoder", "ours-int8/model.onnx", {"exact": True}),
    Arm("the same, one scale a batch", "onnx:encoder", "ours-int8-batch/model.onnx", {"exact": True}),
    Arm("the same, scales by blocks", "onnx:encoder", "ours-int8-blocks/model.onnx", {"exact": True}),
]


# Optimum's export, then its dynamic INT8: weights per channel, for processors with VNNI or without.
_OPTIMUM = """
import sys
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig
source, target, kind = sys.argv[1:]
main_export(source, target, task="feature-extraction", library_name="transformers", do_validation=False)
settings = getattr(AutoQuantizationConfig, kind)(is_static=False, per_channel=True)
ORTQuantizer.from_pretrained(target).quantize(save_dir=target, quantization_config=settings)
"""


class Positional(torch.nn.Module):
    """An encoder that takes its inputs in order."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names  # a part, so that its weights are exported as weights to be quantized

    def forward(self, *tensors: Any) -> Any:
        return self.model(**dict(zip(self.names, tensors, strict=True))).last_hidden_state


def convert(model: Any, folder: Path) -> None:
    """Everything that the arms run."""
    model.save_pretrained(folder / "hf")
    layers: dict[str, Form] = {"": Encoder.int8, "-batch": "int8", "-blocks": "int8-blocks"}
    forms = {"ours-fp32": Forms()} | {f"ours-int8{name}": Forms(form, "int8") for name, form in layers.items()}
    for name, form in forms.items():
        (folder / name).mkdir()
        write_encoder(model, folder / name, form)
    inputs = {name: torch.from_numpy(value) for name, value in tokens(model.config, 128).items()}
    torch.onnx.export(
        Positional(model, [*inputs]), (*inputs.values(),), str(folder / "plain.onnx"), input_names=[*inputs],
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in [*inputs, "last_hidden_state"]}, opset_version=17,
        output_names=["last_hidden_state"], dynamo=False,
    )  # fmt: skip
    _optimize(model.config, folder)
    try:
        _to_openvino(model.config, folder)
    except ImportError as error:
        print(f"OpenVINO: left out, {error}; pip install -r benchmarks/requirements-inference.txt", file=sys.stderr)


def _to_optimum(packages: str, folder: Path) -> None:
    kind = "avx2" if clips_products() else "avx512_vnni"
    command = [sys.executable, "-c", _OPTIMUM, str(folder / "hf"), str(folder / "optimum"), kind]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": packages, "HF_HUB_OFFLINE": "1"}, check=True)


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


def _to_openvino(config: Any, folder: Path) -> None:
    import nncf
    import openvino

    def read() -> Any:
        return openvino.convert_model(folder / "plain.onnx")

    samples = nncf.Dataset([tokens(config, 64, seed) for seed in range(_CALIBRATION)])
    static = nncf.quantize(read(), samples, model_type=nncf.ModelType.TRANSFORMER, subset_size=_CALIBRATION)
    weights = nncf.compress_weights(read(), mode=nncf.CompressWeightsMode.INT8_SYM)
    for name, model in (("fp32", read()), ("weights", weights), ("static", static)):
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)


def tokens(config: Any, length: int, seed: int = 0) -> dict[str, Ints]:
    """Random tokens of one text, and the other inputs of the model."""
    ids = np.random.default_rng(seed).integers(1000, 20000, (1, length))
    types = {"token_type_ids": np.zeros_like(ids)} if config.model_type == "bert" else {}
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), **types}


def main() -> None:
    defaults = {
        "model": "distilbert",
        "rounds": 8,
        "seconds": 0.3,
        "batch": 1,
        "length": 128,
        "threads": 2,
        "optimum": "",
    }
    options = parser(__doc__, **defaults).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    if options.model in ENCODERS:
        model = AutoModel.from_config(AutoConfig.for_model(options.model)).eval()
    else:
        model = load_encoder(options.model, "--model")[0]
    settings = {key: getattr(options, key) for key in ("threads", "length", "seconds")}
    settings |= {"batches": [options.batch], "tries": 1, "vocabulary": model.config.vocab_size}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        convert(model, folder)
        if options.optimum:
            _to_optimum(str(Path(options.optimum).resolve()), folder)
        arms = [arm for arm in ARMS if (folder / arm.files).exists()]
        result = rounds.measure(arms, lambda arm: folder / arm.files, settings, options.rounds)
    print(f"\n{options.model}\n\n{rounds.table(result)}")


if __name__ == "__main__":
    main()
