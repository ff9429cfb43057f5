"""Write the artefact: a standard Hugging Face folder that loads without LightGPT2."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.models.families import FAMILIES, family_of, is_tied, predicts
from lightgpt2.models.files import atomic_folder, folder_megabytes
from lightgpt2.models.sources import source_folder
from lightgpt2.models.standalone import modeling_lightgpt2 as modeling
from lightgpt2.models.standalone import stored_weights

_NO_LENGTH = 10**20  # from which on a tokenizer's longest text means none
_TERMS = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING")
# The weights' file that plain transformers looks for, in vain, and names in its error.
_NEEDED = "needs trust_remote_code=True.safetensors"


@contextmanager
def _edited(file: Path) -> Iterator[dict[str, Any]]:
    """The values of a JSON file, written back when the block ends."""
    values = json.loads(file.read_text(encoding="utf-8"))
    yield values
    file.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def positions_of(config: PretrainedConfig) -> int | None:
    """The longest context of a model; None if there is no limit."""
    return family_of(config).positions(config)


def whole_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of a model by name, tied ones once.

    It may be spread over processes: all of them must call this, and the first gets the result.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    tied = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    return {name: value for name, value in weights.items() if name not in tied}


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    weights: dict[str, Tensor] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write model, tokenizer and generation config to a folder, atomically; an older folder is replaced.

    `weights` are saved instead of the model's own, which may be spread over processes; `finish` runs on the folder before it is
    put in its place.
    """
    with atomic_folder(folder) as temporary:
        if (generation := getattr(model, "generation_config", None)) is not None:  # a classifier has none
            # transformers refuses to save a changed one that it only warned of before: a person's is carried on as it is.
            generation._original_object_hash = hash(generation)
        model.save_pretrained(temporary, state_dict=weights)
        (bring_code if family_of(model).code else complete_config)(temporary)
        save_tokenizer(tokenizer, temporary, positions_of(model.config))
        carry_licence(model.name_or_path, temporary)
        if finish is not None:
            finish(temporary)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, positions: int | None = None) -> None:
    """Write a tokenizer's files so that transformers 4 reads them too; its longest text is `positions` if it names none."""
    tokenizer.save_pretrained(folder)
    with _edited(folder / "tokenizer_config.json") as about:
        if about.get("tokenizer_class") == "TokenizersBackend":
            about["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(about.get("extra_special_tokens"), list):
            about["additional_special_tokens"] = about.pop("extra_special_tokens")
        about["model_input_names"] = (
            tokenizer.model_input_names
        )  # of which versions of transformers have other defaults
        if positions and about.get("model_max_length", _NO_LENGTH) >= _NO_LENGTH:
            about["model_max_length"] = positions


def complete_config(folder: Path) -> None:
    """Let a folder's `config.json` say rotary positions as transformers 4 reads them, and whether plain transformers can."""
    with _edited(folder / "config.json") as config:
        if family := FAMILIES.get(config["model_type"]):
            config.update(family.old_settings(config))
        if "lightgpt2" in config:
            config["transformers_weights"] = _NEEDED
        elif not (family and family.code):
            config.pop("auto_map", None)  # names code of the source, which is not in this folder


def carry_licence(source: str, folder: Path) -> None:
    """Copy the terms that the model in a folder or on the hub came with; a hub that is out of reach ends no run."""
    files: list[Path] = []
    with suppress(Exception):
        files = [*source_folder(source, *(f"{term}*" for term in _TERMS)).iterdir()] if source else []
    for file in files:
        if file.is_file() and file.stem.upper().startswith(_TERMS):
            shutil.copy(file, folder)


def bring_code(folder: Path, **settings: Any) -> None:
    """Put the family's code, or `standalone.modeling_lightgpt2`, into a model folder, and settings into its configuration."""
    with _edited(folder / "config.json") as config:
        auto_class, model_type = predicts(config["architectures"]), config["model_type"]
        code, named = FAMILIES[model_type].code, {}
        if code is None:
            code = modeling
            config["architectures"] = [modeling.light_class(model_type, auto_class).__name__]
        else:
            named = {"AutoConfig": CONFIG_MAPPING[model_type].__name__}
        named[auto_class] = config["architectures"][0]
        config["auto_map"] = {auto: f"{code.__name__.rpartition('.')[2]}.{name}" for auto, name in named.items()}
        if settings:
            config["lightgpt2"] = config.get("lightgpt2", {}) | settings
    complete_config(folder)
    for module in (code, stored_weights):
        shutil.copy(str(module.__file__), folder)


def measure_sizes(model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """The sizes of a model that was loaded from `folder`, as a ledger keeps them."""
    embedding = model.get_input_embeddings().weight.numel()
    once = is_tied(model) or model.get_output_embeddings() is None
    quantized = getattr(model.config, "quantization_config", None) is not None
    return {
        "parameters": model.num_parameters(),  # tied ones counted once, quantized ones as what they stand for
        "nonzero": None if quantized else sum(int(p.count_nonzero()) for p in model.parameters()),
        "embedding": embedding if once else 2 * embedding,
        "megabytes": folder_megabytes(folder),
    }
