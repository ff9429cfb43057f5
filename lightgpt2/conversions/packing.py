"""The packed copy of a model folder: its zeros and the unlike frequencies of its values take no space."""

import shutil
from pathlib import Path

import torch

from lightgpt2.conversions.base import Conversion
from lightgpt2.data.base import TaskData
from lightgpt2.models import ledger
from lightgpt2.models.operations import KINDS, Operation
from lightgpt2.models.saving import bring_code
from lightgpt2.models.standalone import stored_weights

_WEIGHTS = "model.safetensors"


class Packed(Conversion):
    """Leaves zeros out and compresses the rest, and loses nothing: pruned weights and integers get smaller."""

    name, exact = "packed", True

    def write(self, source: Path, target: Path, data: TaskData) -> Operation:
        return pack_folder(source, target)


def pack_folder(source: Path, target: Path) -> Operation:
    """Write a folder that holds the same tensors, packed: in full precision, or integers.

    Returns:
        The ledger's record: how many of the tensors are stored as a mask and what is not zero.

    Raises:
        RuntimeError: What can be read back is not equal to the last bit.
    """
    tensors, integers = stored_weights.read_stored(source / _WEIGHTS)
    left = shutil.ignore_patterns("*.safetensors", ledger.FILE, ledger.SCORES)
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=left)
    table = stored_weights.write(target / _WEIGHTS, tensors, integers, packed=True)
    bring_code(target, packed=True)
    again, said = stored_weights.read_stored(target / _WEIGHTS)
    same = said == integers and tensors.keys() == again.keys()
    if not same or not all(_same_bits(tensor, again[name]) for name, tensor in tensors.items()):
        raise RuntimeError(f"{target}: what was packed is not what comes out")
    sparse = sum(about["kept"] is not None for about in table.values())
    return KINDS["packed"].record(tensors=len(tensors), sparse=sparse)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    bits = [tensor.flatten().view(torch.uint8) for tensor in (one, other)]
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(*bits)
