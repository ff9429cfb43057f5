"""The states of all random generators of a process, which Lightning's checkpoints leave out."""

import random
from typing import Any

import numpy as np
import torch


def capture() -> dict[str, Any]:
    """The states as plain numbers: what every pickle and `weights_only=True` can carry."""
    algorithm, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (algorithm, np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def restore(state: dict[str, Any]) -> None:
    """Sets all generators to captured states.

    Args:
        state: What `capture` returned.
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"] and torch.cuda.is_available():
        for device, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(torch.tensor(device_state, dtype=torch.uint8), device)


def reseed(seed: int) -> None:
    """Seeds all generators.

    Args:
        seed: The seed, from 0.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def begin(states: list[dict[str, Any]] | None, rank: int) -> None:
    """Sets all generators where training begins: to what a checkpoint holds, or to the run's seed.

    Whatever was drawn before (a new model's weights, say) leaves no trace in the training.

    Args:
        states: The captured states of all processes; None: there is no checkpoint.
        rank: This process.
    """
    if states is not None and rank < len(states):
        restore(states[rank])
    else:
        reseed(torch.initial_seed() % 2**32 + rank)
