"""Write the artefact: a standard Hugging Face folder that loads without LightGPT2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.models.families import is_tied
from lightgpt2.models.files import atomic_folder, folder_megabytes
from lightgpt2.models.standalone import modeling_lightgpt2 as modeling
from lightgpt2.models.standalone import stored_weights


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
        model.save_pretrained(temporary, state_dict=weights)
        tokenizer.save_pretrained(temporary)
        if finish is not None:
            finish(temporary)


def bring_code(folder: Path, **settings: Any) -> None:
    """Put `standalone.modeling_lightgpt2` into a model folder, and settings for it into the folder's configuration."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    name = modeling.light_class(config["model_type"]).__name__
    config["architectures"] = [name]
    config["auto_map"] = {"AutoModelForCausalLM": f"{modeling.__name__.rpartition('.')[2]}.{name}"}
    config["lightgpt2"] = config.get("lightgpt2", {}) | settings
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for module in (modeling, stored_weights):
        shutil.copy(str(module.__file__), folder)


def measure_sizes(model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """The sizes of a model that was loaded from `folder`, as a ledger keeps them."""
    embedding = model.get_input_embeddings().weight.numel()
    quantized = getattr(model.config, "quantization_config", None) is not None
    return {
        "parameters": model.num_parameters(),  # tied ones counted once, quantized ones as what they stand for
        "nonzero": None if quantized else sum(int(p.count_nonzero()) for p in model.parameters()),
        "embedding": embedding if is_tied(model) else 2 * embedding,
        "megabytes": folder_megabytes(folder),
    }
