"""GGUF files by llama.cpp's names: those of a model's parameters, and the weights of what transformers cannot read."""

from collections.abc import Callable
from pathlib import Path

import gguf
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from lightgpt2.models.families import family_of


def transformers_reads(config: PretrainedConfig) -> bool:
    """True if transformers reads the files of a model's architecture, and as a model of its type."""
    name = family_of(config).gguf
    return name in GGUF_SUPPORTED_ARCHITECTURES and config.model_type.startswith(name)


def stored_names(config: PretrainedConfig) -> Callable[[str], str]:
    """The names of parameters in a file, from those in the model."""
    architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family_of(config).gguf)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)

    def stored(name: str) -> str:
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, f"no name for {name}"
        return found

    return stored


@torch.no_grad()
def read_weights(model: PreTrainedModel, file: Path) -> None:
    """Give a model the weights of a file, of a family that stores its parameters with rows in another order at most."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    stored_name, family = stored_names(model.config), family_of(model)
    for name, parameter in model.named_parameters():
        stored = tensors[stored_name(name)]
        rows = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type).copy())
        parameter[family.gguf_stored(stored.name, torch.arange(len(rows)), model.config)] = rows
