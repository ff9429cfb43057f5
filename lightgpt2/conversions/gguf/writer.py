"""GPT-2 and Llama as one GGUF file: llama.cpp's format, with its names of tensors and metadata.

What goes where is as llama.cpp's own converter (`convert_hf_to_gguf.py`) has it: GPT-2's `Conv1D` weights transposed to
`[outputs, inputs]`; the rows of Llama's queries and keys interleaved, for llama.cpp rotates neighbours where transformers
rotates halves; norms, biases and GPT-2's positions in FP32; a tied head left out, which llama.cpp takes from the embedding.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from lightgpt2.conversions.gguf.tokenizer import add_tokenizer, tokenizer_problems
from lightgpt2.errors import UserError
from lightgpt2.models.axes import Shape, uneven_sizes
from lightgpt2.models.families import is_tied
from lightgpt2.models.files import atomic_file
from lightgpt2.models.quantization import quantization_of

Kind = Literal["F32", "F16", "Q8_0", "Q4_0"]

_ARCHITECTURES = {"gpt2": gguf.MODEL_ARCH.GPT2, "llama": gguf.MODEL_ARCH.LLAMA}
_FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
}
_BLOCK = 32  # weights of a row that share one scale, in Q8_0 and Q4_0
_ROPES = ("default", "linear", "llama3")  # whose frequencies do not change with the length of the text


def gguf_problems(config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, kind: Kind) -> list[str]:
    """Why a model can't be a GGUF file that llama.cpp runs with the same result; nothing where it can.

    Args:
        config: The model's configuration.
        tokenizer: Its tokenizer.
        kind: What the weights are to be stored as.

    Returns:
        One line for each problem: what is wrong, and the fix.
    """
    if config.model_type not in _ARCHITECTURES:
        problems = [f"models of type {config.model_type!r} are not written; export to onnx"]
    else:
        problems = [*_weight_problems(config, kind), *_shape_problems(config), *tokenizer_problems(tokenizer, config)]
    return [f"--format gguf: {problem}" for problem in problems]


def _weight_problems(config: PretrainedConfig, kind: Kind) -> Iterator[str]:
    about = getattr(config, "lightgpt2", {})
    quantized = quantization_of(config)
    if quantized and "stored" not in about:
        yield f"the weights are {quantized} already; export the model that they were made from"
    elif quantized and kind in ("Q8_0", "Q4_0"):
        yield (
            f"the weights are {quantized} with scales that were trained, and {kind} would choose others; use "
            f"--gguf-type F16 or --format onnx-{quantized}"
        )
    if "activations" in about:
        yield "the layers' inputs are rounded to INT8, which llama.cpp does not do; use --format onnx-int8"


def _shape_problems(config: PretrainedConfig) -> Iterator[str]:
    if uneven := uneven_sizes(config):
        units = " and ".join(name for part, name in (("heads", "heads"), ("ffn", "neurons")) if part in uneven)
        yield f"the layers have different numbers of {units}, which llama.cpp can't run; use --format onnx"
    if config.model_type == "gpt2":
        if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
            yield f"llama.cpp computes GPT-2 with gelu_new, not {config.activation_function}; use --format onnx"
        if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
            yield "llama.cpp divides attention scores by the root of the head's width only; use --format onnx"
        if config.add_cross_attention:
            yield "llama.cpp's GPT-2 has no cross-attention; remove add_cross_attention"
    else:
        if config.hidden_act != "silu":
            yield f"llama.cpp computes Llama with silu, not {config.hidden_act}; use --format onnx"
        if (rope := config.rope_parameters["rope_type"]) not in _ROPES:
            yield f"rotary positions of type {rope} are not written, only {', '.join(_ROPES)}; use --format onnx"


@torch.no_grad()
def write_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, file: Path, kind: Kind) -> dict[str, Any]:
    """Writes a model and its tokenizer as a GGUF file, one tensor at a time, atomically.

    Args:
        model: A loaded GPT-2 or Llama.
        tokenizer: Its tokenizer.
        file: Target.
        kind: What matrices are stored as, byte for byte as llama.cpp's own quantizer would. In Q4_0 the head (the embedding,
            where the two are one) is Q8_0; llama.cpp takes Q6_K where rows are whole blocks of 256, for which the package
            `gguf` has no quantizer. Matrices whose rows are not whole blocks of 32 are F16.

    Returns:
        `tensors` and `bytes`, by type; `bytes` of tensors only. `fallback` names the tensors that are F16 for their shape.

    Raises:
        UserError: llama.cpp could not run it, with each reason and its fix.
    """
    if problems := gguf_problems(model.config, tokenizer, kind):
        raise UserError(problems)
    written: dict[str, Any] = {"tensors": Counter(), "bytes": Counter(), "fallback": []}
    with atomic_file(file) as temporary, closing(GGUFWriter(temporary, model.config.model_type)) as writer:
        _add_metadata(writer, model, kind)
        add_tokenizer(writer, tokenizer, model.config)
        for name, value in _tensors(model):
            stored = _stored_as(name, value, kind, is_tied(model))
            size = _add_info(writer, name, value, stored)
            written["tensors"][stored.name] += 1
            written["bytes"][stored.name] += size
            if value.ndim == 2 and stored.name == "F16" != kind:
                written["fallback"].append(name)
        _write(writer, model, kind)
    return {key: dict(value) if isinstance(value, Counter) else value for key, value in written.items()}


def _add_metadata(writer: GGUFWriter, model: PreTrainedModel, kind: Kind) -> None:
    config, shape = model.config, Shape.of(model.config)
    writer.add_type("model")
    writer.add_name(Path(config.name_or_path).name.removesuffix(".gguf"))
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    if config.model_type == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_vocab_size(config.vocab_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(shape.head)
        writer.add_value_length(shape.head)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(shape.head)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the file: their names and values, matrices as `[outputs, inputs]`."""
    config, shape = model.config, Shape.of(model.config)
    names = gguf.get_tensor_name_map(_ARCHITECTURES[config.model_type], config.num_hidden_layers)
    transposed = {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}
    if config.model_type == "llama" and config.rope_parameters["rope_type"] != "default":
        yield "rope_freqs.weight", _slower(model)
    for name, parameter in model.named_parameters():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, f"no name for {name}"
        value = parameter.T if id(parameter) in transposed else parameter
        if ".attn_q." in stored and config.model_type == "llama":
            value = _interleaved(value, shape.heads)
        elif ".attn_k." in stored:
            value = _interleaved(value, config.num_key_value_heads)
        yield stored, value


def _interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows of each head 0, d/2, 1, d/2+1, ...: each channel beside the one that it is rotated with."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _slower(model: PreTrainedModel) -> Tensor:
    """How many times slower than by the base alone each pair of a head's channels is rotated `[d/2]`."""
    frequencies = model.base_model.rotary_emb.inv_freq.double()
    exponents = torch.arange(len(frequencies), dtype=torch.float64) / len(frequencies)
    return (model.config.rope_parameters["rope_theta"] ** -exponents / frequencies).float()


def _stored_as(name: str, value: Tensor, kind: Kind, tied: bool) -> GGMLQuantizationType:
    """The type of a tensor in a file of a kind."""
    if value.ndim < 2 or name == "position_embd.weight":
        return GGMLQuantizationType.F32
    if kind in ("Q8_0", "Q4_0") and value.shape[-1] % _BLOCK:
        return GGMLQuantizationType.F16
    if kind == "Q4_0" and name == ("token_embd.weight" if tied else "output.weight"):
        return GGMLQuantizationType.Q8_0
    return GGMLQuantizationType[kind]


def _add_info(writer: GGUFWriter, name: str, value: Tensor, stored: GGMLQuantizationType) -> int:
    """Announces a tensor that `_write` writes; its bytes."""
    block, size = gguf.GGML_QUANT_SIZES[stored]
    total = value.numel() // block * size
    writer.add_tensor_info(name, value.shape, np.dtype(np.float32), total, raw_dtype=stored)
    return total


def _write(writer: GGUFWriter, model: PreTrainedModel, kind: Kind) -> None:
    """Writes all, quantizing each tensor when its turn comes: only one is in memory twice."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, value in _tensors(model):
        whole = value.detach().float().cpu().contiguous().numpy()
        writer.write_tensor_data(gguf.quants.quantize(whole, _stored_as(name, value, kind, is_tied(model))))
    writer.flush()
