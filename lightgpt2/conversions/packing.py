"""The packed copy of a model folder: its zeros and the unlike frequencies of its values take no space."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from lightgpt2.models import ledger
from lightgpt2.models.files import atomic_folder, folder_megabytes
from lightgpt2.models.operations import Operation
from lightgpt2.models.saving import bring_code
from lightgpt2.models.standalone import stored_weights

_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Packed:
    """What became of a folder's file.

    Attributes:
        dense: Bytes of the file without packing, in units of 10^6.
        packed: Bytes of the packed one.
        sparse: Tensors that are stored as a mask and what is not zero.
        tensors: Tensors there are.
    """

    dense: float
    packed: float
    sparse: int
    tensors: int

    def operation(self) -> Operation:
        """The ledger's record."""
        return {"op": "packed", "tensors": self.tensors, "sparse": self.sparse}


def pack_folder(source: Path, target: Path) -> Packed:
    """Writes a folder that holds the same tensors, packed, and checks that they are.

    Args:
        source: A model folder with one file of weights: in full precision, or integers.
        target: Folder to write, atomically.

    Raises:
        RuntimeError: What can be read back is not equal to the last bit.
    """
    tensors, integers = stored_weights.read_stored(source / _WEIGHTS)
    with atomic_folder(target) as temporary:
        shutil.copytree(
            source, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", ledger.FILE)
        )
        table = stored_weights.write(temporary / _WEIGHTS, tensors, integers, packed=True)
        bring_code(temporary, packed=True)
        again, said = stored_weights.read_stored(temporary / _WEIGHTS)
        if said != integers or not _same(tensors, again):
            raise RuntimeError(f"{target}: what was packed is not what comes out")
    sparse = sum(about["kept"] is not None for about in table.values())
    return Packed(folder_megabytes(source), folder_megabytes(target), sparse, len(tensors))


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are the same byte for byte."""
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype
        and tensor.shape == second[name].shape
        and torch.equal(tensor.flatten().view(torch.uint8), second[name].flatten().view(torch.uint8))
        for name, tensor in first.items()
    )
