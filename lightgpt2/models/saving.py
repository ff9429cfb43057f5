"""The artefact: a standard Hugging Face folder that needs no LightGPT2 to load."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.models.families import is_tied
from lightgpt2.models.files import atomic_folder, folder_megabytes


@dataclass(frozen=True)
class Sizes:
    """How big a saved model is.

    Attributes:
        parameters: Number of parameters, tied ones counted once.
        nonzero: Those that are not zero.
        embedding: Those of the token embedding, and of the head where it is not tied to it.
        megabytes: Bytes of the weight files on disk, in units of 10^6.
    """

    parameters: int
    nonzero: int
    embedding: int
    megabytes: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Writes model, tokenizer and generation config to a folder, atomically.

    Args:
        model: The model to save.
        tokenizer: Its tokenizer.
        folder: Target; replaced if it exists.
        state_dict: Weights to save in place of the model's own, as a distributed strategy gathered them.

    Raises:
        UserError: The disk is full.
    """
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, state_dict=state_dict)
        tokenizer.save_pretrained(temporary)


def measure_sizes(model: PreTrainedModel, folder: Path) -> Sizes:
    """Sizes of a model that was loaded from `folder`."""
    embedding = model.get_input_embeddings().weight.numel()
    return Sizes(
        parameters=sum(p.numel() for p in model.parameters()),
        nonzero=sum(int(p.count_nonzero()) for p in model.parameters()),
        embedding=embedding if is_tied(model) else 2 * embedding,
        megabytes=folder_megabytes(folder),
    )
