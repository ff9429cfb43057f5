"""Models from the hub, its local cache, a folder, a GGUF file, or a bare configuration."""

import copy
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lightgpt2.errors import Problem, UserError, cut, refuse
from lightgpt2.models import gguf_files
from lightgpt2.models.axes import uneven_sizes
from lightgpt2.models.families import (
    CLASSIFICATION,
    ENCODERS,
    FAMILIES,
    check_family,
    class_for,
    family_of,
    is_tied,
    predicts,
)
from lightgpt2.models.sources import arguments, check_folder, explained, gguf_file, is_path, source_folder, stored_types
from lightgpt2.models.standalone.modeling_lightgpt2 import light_class

_HEADS = (
    "cls.",
    "vocab_",
    "classifier.",
    "qa_outputs.",
    "lm_head.",
    "embed_out.",
    "decoder.",
)  # that a model was trained with
_CONSTANTS = (".masked_bias", ".inv_freq", ".position_ids")  # that old files hold beside the weights
_INTEGERS = ("I", "U", "BOOL")  # how the names of their types begin in safetensors
_LAYERS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers")
_SIZES = (
    *_LAYERS, "hidden_size", "embedding_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "n_inner", "ffn_dim", "word_embed_proj_dim", "max_position_embeddings", "vocab_size", "decoder_attention_heads",
    "encoder_ffn_dim", "decoder_ffn_dim", "d_ff",
)  # fmt: skip
_DEEPEST = 10_000  # layers; some configurations list something for each


def load_config(
    source: str | dict[str, Any],
    key: str,
    trust_remote_code: bool = False,
    auto_classes: tuple[str, ...] = (),
    new_head: bool = False,
) -> PretrainedConfig:
    """The configuration of a model that is named, or described by a dictionary of values with `model_type`.

    Args:
        source: Hub id, folder, GGUF file, or values.
        key: Config key to name in errors.
        trust_remote_code: Whether code in the model's folder may run.
        auto_classes: What the model may predict, as names of transformers' classes: the first one that its family has, which
            `architectures` then says. Empty: what it does.
        new_head: Whether it may lack the head of a classifier.

    Raises:
        UserError: It cannot be loaded, lacks its head, or its family is not supported; the message names `key`.
    """
    if isinstance(source, dict):
        values = dict(source)
        model_type = values.pop("model_type", None)
        if model_type is None:
            types = ", ".join(sorted(FAMILIES))
            raise UserError(f"{key}: a model given as a configuration needs model_type, for example {types}")
        if not isinstance(model_type, str):
            raise UserError(f"{key}.model_type: must be text, got {cut(repr(model_type))}")
        _check_sizes(values, model_type, key)
        with explained(f"model_type {model_type}", key, named=False):
            config = AutoConfig.for_model(model_type, **values)
        known, family = config.__class__(), FAMILIES.get(model_type)
        if unknown := [name for name in values if not hasattr(known, name)]:
            old = family.old_rope(config.rope_parameters) if family and hasattr(known, "rope_parameters") else {}
            moved = old.keys() & {*unknown}
            fix = f"say it in rope_parameters: {config.rope_parameters}" if moved else "correct or remove that"
            raise UserError(f"{key}: a {model_type} configuration has no {', '.join(unknown)}; {fix}")
    else:
        config = copy.deepcopy(_named_config(source, key, trust_remote_code))
    auto_class = check_family(config, key, *auto_classes)
    if auto_class == CLASSIFICATION and isinstance(source, str) and not new_head and not has_head(config, auto_class):
        named = ", ".join(config.architectures or ["none"])
        what = f"{source} has no classification head (its architecture: {named})"
        raise UserError([Problem(key, what, "fine-tune it with lightgpt2.methods.FineTune first")])
    if auto_class == CLASSIFICATION and (kind := config.problem_type) not in (None, "single_label_classification"):
        what = f"{source} is a model for {kind}, and here each text has one class"
        raise UserError([Problem(key, what, "remove problem_type from its config.json")])
    if auto_class:
        config.architectures = [class_for(config, auto_class, key)]
    _check_uneven(config, str(source), key)
    return config


def _check_uneven(config: PretrainedConfig, source: str, key: str) -> None:
    """Refuses sizes that differ from layer to layer and are not those of as many layers as there are."""
    family = family_of(config)
    for name, sizes in uneven_sizes(config).items():
        counts = family.attentions(config) if name == "heads" else family.depths(config)
        if (found := {place: len(values) for place, values in sizes.items()}) != counts:
            said, wanted = (" and ".join(map(str, each.values())) for each in (found, counts))
            what = f"{source} has sizes of {said} layers (lightgpt2.{name}) and {wanted} layers"
            raise UserError([Problem(key, what, "give a complete model folder")])


def has_head(config: PretrainedConfig, auto_class: str) -> bool:
    """True if the configuration says that the model predicts what this class of transformers does."""
    return predicts(config.architectures) == auto_class


def _check_sizes(values: dict[str, Any], model_type: str, key: str) -> None:
    """Refuses sizes with which transformers would divide by zero, build nothing, or never end."""
    own = CONFIG_MAPPING[model_type].attribute_map if model_type in CONFIG_MAPPING else {}
    problems = []
    for name in (each for size in _SIZES for each in {size, own.get(size, size)} if each in values):
        layers, value = name in {own.get(each, each) for each in _LAYERS}, values[name]
        if value is not None and (type(value) is not int or value < 1 or (layers and value > _DEEPEST)):
            wanted = f"from 1 to {_DEEPEST:,}" if layers else "of at least 1"
            problems.append(Problem(f"{key}.{name}", f"must be a whole number {wanted}, got {cut(repr(value))}"))
    refuse(problems)


@lru_cache(maxsize=8)
def _named_config(source: str, key: str, trust_remote_code: bool) -> PretrainedConfig:
    """Cached, since reading a GGUF file's takes seconds and several parts of the program ask."""
    if is_path(source):
        check_folder(source, key)
    with explained(source, key):
        config: PretrainedConfig = AutoConfig.from_pretrained(**arguments(source), trust_remote_code=trust_remote_code)
    if (file := gguf_file(source)) and config.model_type in FAMILIES:
        FAMILIES[config.model_type].correct_gguf(config)
        gguf_files.complete(config, file, key)
    return config


def _model_class(config: PretrainedConfig) -> Any:
    """This project's own code if the configuration asks for it; the copy of it in the model's folder never runs."""
    auto_class = predicts(config.architectures)
    if code := family_of(config).code:
        return getattr(code, class_for(config, auto_class, "model"))
    if hasattr(config, "lightgpt2"):
        return light_class(config.model_type, auto_class)
    return getattr(transformers, auto_class)


def new_model(config: PretrainedConfig, key: str = "model") -> PreTrainedModel:
    """A model of this shape in FP32 with random weights from torch's global generator; a UserError if it contradicts itself."""
    model_class = _model_class(config)
    make = model_class._from_config if issubclass(model_class, PreTrainedModel) else model_class.from_config
    with explained("the configuration", key, named=False):
        model: PreTrainedModel = make(copy.deepcopy(config), dtype=torch.float32)
    model.config.architectures = copy.copy(config.architectures)
    for parameter in family_of(model).fixed(model):
        parameter.requires_grad_(False)
    return model


def carry_generation(old: PreTrainedModel, new: PreTrainedModel) -> None:
    """Gives a model the generation settings of another; a classifier has none."""
    if (settings := getattr(old, "generation_config", None)) is not None:
        new.generation_config = copy.deepcopy(settings)


def new_like(model: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """A model of another configuration for weights that are taken from this one, with its device, mode and generation settings.

    The new head is tied to the embedding exactly if the old one is; the configuration does not decide.
    """
    with torch.random.fork_rng(devices=[]):  # its first weights are written over
        made = new_model(config).to(model.device)
    if not is_tied(model):
        untie(made)
    carry_generation(model, made)
    return made.train(model.training)


def untie(model: PreTrainedModel) -> None:
    """Unties a model's vocabulary head from its embedding, by a copy of the weight."""
    if not is_tied(model):
        return
    head: Any = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.all_tied_weights_keys.pop(f"{name}.weight", None)


def _load(model_class: Any, source: str, key: str, unread: tuple[str, ...] = (), **options: Any) -> PreTrainedModel:
    """Load a model that must have all its weights, and use all that it has, but those whose names begin with `unread`."""
    model: PreTrainedModel
    how: Any = {"output_loading_info": True, "ignore_mismatched_sizes": True, **options}
    with explained(source, key):
        model, info = model_class.from_pretrained(**arguments(source), **how)
    fixed = {id(parameter.requires_grad_(False)) for parameter in family_of(model).fixed(model)}
    unread += tuple(name for name, parameter in model.named_parameters() if id(parameter) in fixed)
    # transformers takes random ones and only warns: a quality figure of such a model means nothing.
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith(unread)):
        fix = "fetch it again"
        if others := sorted(info["unexpected_keys"]):
            fix = f"it has {len(others)} others, first {others[0]}: rename them if that is the same, or {fix}"
        raise UserError(f"{key}: {source} lacks {len(missing)} of its weights, first {missing[0]}; {fix}")
    if wrong := sorted(info["mismatched_keys"]):
        name, found, wanted = wrong[0][0], *(tuple(shape) for shape in wrong[0][1:])
        what = f"{source} has {len(wrong)} weights of other shapes than its config.json says"
        raise UserError(f"{key}: {what}, first {name}: {found}, not {wanted}; correct config.json")
    left = sorted(
        name for name in info["unexpected_keys"] if not (name.startswith(unread) or name.endswith(_CONSTANTS))
    )
    if left:
        what = f"{source} has {len(left)} weights that its config.json has no place for: {', '.join(left[:5])}"
        raise UserError(f"{key}: {what}{', ...' if len(left) > 5 else ''}; correct config.json, or remove them")
    return model


def _check_types(source: str, config: PretrainedConfig, key: str) -> None:
    """Refuse integers where nothing says what numbers they stand for: transformers would take them as they are."""
    if hasattr(config, "quantization_config") or hasattr(config, "lightgpt2"):
        return
    with explained(source, key):
        types = stored_types(source_folder(source))
    wrong = sorted(name for name, kind in types.items() if name.endswith(".weight") and kind.startswith(_INTEGERS))
    if wrong:
        what = f"{source} has {len(wrong)} weights that are integers, first {wrong[0]} ({types[wrong[0]]})"
        fix = "add the quantization_config that says how they are read, or give its weights in full"
        raise UserError(f"{key}: {what}, and its config.json does not say how to read them; {fix}")


def load_model(
    source: str,
    key: str,
    trust_remote_code: bool = False,
    auto_classes: tuple[str, ...] = (),
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> PreTrainedModel:
    """A pretrained model: in FP32, a GGUF file dequantized, a folder in NF4 or INT8 as it is.

    Args:
        source: Hub id, folder or GGUF file.
        key: Config key to name in errors.
        trust_remote_code: Whether code in the model's folder may run.
        auto_classes: As for `load_config`.
        settings: What the configuration says of a head that the model lacks; its weights are then random. None: it has one.
        options: Further arguments of transformers' `from_pretrained`.

    Raises:
        UserError: It cannot be loaded, is not of a supported family, or lacks weights.
    """
    config = load_config(source, key, trust_remote_code, auto_classes, new_head=settings is not None)
    check_family(config, key, predicts(config.architectures))
    options = {"dtype": torch.float32, "trust_remote_code": trust_remote_code, **options}
    unread: tuple[str, ...] = ()
    if settings is not None:
        config.update(settings)
        # The pooler of a base model may be trained: it is taken if it is there.
        unread = (*_HEADS, *family_of(config).head_parts)
        options["config"] = config
    if file := gguf_file(source):
        if "quantization_config" in options:
            raise UserError(f"{key}: {source} is quantized already (GGUF); give a folder with its weights in full")
        options = {"config": config, **options, "quantization_config": GgufConfig(dequantize=True)}
    model = _load(_model_class(config), source, key, unread, **options)
    model.config.architectures = [type(model).__name__.removeprefix("Light")]
    if not file:
        _check_types(source, config, key)
    else:
        gguf_files.check_read(model, file, key)
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
    classifies = predicts(config.architectures) == CLASSIFICATION
    model_class = getattr(transformers, CLASSIFICATION) if classifies else AutoModel
    # A base model's pooler is not trained by every recipe, and nothing here reads it.
    unread = () if classifies else ("pooler.", *_HEADS)
    model = _load(model_class, source, key, unread, dtype=torch.float32)
    with explained(source, key):
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(**arguments(source))
    return model.eval(), tokenizer


def allow_packing(model: PreTrainedModel, allowed: bool) -> None:
    """Set whether NF4 layers may use a kernel that bitsandbytes has for some processors (AVX-512 BF16).

    It packs the weights anew at the first forward pass in eval mode, computes in bfloat16, and lets no gradient through: fast,
    but unfit for training and scoring.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = allowed


def folder_config(folder: Path, key: str) -> PretrainedConfig:
    """The configuration in an exported folder."""
    config: PretrainedConfig
    with explained(str(folder), key):
        config = AutoConfig.from_pretrained(folder)
    return config


def load_exported_gguf(folder: Path, key: str) -> PreTrainedModel:
    """The model of a GGUF file with the configuration that lies beside it, in eval mode.

    transformers reads neither GPT-2's positions nor biases or rotary scaling from the file, and some architectures not at all.
    """
    config = folder_config(folder, key)
    if gguf_files.transformers_reads(config):
        return load_model(str(folder / "model.gguf"), key, config=config).eval()
    model = new_model(config, key)
    with explained(str(folder), key):
        gguf_files.read_weights(model, folder / "model.gguf")
    return model.eval()
