"""Models and tokenizers from the hub, its local cache, a folder, a GGUF file, or a bare configuration."""

import copy
import json
import pickle
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lightgpt2.errors import Problem, UserError
from lightgpt2.models import adapters
from lightgpt2.models.families import ENCODERS, FAMILIES, check_family
from lightgpt2.models.standalone.modeling_lightgpt2 import light_class

_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.safetensors.index.json")


def _is_path(source: str) -> bool:
    """True if the source exists as a file or folder, or no hub id looks like it."""
    path, starts = Path(source), (".", "/", "~", "checkpoints/")
    return path.exists() or source.startswith(starts) or source.count("/") > 1 or source == "checkpoints"


def _arguments(source: str) -> dict[str, Any]:
    """The source as transformers' arguments; a GGUF file is named beside its folder."""
    path = Path(source).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": str(path) if _is_path(source) else source}


def _check_folder(source: str, key: str) -> None:
    """Raise a `UserError` naming what a local model folder lacks, before transformers tries the hub with its path."""
    path = Path(source).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return
    if not path.exists():
        raise UserError(f"{key}: {source} does not exist; give a hub id, a model folder or a .gguf file")
    if path.is_file():
        raise UserError(f"{key}: {source} is a file but not a .gguf file; give the model's folder")
    if adapters.is_adapter(source) and not (path / "config.json").is_file():
        fix = "give the model that they are merged into (model/ beside it), or train on with lightgpt2.methods.LoRA"
        raise UserError(f"{key}: {source} is a folder of adapters; {fix}")
    if not (path / "config.json").is_file():
        raise UserError(f"{key}: {source} has no config.json; give a Hugging Face model folder")
    if not any(file for pattern in _WEIGHT_FILES for file in path.glob(pattern)):
        raise UserError(f"{key}: {source} has no weights (*.safetensors); give a complete model folder")


@contextmanager
def _explained(source: str, key: str, named: bool = True) -> Iterator[None]:
    """Turn what the libraries raise into one line with a fix; `named` if the source is a model's name."""
    try:
        yield
    except Exception as error:  # of any kind, for a folder or a configuration that is wrong
        raise UserError([Problem(key, *_explanation(error, source, named))]) from error


def _explanation(error: Exception, source: str, named: bool) -> tuple[str, str]:
    """What is wrong with a source that could not be loaded, and the fix."""
    if isinstance(error, SafetensorError | json.JSONDecodeError | zlib.error):
        return f"{source} is damaged ({error})", "fetch or write it again"
    if isinstance(error, pickle.UnpicklingError):
        what = f"{source} has its weights in a pickle that is damaged or would run code"
        return what, "give a folder with *.safetensors"
    if "trust_remote_code" in str(error):
        where = "model.trust_remote_code to true (lightgpt2 benchmark: --trust-remote-code)"
        return f"{source} brings code of its own", f"read it, and if you trust it set {where}"
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if named and not _is_path(source):
        what = f"{source!r} could not be loaded from the hub or its local cache ({reason})"
        return what, "check the name and the network, or give the path of a local folder"
    return f"{source} could not be loaded ({reason})", "give a complete model folder" if named else "correct it"


def load_config(source: str | dict[str, Any], key: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a model that is named, or described by a dictionary of values with `model_type`.

    Raises:
        UserError: It cannot be loaded, or its family is not supported; the message names `key`.
    """
    if isinstance(source, dict):
        values = dict(source)
        model_type = values.pop("model_type", None)
        if model_type is None:
            types = " or ".join(FAMILIES)
            raise UserError(f"{key}: a model given as a configuration needs model_type, for example {types}")
        with _explained(f"model_type {model_type}", key, named=False):
            config = AutoConfig.for_model(model_type, **values)
        if unknown := [name for name in values if not hasattr(config.__class__(), name)]:
            raise UserError(f"{key}: a {model_type} configuration has no {', '.join(unknown)}; correct or remove that")
    else:
        config = copy.deepcopy(_named_config(source, key, trust_remote_code))
    check_family(config, key)
    for name, sizes in getattr(config, "lightgpt2", {}).items():
        if isinstance(sizes, list) and len(sizes) != config.num_hidden_layers:
            what = f"{source} has sizes of {len(sizes)} layers (lightgpt2.{name}) and {config.num_hidden_layers} layers"
            raise UserError([Problem(key, what, "give a complete model folder")])
    return config


@lru_cache(maxsize=8)
def _named_config(source: str, key: str, trust_remote_code: bool) -> PretrainedConfig:
    """Cached, since reading a GGUF file's takes seconds and several parts of the program ask."""
    if _is_path(source):
        _check_folder(source, key)
    with _explained(source, key):
        config: PretrainedConfig = AutoConfig.from_pretrained(**_arguments(source), trust_remote_code=trust_remote_code)
    if source.endswith(".gguf") and config.model_type in FAMILIES:
        FAMILIES[config.model_type].correct_gguf(config)
    return config


def _model_class(config: PretrainedConfig) -> Any:
    """This project's own code if the configuration asks for it; the copy of it in the model's folder never runs."""
    return light_class(config.model_type) if hasattr(config, "lightgpt2") else AutoModelForCausalLM


def new_model(config: PretrainedConfig, key: str = "model") -> PreTrainedModel:
    """A model of this shape in FP32 with random weights from torch's global generator; a UserError if it contradicts itself."""
    model_class = _model_class(config)
    make = model_class.from_config if model_class is AutoModelForCausalLM else model_class._from_config
    with _explained("the configuration", key, named=False):
        model: PreTrainedModel = make(copy.deepcopy(config), dtype=torch.float32)
    return model


def _load(model_class: Any, source: str, key: str, unread: str = "-", **options: Any) -> PreTrainedModel:
    """Load a model that must have all its weights but those whose names begin with `unread`."""
    model: PreTrainedModel
    with _explained(source, key):
        model, info = model_class.from_pretrained(**_arguments(source), output_loading_info=True, **options)
    # transformers takes random ones and only warns: a quality figure of such a model means nothing.
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith(unread)):
        raise UserError(f"{key}: {source} lacks {len(missing)} of its weights, first {missing[0]}; fetch it again")
    return model


def load_model(source: str, key: str, trust_remote_code: bool = False, **options: Any) -> PreTrainedModel:
    """A pretrained model: in FP32, a GGUF file dequantized, a folder in NF4 or INT8 as it is.

    Args:
        source: Hub id, folder or GGUF file.
        key: Config key to name in errors.
        trust_remote_code: Whether code in the model's folder may run.
        options: Further arguments of transformers' `from_pretrained`.

    Raises:
        UserError: It cannot be loaded, is not of a supported family, or lacks weights.
    """
    config = load_config(source, key, trust_remote_code)
    options = {"dtype": torch.float32, "trust_remote_code": trust_remote_code, **options}
    if gguf := "gguf_file" in _arguments(source):
        if "quantization_config" in options:
            raise UserError(f"{key}: {source} is quantized already (GGUF); give a folder with its weights in full")
        options = {"config": config, **options, "quantization_config": GgufConfig(dequantize=True)}
    model = _load(_model_class(config), source, key, **options)
    if gguf:
        model.name_or_path = source  # transformers notes the folder, where adapters of this model would look in vain
        model.config.__dict__.pop("quantization_config", None)  # it refuses to save what still says it is GGUF
        for name in ("hf_quantizer", "quantization_method", "is_quantized"):
            model.__dict__.pop(name, None)
    allow_packing(model, False)
    return model


def is_encoder(source: str, key: str) -> bool:
    """True for a model that `load_encoder` loads; False if its configuration cannot be read, as `load_config` will say."""
    try:
        return _named_config(source, key, False).model_type in ENCODERS
    except UserError:
        return False


def load_encoder(source: str, key: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """An encoder in FP32, with its classification head if its configuration names one; and its tokenizer."""
    config = _named_config(source, key, False)
    if config.model_type not in ENCODERS:
        types = " or ".join(ENCODERS)
        raise UserError(f"{key}: {source} is of type {config.model_type!r}; use an encoder of type {types}")
    classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    model_class = AutoModelForSequenceClassification if classifies else AutoModel
    # A base model's pooler is not trained by every recipe, and nothing here reads it.
    model = _load(model_class, source, key, "-" if classifies else "pooler.", dtype=torch.float32)
    with _explained(source, key):
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(**_arguments(source))
    return model.eval(), tokenizer


def allow_packing(model: PreTrainedModel, allowed: bool) -> None:
    """Set whether NF4 layers may use a kernel that bitsandbytes has for some processors (AVX-512 BF16).

    It packs the weights anew at the first forward pass in eval mode, computes in bfloat16, and lets no gradient through: fast,
    but unfit for training and scoring.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = allowed


def load_tokenizer(source: str, key: str, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer that belongs to a model; a `UserError` if it has neither a beginning- nor an end-of-text token."""
    tokenizer: PreTrainedTokenizerFast
    with _explained(source, key):
        tokenizer = AutoTokenizer.from_pretrained(**_arguments(source), trust_remote_code=trust_remote_code)
    # transformers gives an empty tokenizer for a folder that lacks the tokenizer's files.
    if set(tokenizer("text", add_special_tokens=False)["input_ids"]) <= {tokenizer.unk_token_id}:
        raise UserError(f"{key}: {source} has no tokenizer (tokenizer.json); add it, or name one with data.tokenizer")
    if separator_id(tokenizer) is None:
        raise UserError(f"{key}: the tokenizer of {source} has no bos_token and no eos_token to separate documents")
    return tokenizer


def separator_id(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The token put before every document: the tokenizer's beginning-of-text, else its end-of-text."""
    token: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return token


def load_exported_gguf(folder: Path, key: str) -> PreTrainedModel:
    """The model of a GGUF file with the configuration that lies beside it, in eval mode.

    transformers reads neither GPT-2's positions nor biases or rotary scaling from the file.
    """
    with _explained(str(folder), key):
        config = AutoConfig.from_pretrained(folder)
    return load_model(str(folder / "model.gguf"), key, config=config).eval()
