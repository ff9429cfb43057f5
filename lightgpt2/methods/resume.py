"""What a checkpoint holds besides Lightning's own, so that a resumed run is the run that was not interrupted."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from lightgpt2.adaptations.masks import HeldMasks
from lightgpt2.errors import UserError
from lightgpt2.methods import random_state
from lightgpt2.methods.processes import gathered
from lightgpt2.models.ledger import Parent
from lightgpt2.starts.base import Start


def pack(
    module: nn.Module,
    held: HeldMasks,
    start: Start,
    sources: list[str],
    checkpoint: dict[str, Any],
    before_step: dict[str, Any] | None,
) -> None:
    """Leaves out what is frozen; adds the state of every random generator, and what the weights depend on.

    Args:
        module: What is trained.
        held: Its masks.
        start: Where its model comes from.
        sources: The models that training reads and does not change.
        checkpoint: What Lightning is about to save; changed.
        before_step: The generators' states where an optimizer step began that will be done again; None: between two steps.
    """
    for name in _unchanging(module, checkpoint["state_dict"]):
        del checkpoint["state_dict"][name]
    checkpoint["prunings"] = held.prunings
    checkpoint["frozen"] = _digests(sources)
    checkpoint["start"] = start.fingerprint
    checkpoint["rng"] = gathered(before_step or random_state.capture())


def unpack(
    module: nn.Module, held: HeldMasks, start: Start, sources: list[str], checkpoint: dict[str, Any]
) -> list[dict[str, Any]]:
    """Checks that a checkpoint belongs to a run, and makes room for its masks.

    Args:
        module: What is trained.
        held: Its masks.
        start: Where its model comes from.
        sources: The models that training reads and does not change.
        checkpoint: What `pack` has packed.

    Returns:
        The states of the random generators, of each process.

    Raises:
        UserError: The weights that the checkpoint left out have changed, or the text that decided the vocabulary.
    """
    if checkpoint["start"] != start.fingerprint:
        raise UserError(
            "--ckpt_path: the training text needs other tokens than those of the checkpoint; bring the old text back, or "
            "start anew with another --run"
        )
    # A checkpoint that is scored needs no teacher, and one that is trained on may get one, or go on without.
    for source, then, now in zip(sources, checkpoint["frozen"], _digests(sources), strict=False):
        if then != now:
            raise UserError(
                f"--ckpt_path: the weights of {source} are not those that the checkpoint was trained with; bring them "
                "back, or start anew with another --run"
            )
    held.prunings = checkpoint["prunings"]
    prefix = next(name for name, inner in module.named_modules() if inner is held.masks)
    # FSDP2's strategy keeps the weights to itself
    held.masks.allocate(checkpoint.get("state_dict", {}), f"{prefix}.")
    states: list[dict[str, Any]] = checkpoint["rng"]
    return states


def load(module: nn.Module, load_state_dict: Callable[..., Any], weights: Mapping[str, Any], assign: bool) -> Any:
    """Restores weights; what is frozen stays as it is.

    Args:
        module: What is trained.
        load_state_dict: Lightning's own.
        weights: The weights by name.
        assign: As for torch's `load_state_dict`.

    Raises:
        UserError: They are of a model of another shape.
    """
    try:
        result = load_state_dict(weights, strict=False, assign=assign)
        absent = sorted({*result.missing_keys} - _unchanging(module, result.missing_keys))
        if absent or result.unexpected_keys:
            raise RuntimeError(f"Missing key(s): {absent[:1]}, unexpected key(s): {result.unexpected_keys[:1]}")
    except RuntimeError as error:
        lines = str(error).splitlines()
        first = (lines[1:] or lines)[0].strip()
        raise UserError(
            f"--ckpt_path: the checkpoint is of a model of another shape ({first}); resume with the settings that "
            "wrote it, or start anew with another --run"
        ) from error
    return result


def _digests(sources: list[str]) -> list[str]:
    return [Parent.of(source).sha256 for source in sources]


def _unchanging(module: nn.Module, names: Iterable[str]) -> set[str]:
    """Those entries of a state dict that training leaves alone: frozen weights, and what quantized ones bring along."""
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name for name in names if name in frozen or any(name.startswith(f"{each}.") for each in frozen)}
