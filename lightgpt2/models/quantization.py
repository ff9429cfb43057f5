"""Models in NF4 and INT8 by bitsandbytes, through transformers: quantized, counted, and back to full precision.

NF4: 4-bit NormalFloat in blocks of 64 with doubly quantized scales (Dettmers et al. 2023, arXiv:2305.14314). INT8: LLM.int8(),
a scale for each output channel, columns with outliers in half precision (Dettmers et al. 2022, arXiv:2208.07339).
"""

import copy
import warnings
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from lightgpt2.errors import UserError
from lightgpt2.models.adapted import adapted_config, load_adapted
from lightgpt2.models.adapters import is_adapter
from lightgpt2.models.families import (
    CLASSIFICATION,
    LINEAR,
    block_linears,
    family_of,
    is_tied,
    predicts,
    unquantized_head,
)
from lightgpt2.models.loading import allow_packing, carry_generation, load_config, load_model, new_model, untie
from lightgpt2.models.operations import KINDS, Operation
from lightgpt2.models.saving import save_model

Format = Literal["nf4", "int8"]
DYNAMIC = "dynamic-int8"  # PyTorch's own: INT8 weights, inputs rounded as they come, on processors
_BLOCK = 64  # weights that share one scale in NF4
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def settings(form: Format, config: PretrainedConfig, cuda: bool | None = None) -> BitsAndBytesConfig:
    """The library's settings for a format, with which a model's head stays as it is.

    NF4 weights are multiplied in half precision on CUDA (by default if there is a card), and in FP32 on processors, most of
    which are slow with less.
    """
    _check_called(form, config)
    # transformers leaves out a vocabulary head by itself
    kept = [*family_of(config).head_parts] if predicts(config.architectures) == CLASSIFICATION else None
    if form == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    fast = torch.cuda.is_available() if cuda is None else cuda
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=kept,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if fast else torch.float32,
    )


def _check_called(form: str, config: PretrainedConfig) -> None:
    """Raise a `UserError` if other layers cannot take the place of a model's linear layers."""
    if family_of(config).recurrent:
        what = f"one kernel reads all weights of a model of type {config.model_type}, and takes no other layers"
        raise UserError(f"{form}: {what}; choose fp32, or export to onnx-int8")


def quantization_of(config: PretrainedConfig) -> str | None:
    """The format of a model's weights: `nf4`, `int8`, `int4`, another method's name; None for plain weights."""
    if stored := getattr(config, "lightgpt2", {}).get("stored"):
        return str(stored)
    found: Any = getattr(config, "quantization_config", None)
    if found is None:
        return None
    values: dict[str, Any] = found if isinstance(found, dict) else found.to_dict()
    if values.get("load_in_8bit"):
        return "int8"
    if values.get("load_in_4bit"):
        return str(values.get("bnb_4bit_quant_type", "fp4"))
    return str(values.get("quant_method", "unknown"))


def stored_precision(source: str, key: str, trust_remote_code: bool = False) -> str | None:
    """The format of a model's file: as `quantization_of`, or `gguf`."""
    config = inference_config(source, key, trust_remote_code)
    return "gguf" if source.endswith(".gguf") else quantization_of(config)


def inference_config(source: str, key: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of what `load_for_inference` loads."""
    return (adapted_config if is_adapter(source) else load_config)(source, key, trust_remote_code)


def load_for_inference(
    source: str, key: str, precision: str, attention: str, device: str, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A pretrained model as it is deployed, on its device (`cpu` or `cuda:N`), in eval mode; adapters stay beside their base.

    `precision` is `fp32`, `bf16`, `fp16`, bitsandbytes' `int8` or `nf4`, or `DYNAMIC`; a quantized folder keeps its own.
    `attention` is transformers' `attn_implementation`; `key` is named in errors.
    """
    config, form = inference_config(source, key, trust_remote_code), cast(Format, precision)
    options: dict[str, Any] = {"attn_implementation": attention}
    if getattr(config, "quantization_config", None) is not None and not source.endswith(".gguf"):
        options |= {"dtype": "auto", "device_map": {"": device}}
    elif (
        precision in (*_DTYPES, DYNAMIC) or quantization_of(config) == precision
    ):  # this project's integers: computed in FP32
        options["dtype"] = _DTYPES.get(precision, torch.float32)
    else:
        cuda = device != "cpu"  # bitsandbytes' INT8 kernels compute in FP16; a CPU is faster in FP32
        fast = torch.float16 if form == "int8" else torch.bfloat16
        options |= {"dtype": fast if cuda else torch.float32, "device_map": {"": device}}
        options["quantization_config"] = settings(form, config, cuda)
    load = load_adapted if is_adapter(source) else load_model
    model = load(source, key, trust_remote_code, **options).eval()
    if precision == DYNAMIC:
        return _quantized_dynamically(model)
    if "device_map" not in options:
        return model.to(device)
    if "quantization_config" in options:
        coverage(model, form)
    from bitsandbytes.functional import has_avx512bf16

    allow_packing(model, has_avx512bf16())  # the kernel that `load_model` forbids, if the processor has it
    return model


def _quantized_dynamically(model: PreTrainedModel) -> PreTrainedModel:
    """The model with the blocks' linear layers quantized by PyTorch (`torch.ao`); a `UserError` if it passes one over."""
    from torch.ao.nn.quantized.dynamic import Linear
    from torch.ao.quantization import quantize_dynamic

    _check_called(DYNAMIC, model.config)
    names = block_linears(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will move to torchao
        made: PreTrainedModel = quantize_dynamic(model, {*names}, dtype=torch.qint8, inplace=True)
    if left := [name for name in names if not isinstance(made.get_submodule(name), Linear)]:
        what = f"PyTorch quantizes nn.Linear, and {left[0]} is {type(made.get_submodule(left[0])).__name__}"
        raise UserError(f"{DYNAMIC}: {what}; choose another precision")
    return made


def load_quantized(
    source: str, key: str, form: Format, trust_remote_code: bool = False, **options: Any
) -> PreTrainedModel:
    """A model in full precision whose linear layers are all quantized while it loads; options as for `load_model`."""
    config = load_config(source, key, trust_remote_code, options.get("auto_classes", ()), new_head=True)
    model = load_model(source, key, trust_remote_code, quantization_config=settings(form, config), **options)
    coverage(model, form)
    # What was not quantized is, on processors, a view into the mapped file, all of which stays resident for it.
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.is_floating_point():
            parameter.data = parameter.data.clone()
    return model


def _quantized(model: PreTrainedModel) -> dict[str, Any]:
    """The quantized linear layers by name."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt  # slow to import, and needed for this only

    return {name: m for name, m in model.named_modules() if isinstance(m, Linear4bit | Linear8bitLt)}


def check_blocks(model: PreTrainedModel, form: Format) -> None:
    """Raise a `UserError` if a format's blocks of weights do not end where the rows of the model's layers do.

    On processors with AVX-512 bitsandbytes 0.50 takes the wrong scales where an NF4 block goes on in the next row.
    """
    _check_called(form, model.config)
    layers: dict[str, Any] = {**block_linears(model)}
    inputs = {m.nx if isinstance(m, Conv1D) else m.in_features for m in layers.values()}
    if form == "nf4" and (broken := sorted(n for n in inputs if n % _BLOCK)):
        what = (
            f"layers with {', '.join(map(str, broken))} inputs are computed wrongly by bitsandbytes on some processors"
        )
        fix = f"choose int8, or a model whose width and neurons are multiples of {_BLOCK}"
        raise UserError(f"nf4: {what}; {fix}")


def coverage(model: PreTrainedModel, form: Format) -> Operation:
    """The ledger's record of a quantized model: `matched` of `linears` layers, and in `kept` those that were left and why.

    A `UserError` if a layer was passed over that should not have been, or cannot be computed everywhere.
    """
    done = _quantized(model)
    left = [n for n, m in model.named_modules() if isinstance(m, LINEAR) and n not in done and ".lora_" not in n]
    wide = {*(model._keep_in_fp32_modules or ())}  # parts of names
    kept = {name: "transformers keeps it in FP32" for name in left if wide & {*name.split(".")}}
    kept |= {name: why for name, why in unquantized_head(model).items() if name in left}
    if not done or len(kept) < len(left):
        passed = ", ".join(sorted(set(left) - set(kept))) or "all"
        raise UserError(f"{form}: linear layers were left in full precision ({passed}); this model is not supported")
    check_blocks(model, form)
    return KINDS[form].record(matched=len(done), linears=len(done) + len(left), kept=kept)


def quantize_folder(
    source: Path, target: Path, form: Format, tokenizer: PreTrainedTokenizerFast, trust_remote_code: bool = False
) -> Operation:
    """Write the quantized sibling of a model folder, which plain transformers loads; returns the ledger's record."""
    model = load_quantized(str(source), "PostTrainingQuantization", form, trust_remote_code)
    save_model(model, tokenizer, target)
    return coverage(model, form)


@torch.no_grad()
def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """A model in full precision that computes what an NF4 model computes."""
    from bitsandbytes.functional import dequantize_4bit

    config = copy.deepcopy(model.config)
    del config.quantization_config
    plain = new_model(config)
    if not is_tied(model):
        untie(plain)
    carry_generation(model, plain)
    plain.name_or_path = model.name_or_path
    weights = model.state_dict()  # which also undoes the packing that some processors' kernels want
    for name, module in _quantized(model).items():
        weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
        weights[f"{name}.weight"] = weight.T if isinstance(plain.get_submodule(name), Conv1D) else weight
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    return plain.eval()
