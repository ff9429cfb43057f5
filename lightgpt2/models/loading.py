"""Models and tokenizers from the hub, its local cache, a folder, a GGUF file, or a bare configuration."""

import copy
import json
import pickle
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lightgpt2.errors import UserError
from lightgpt2.models.families import check_family

Result = TypeVar("Result")

_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.safetensors.index.json")


def _is_path(source: str) -> bool:
    """Whether the source is meant as a file or folder: it exists, or no hub id looks like it."""
    path = Path(source)
    return (
        path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1 or path.parts[0] == "checkpoints"
    )


def _arguments(source: str) -> dict[str, Any]:
    """Positional source and file name as transformers wants them; a GGUF file is named beside its folder."""
    path = Path(source).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": str(path) if _is_path(source) else source}


def _check_folder(source: str, key: str) -> None:
    """Names what a local model folder lacks, before transformers tries the hub with its path."""
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"{key}: {source} does not exist; give a hub id, a model folder or a .gguf file")
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"{key}: {source} is a file but not a .gguf file; give the model's folder")
        return
    if not (path / "config.json").is_file():
        raise UserError(f"{key}: {source} has no config.json; give a Hugging Face model folder")
    if not any(file for pattern in _WEIGHT_FILES for file in path.glob(pattern)):
        raise UserError(f"{key}: {source} has no weights (*.safetensors); give a complete model folder")


def _guarded(load: Callable[[], Result], source: str, key: str, named: bool = True) -> Result:
    """Runs one load and turns what the libraries raise into one line with a fix.

    Args:
        load: What to run.
        source: What is loaded.
        key: Config key to name in errors.
        named: Whether `source` is the name of a model, and not a description of one.
    """
    try:
        return load()
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{key}: {source} is damaged ({error}); fetch or write it again") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{key}: {source} has its weights in a pickle that is damaged or would run code; give a folder with "
            "*.safetensors"
        ) from error
    except (
        OSError,
        ValueError,
        ImportError,
        RuntimeError,
        KeyError,
        AttributeError,
        TypeError,
        StrictDataclassError,
    ) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{key}: {source} brings code of its own; read it, and if you trust it set model.trust_remote_code to "
                "true (lightgpt2 benchmark: --trust-remote-code)"
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if named and not _is_path(source):
            raise UserError(
                f"{key}: {source!r} could not be loaded from the hub or its local cache ({reason}); check the name and "
                f"the network, or give the path of a local folder: --{key} path/to/folder"
            ) from error
        fix = "give a complete model folder" if named else "correct it"
        raise UserError(f"{key}: {source} could not be loaded ({reason}); {fix}") from error


def load_config(source: str | dict[str, Any], key: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a model that is named, or described by a dictionary with `model_type`.

    Args:
        source: Hub id, folder, GGUF file, or a dictionary of configuration values.
        key: Config key to name in errors.
        trust_remote_code: Whether code in the model's folder may run.

    Raises:
        UserError: It cannot be loaded, or its family is not supported.
    """
    if isinstance(source, dict):
        values = dict(source)
        model_type = values.pop("model_type", None)
        if model_type is None:
            raise UserError(f"{key}: a model given as a configuration needs model_type, for example gpt2 or llama")
        config = _guarded(
            lambda: AutoConfig.for_model(model_type, **values), f"model_type {model_type}", key, named=False
        )
        unknown = [name for name in values if not hasattr(config.__class__(), name)]
        if unknown:
            raise UserError(f"{key}: a {model_type} configuration has no {', '.join(unknown)}; correct or remove that")
    else:
        config = copy.deepcopy(_named_config(source, key, trust_remote_code))
    check_family(config, key)
    return config


@lru_cache(maxsize=8)
def _named_config(source: str, key: str, trust_remote_code: bool) -> PretrainedConfig:
    """Cached, since reading a GGUF file's takes seconds and several parts of the program ask."""
    if _is_path(source):
        _check_folder(source, key)
    return _guarded(
        lambda: AutoConfig.from_pretrained(**_arguments(source), trust_remote_code=trust_remote_code), source, key
    )


def new_model(config: PretrainedConfig, key: str = "model") -> PreTrainedModel:
    """A model of this shape with freshly drawn weights in FP32, from torch's global generator.

    Args:
        config: The shape.
        key: Config key to name in errors.

    Raises:
        UserError: The configuration contradicts itself.
    """
    return _guarded(
        lambda: AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32),
        "the configuration",
        key,
        named=False,
    )


def load_model(source: str, key: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """A pretrained model in FP32, dequantized where its file is quantized.

    Args:
        source: Hub id, folder or GGUF file.
        key: Config key to name in errors.
        trust_remote_code: Whether code in the model's folder may run.

    Raises:
        UserError: It cannot be loaded, is not of a supported family, or its weights do not fit its configuration.
    """
    load_config(source, key, trust_remote_code)
    model = _load_whole(source, key, trust_remote_code, dtype=torch.float32)
    if getattr(model.config, "quantization_config", None) is not None:
        _forget_quantization(model)
    return model


def _load_whole(source: str, key: str, trust_remote_code: bool, **options: Any) -> PreTrainedModel:
    """Loads with transformers, dequantizes GGUF, and refuses a model that lacks weights."""
    arguments = _arguments(source)
    if "gguf_file" in arguments:
        arguments["quantization_config"] = GgufConfig(dequantize=True)
    loaded: tuple[PreTrainedModel, dict[str, Any]] = _guarded(
        lambda: AutoModelForCausalLM.from_pretrained(
            **arguments, **options, trust_remote_code=trust_remote_code, output_loading_info=True
        ),
        source,
        key,
    )
    model, info = loaded
    # transformers draws missing weights at random and only warns: a quality figure of such a model means nothing.
    if info["missing_keys"]:
        names = sorted(info["missing_keys"])
        raise UserError(f"{key}: {source} lacks {len(names)} of its weights, first {names[0]}; fetch it again")
    return model


def stored_precision(source: str, key: str, trust_remote_code: bool = False) -> str | None:
    """What a model's file is quantized to: `nf4`, `int8`, `gguf`, or another method's name; None for plain weights.

    Args:
        source: Hub id, folder or GGUF file.
        key: Config key to name in errors.
        trust_remote_code: Whether code in the model's folder may run.

    Raises:
        UserError: Its configuration cannot be loaded.
    """
    config = load_config(source, key, trust_remote_code)
    if "gguf_file" in _arguments(source):
        return "gguf"
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    values = stored if isinstance(stored, dict) else stored.to_dict()
    if values.get("load_in_8bit"):
        return "int8"
    if values.get("load_in_4bit"):
        return str(values.get("bnb_4bit_quant_type", "fp4"))
    return str(values.get("quant_method"))


def load_for_inference(
    source: str, key: str, precision: str, attention: str, device: str, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A pretrained model as it is deployed: in half precision, or quantized; on its device.

    Args:
        source: Hub id, folder or GGUF file; a folder that is quantized keeps its own quantization.
        key: Config key to name in errors.
        precision: `fp32`, `bf16`, `fp16`, `int8` or `nf4`. The last two are bitsandbytes'.
        attention: What transformers calls `attn_implementation`.
        device: `cpu` or `cuda:N`.
        trust_remote_code: Whether code in the model's folder may run.

    Raises:
        UserError: It cannot be loaded, or there was nothing in it to quantize.
    """
    stored = stored_precision(source, key, trust_remote_code)
    options: dict[str, Any] = {"attn_implementation": attention}
    if stored not in (None, "gguf"):
        options |= {"dtype": "auto", "device_map": {"": device}}
    elif precision in _DTYPES:
        options["dtype"] = _DTYPES[precision]
    else:
        # bitsandbytes' INT8 kernels compute in FP16; a CPU does so in FP32.
        fast = torch.float16 if precision == "int8" else torch.bfloat16
        options |= {"dtype": torch.float32 if device == "cpu" else fast, "device_map": {"": device}}
        options["quantization_config"] = _quantization(precision, options["dtype"])
    model = _load_whole(source, key, trust_remote_code, **options)
    if "device_map" not in options:
        model.to(device)
    elif not any(hasattr(p, "quant_state") or hasattr(p, "SCB") for p in model.parameters()) and stored is None:
        raise UserError(f"{key}: {source} has no layer that can be quantized to {precision}")
    return model.eval()


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _quantization(precision: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Settings of bitsandbytes for a model that is quantized while it loads."""
    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=precision,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _forget_quantization(model: PreTrainedModel) -> None:
    """Makes a dequantized model an ordinary one: transformers refuses to save what still says it is GGUF."""
    del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if name in model.__dict__:
            delattr(model, name)


def load_tokenizer(source: str, key: str, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer that belongs to a model.

    Args:
        source: Hub id, folder or GGUF file.
        key: Config key to name in errors.
        trust_remote_code: Whether code in the model's folder may run.

    Raises:
        UserError: There is none, it knows no text, or it has neither a beginning- nor an end-of-text token.
    """
    tokenizer: PreTrainedTokenizerFast = _guarded(
        lambda: AutoTokenizer.from_pretrained(**_arguments(source), trust_remote_code=trust_remote_code), source, key
    )
    # transformers makes an empty tokenizer of a folder that lacks the tokenizer's files.
    if set(tokenizer("text", add_special_tokens=False)["input_ids"]) <= {tokenizer.unk_token_id}:
        raise UserError(f"{key}: {source} has no tokenizer (tokenizer.json); add it, or name one with data.tokenizer")
    if separator_id(tokenizer) is None:
        raise UserError(f"{key}: the tokenizer of {source} has no bos_token and no eos_token to separate documents")
    return tokenizer


def separator_id(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The token put before every document: the tokenizer's beginning-of-text, else its end-of-text."""
    token: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return token
