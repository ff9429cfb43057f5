"""The artefact: a standard Hugging Face folder that needs no LightGPT2 to load."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.models.families import is_tied
from lightgpt2.models.files import atomic_folder, folder_megabytes
from lightgpt2.models.standalone import modeling_lightgpt2 as modeling
from lightgpt2.models.standalone import stored_weights


@dataclass(frozen=True)
class Sizes:
    """How big a saved model is.

    Attributes:
        parameters: Number of parameters, tied ones counted once, quantized ones as what they stand for.
        nonzero: Those that are not zero; None for a quantized model.
        embedding: Those of the token embedding, and of the head where it is not tied to it.
        megabytes: Bytes of the weight files on disk, in units of 10^6.
    """

    parameters: int
    nonzero: int | None
    embedding: int
    megabytes: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def whole_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of a model that may be spread over processes; all of them must call this, the first gets the result.

    Args:
        model: The model.

    Returns:
        The weights by name, tied ones once.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {
        n for n, _ in model.named_parameters()
    }
    return {name: value for name, value in weights.items() if name not in tied}


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    weights: dict[str, Tensor] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Writes model, tokenizer and generation config to a folder, atomically.

    Args:
        model: The model to save.
        tokenizer: Its tokenizer.
        folder: Target; replaced if it exists.
        weights: What to save in place of the model's own weights, which may be spread over processes.
        finish: What else to do with the folder, before it is put in its place.

    Raises:
        UserError: The disk is full.
    """
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, state_dict=weights)
        tokenizer.save_pretrained(temporary)
        if finish is not None:
            finish(temporary)


def bring_code(folder: Path, **settings: Any) -> None:
    """Makes a model folder one that `standalone.modeling_lightgpt2` loads, which goes into it.

    Args:
        folder: The folder; changed in place.
        settings: What its configuration says to that code, besides what it says already.
    """
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    name = modeling.MODELS[config["model_type"]].__name__
    config["architectures"], config["auto_map"] = (
        [name],
        {"AutoModelForCausalLM": f"{modeling.__name__.rpartition('.')[2]}.{name}"},
    )
    config["lightgpt2"] = config.get("lightgpt2", {}) | settings
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for module in (modeling, stored_weights):
        shutil.copy(str(module.__file__), folder)


def measure_sizes(model: PreTrainedModel, folder: Path) -> Sizes:
    """Sizes of a model that was loaded from `folder`."""
    embedding = model.get_input_embeddings().weight.numel()
    quantized = getattr(model.config, "quantization_config", None) is not None
    return Sizes(
        parameters=model.num_parameters(),
        nonzero=None if quantized else sum(int(p.count_nonzero()) for p in model.parameters()),
        embedding=embedding if is_tied(model) else 2 * embedding,
        megabytes=folder_megabytes(folder),
    )
