"""What a checkpoint holds besides Lightning's own, so that a resumed run is the run that was not interrupted."""

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from lightgpt2.errors import UserError
from lightgpt2.methods.parts import Parts
from lightgpt2.methods.processes import gathered
from lightgpt2.models.families import is_tied
from lightgpt2.models.ledger import Parent

_ANEW = "or start anew with another --run"
MASKS = "held.masks."  # the beginning of their names in checkpoints
RandomState = dict[str, Any]


def random_state() -> RandomState:
    """The states of all random generators as plain numbers: what `weights_only=True` can load."""
    algorithm, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (algorithm, np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def set_random_state(states: list[RandomState] | None, rank: int) -> None:
    """Sets all generators where training begins: to what a checkpoint holds for this process, or to the run's seed.

    Whatever was drawn before (a new model's weights, say) leaves no trace in the training.
    """
    if states is None or rank >= len(states):
        seed = torch.initial_seed() % 2**32 + rank
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        return
    state = states[rank]
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if torch.cuda.is_available():
        for device, numbers in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(torch.tensor(numbers, dtype=torch.uint8), device)


def pack(method: Parts, checkpoint: dict[str, Any], before_step: RandomState | None) -> None:
    """Leaves out what is frozen; adds the states of the random generators, and what the weights depend on.

    Args:
        method: What is trained.
        checkpoint: What Lightning is about to save; changed.
        before_step: The generators' states where an optimizer step began that will be done again; None: between two steps.
    """
    for name in _unchanging(method, checkpoint["state_dict"]):
        del checkpoint["state_dict"][name]
    checkpoint["model_config"] = method.model.config.to_json_string()
    checkpoint["tied"] = is_tied(method.model)
    checkpoint["prunings"] = method.held.prunings
    checkpoint["frozen"] = [Parent.of(source).sha256 for source in _frozen_sources(method)]
    checkpoint["start"] = method.start.fingerprint
    checkpoint["rng"] = gathered(before_step or random_state())


def unpack(method: Parts, checkpoint: dict[str, Any]) -> list[RandomState]:
    """Checks that a checkpoint belongs to a run, and makes room for its masks.

    Returns:
        The states of the random generators, of each process.

    Raises:
        UserError: The weights that the checkpoint left out have changed, or the text that decided the vocabulary.
    """
    if checkpoint["start"] != method.start.fingerprint:
        what = "the training text needs other tokens than those of the checkpoint; bring the old text back"
        raise UserError(f"--ckpt_path: {what}, {_ANEW}")
    # A checkpoint that is scored needs no teacher, and one that is trained on may get one, or go on without.
    for source, sha256 in zip(_frozen_sources(method), checkpoint["frozen"], strict=False):
        if Parent.of(source).sha256 != sha256:
            what = f"the weights of {source} are not those that the checkpoint was trained with; bring them back"
            raise UserError(f"--ckpt_path: {what}, {_ANEW}")
    method.held.prunings = checkpoint["prunings"]
    method.held.masks.allocate(checkpoint.get("state_dict", {}), MASKS)  # FSDP2's strategy keeps the weights to itself
    states: list[RandomState] = checkpoint["rng"]
    return states


def load(method: Parts, load_state_dict: Callable[..., Any], weights: Mapping[str, Any], assign: bool) -> Any:
    """Restores weights with Lightning's `load_state_dict`; what is frozen stays as it is."""
    try:
        result = load_state_dict(weights, strict=False, assign=assign)
        absent = sorted({*result.missing_keys} - _unchanging(method, result.missing_keys))
        if absent or result.unexpected_keys:
            raise RuntimeError(f"Missing key(s): {absent[:1]}, unexpected key(s): {result.unexpected_keys[:1]}")
    except RuntimeError as error:
        lines = str(error).splitlines()
        what = f"the checkpoint is of a model of another shape ({(lines[1:] or lines)[0].strip()})"
        raise UserError(f"--ckpt_path: {what}; resume with the settings that wrote it, {_ANEW}") from error
    return result


def _frozen_sources(method: Parts) -> list[str]:
    """The models that training reads and does not change, so that no checkpoint holds them."""
    frozen = method.start.sources if method.freezes else []
    return [*frozen, *method.objective.sources]


def _unchanging(module: nn.Module, names: Iterable[str]) -> set[str]:
    """Those entries of a state dict that training leaves alone: frozen weights, and what quantized ones bring along."""
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name for name in names if name in frozen or any(name.startswith(f"{each}.") for each in frozen)}
