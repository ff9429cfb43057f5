"""A model folder in an engine's own files, as a user of that engine would make them.

- `gguf-TYPE`: our GGUF export in F32, then llama.cpp's own quantizer with its default mixture (`-pure`: one type for all).
- `ctranslate2-TYPE`: CTranslate2's converter for transformers.
- `openvino-TYPE`: the OpenVINO exporter of transformers, stateful; INT8 and INT4 by NNCF's weight compression with the settings
  that optimum-intel takes by default (8 bits asymmetric; 4 bits asymmetric in groups of 128, embedding and head in 8 bits).
- `onnx`, `onnx-int8`, `onnx-int4`: `lightgpt2 export`; `onnx-int4-128`: with groups of 128, embedding and head in INT4 too;
  `onnx-int4-128-prefill`: and prompts read in INT8.
"""

import ctypes
import shutil
from pathlib import Path
from typing import Any

from lightgpt2.cli.commands import export
from lightgpt2.measure.child import serve
from lightgpt2.models.files import atomic_folder


def to_gguf(kind: str, model: Path, target: Path) -> None:
    """`F32`, `F16`, `Q8_0`, `Q4_0`, `Q4_0-pure`."""
    import llama_cpp

    name, _, pure = kind.partition("-")
    whole = target / "whole"
    export(str(model), format="gguf", output=str(whole), gguf_type="F32")
    (source,) = whole.glob("*.gguf")
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, "LLAMA_FTYPE_ALL_F32" if name == "F32" else f"LLAMA_FTYPE_MOSTLY_{name}")
    settings.pure = bool(pure)
    output = target / f"{kind}.gguf"
    if llama_cpp.llama_model_quantize(str(source).encode(), str(output).encode(), ctypes.byref(settings)):
        raise RuntimeError(f"llama.cpp can't quantize to {kind}")
    shutil.rmtree(whole)


def to_ctranslate2(kind: str, model: Path, target: Path) -> None:
    """`float32` or `int8`."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(model)).convert(str(target), quantization=kind, force=True)


def to_openvino(kind: str, model: Path, target: Path) -> None:
    """`fp32`, `int8` or `int4`."""
    import nncf
    import openvino

    whole = _openvino_model(model)
    # Where a width is no multiple of 128: the largest power of two that divides it.
    narrow = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
    modes: dict[str, dict[str, Any]] = {
        "int8": {"mode": nncf.CompressWeightsMode.INT8_ASYM},
        "int4": {
            "mode": nncf.CompressWeightsMode.INT4_ASYM, "group_size": 128, "ratio": 1.0, "advanced_parameters": narrow,
        },
    }  # fmt: skip
    if kind in modes:
        whole = nncf.compress_weights(whole, **modes[kind])
    openvino.save_model(whole, target / "openvino_model.xml", compress_to_fp16=False)


def _openvino_model(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.exporters.exporter_openvino import OpenVINOConfig, OpenVINOExporter

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32).eval()
    ids = torch.arange(6).expand(2, 6)
    with torch.no_grad():
        past = model(ids[:, :3], use_cache=True).past_key_values
    mask, new = torch.ones(2, 6, dtype=torch.long), ids[:, 3:]
    inputs = {"input_ids": new, "attention_mask": mask, "position_ids": new.contiguous(), "past_key_values": past}
    program = OpenVINOExporter().export(model, inputs, config=OpenVINOConfig(dynamic=True)).program
    # The exporter pins the precision of its trace, which other routes to OpenVINO don't.
    del program.rt_info["runtime_options"]
    return program


def to_onnx(kind: str, model: Path, target: Path) -> None:
    """`onnx`, `onnx-int8`, `onnx-int4`, `onnx-int4-128`, `onnx-int4-128-prefill`."""
    if not kind.startswith("onnx-int4-128"):
        export(str(model), format=kind, output=str(target))
    else:
        prefill = "int8" if kind.endswith("prefill") else None
        export(str(model), format="onnx-int4", output=str(target), group=128, embeddings="int4", prefill=prefill)


def convert(kind: str, model: Path, target: Path) -> None:
    """Makes one engine's files."""
    family, _, precision = kind.partition("-")
    if family == "onnx":
        to_onnx(kind, model, target)
        return
    with atomic_folder(target) as temporary:
        {"gguf": to_gguf, "ctranslate2": to_ctranslate2, "openvino": to_openvino}[family](precision, model, temporary)


if __name__ == "__main__":
    serve({"convert": convert})
