"""A decoder as one GGUF file: llama.cpp's format, with its names of tensors and metadata.

What goes where is as llama.cpp's own converter (`convert_hf_to_gguf.py`) has it: `Conv1D` weights transposed to `[outputs,
inputs]`; norms, biases and learned positions in FP32; a tied head left out, which llama.cpp takes from the embedding. What
differs between families is in `models.families`.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from lightgpt2.conversions.exported import Exported
from lightgpt2.conversions.gguf.tokenizer import add_tokenizer, tokenizer_problems
from lightgpt2.conversions.target import GgufType, Target
from lightgpt2.data.base import TaskData
from lightgpt2.errors import Problem, UserError
from lightgpt2.models.axes import Shape, uneven_sizes
from lightgpt2.models.families import CLASSIFICATION, FAMILIES, family_of, is_tied, predicts
from lightgpt2.models.gguf_files import stored_names
from lightgpt2.models.loading import load_exported_gguf
from lightgpt2.models.operations import Operation
from lightgpt2.models.quantization import quantization_of
from lightgpt2.runtime.engines import Engine
from lightgpt2.runtime.folder import GGUF
from lightgpt2.runtime.processors import as_ids
from lightgpt2.runtime.transformers_engine import TransformersEngine

_BLOCK = 32  # weights of a row that share one scale, in Q8_0 and Q4_0
_PRECISIONS: dict[GgufType, str] = {"F32": "fp32", "F16": "f16", "Q8_0": "int8", "Q4_0": "int4"}


class Gguf(Exported):
    """Writes `model.gguf`, in a folder with what other clients read beside the file."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.kind: GgufType = target.gguf_type or "F16"
        self.precision = _PRECISIONS[self.kind]

    def model_problems(self, config: PretrainedConfig, data: TaskData) -> Iterator[Problem]:
        if predicts(config.architectures) == CLASSIFICATION:
            return iter([Problem("", "classification heads are not written", "export to onnx")])
        return gguf_problems(config, data.tokenizer, self.kind)

    def write_model(self, source: Path, model: PreTrainedModel, folder: Path, data: TaskData) -> Operation:
        written = write_gguf(model, data.tokenizer, folder / GGUF, self.kind)
        weights, size = sum(written["bytes"].values()), (folder / GGUF).stat().st_size
        return {"type": self.kind, **written, "weights": weights, "bytes": {GGUF: size}}

    def runner(self, folder: Path) -> Engine:
        return TransformersEngine(load_exported_gguf(folder, "MODEL"))


def gguf_problems(config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, kind: GgufType) -> Iterator[Problem]:
    """Why a model cannot be a GGUF file that llama.cpp runs with the same result."""
    if config.model_type not in FAMILIES:
        yield Problem("", f"models of type {config.model_type!r} are not written", "export to onnx")
        return
    about, quantized = getattr(config, "lightgpt2", {}), quantization_of(config)
    if quantized and "stored" not in about:
        yield Problem("", f"the weights are {quantized} already", "export the model that they were made from")
    elif quantized and kind in ("Q8_0", "Q4_0"):
        what = f"the weights are {quantized} with scales that were trained, and {kind} would choose others"
        yield Problem("", what, f"use F16 or onnx-{quantized}")
    if "activations" in about:
        yield Problem("", "the layers' inputs are rounded to INT8, which llama.cpp does not do", "use onnx-int8")
    if uneven := uneven_sizes(config):
        units = " and ".join(name for part, name in (("heads", "heads"), ("ffn", "neurons")) if part in uneven)
        what = f"the layers have different numbers of {units}, which llama.cpp can't run"
        yield Problem("", what, "export to onnx")
    yield from (Problem("", *line.split("; ", 1)) for line in family_of(config).gguf_problems(config))
    yield from tokenizer_problems(tokenizer, config)


@torch.no_grad()
def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, file: Path, kind: GgufType
) -> dict[str, Any]:
    """Write a decoder of a supported family and its tokenizer as a GGUF file.

    Matrices are stored as a kind, byte for byte as llama.cpp's own quantizer would. In Q4_0 the head (the embedding, where the
    two are one) is Q8_0; llama.cpp takes Q6_K where rows are whole blocks of 256, for which the package `gguf` has no
    quantizer. Matrices whose rows are not whole blocks of 32 are F16.

    Returns:
        `tensors` and `bytes`, by type; `bytes` of tensors only. `fallback` names the tensors that are F16 for their shape.

    Raises:
        UserError: llama.cpp could not run it, with each reason and its fix.
    """
    if problems := [*gguf_problems(model.config, tokenizer, kind)]:
        raise UserError(problems)
    counts, sizes, fallback = Counter[str](), Counter[str](), []
    tied, architecture = is_tied(model), family_of(model).gguf
    with closing(GGUFWriter(file, architecture, use_temp_file=True)) as writer:
        _add_metadata(writer, model, kind)
        add_tokenizer(writer, tokenizer, model.config)
        ends = [id_ for id_ in as_ids(model.generation_config.eos_token_id) if id_ != tokenizer.eos_token_id]
        if ends:  # llama.cpp knows a turn's end by its name, or by this
            writer.add_eot_token_id(ends[0])
        for name, value in _tensors(model):
            stored = _stored_as(name, value, kind, tied)
            array = gguf.quants.quantize(value.detach().float().cpu().contiguous().numpy(), stored)
            writer.add_tensor(name, array, raw_dtype=stored)
            counts[stored.name] += 1
            sizes[stored.name] += array.nbytes
            if value.ndim == 2 and stored.name == "F16" != kind:
                fallback.append(name)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.flush()
    return {"tensors": dict(counts), "bytes": dict(sizes), "fallback": fallback}


def _add_metadata(writer: GGUFWriter, model: PreTrainedModel, kind: GgufType) -> None:
    config, shape, family = model.config, Shape.of(model.config), family_of(model)
    writer.add_type("model")
    writer.add_name(Path(config.name_or_path).name.removesuffix(".gguf"))
    writer.add_file_type(LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    values = {
        "block_count": config.num_hidden_layers,
        "context_length": family.positions(config),
        "embedding_length": shape.width,
        "feed_forward_length": shape.ffn,
        "head_count": shape.heads,
    }
    for name, value in (values | family.gguf_metadata(config)).items():
        getattr(writer, f"add_{name}")(value)


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the file: their names and values, matrices as `[outputs, inputs]`."""
    config, family = model.config, family_of(model)
    stored_name = stored_names(config)
    transposed = {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}
    yield from family.gguf_tensors(model)
    for name, parameter in model.named_parameters():
        stored = stored_name(name)
        yield stored, family.gguf_stored(stored, parameter.T if id(parameter) in transposed else parameter, config)


def _stored_as(name: str, value: Tensor, kind: GgufType, tied: bool) -> GGMLQuantizationType:
    if value.ndim < 2 or name == "position_embd.weight":
        return GGMLQuantizationType.F32
    if kind in ("Q8_0", "Q4_0") and value.shape[-1] % _BLOCK:
        return GGMLQuantizationType.F16
    if kind == "Q4_0" and (name == "output.weight" or (tied and name == "token_embd.weight")):
        return GGMLQuantizationType.Q8_0
    return GGMLQuantizationType[kind]
