"""What a method's checkpoints hold, so that a resumed run is the run that was not interrupted."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule

from lightgpt2.errors import UserError
from lightgpt2.functional.pruning import Masks
from lightgpt2.methods import random_state
from lightgpt2.models.ledger import Parent
from lightgpt2.models.operations import Operation


class Resumable(LightningModule):
    """The part of a method that checkpoints see: what training changes, and the state of every random generator.

    Attributes:
        masks: Which weights are held at zero.
        prunings: What put them there, as the ledger has it.
    """

    masks: Masks
    prunings: list[Operation]
    _restored_rng: list[dict[str, Any]] | None = None
    _rng_before_step: dict[str, Any] | None = None

    @property
    def frozen_sources(self) -> list[str]:
        """The models that training reads and does not change, so that no checkpoint holds them."""
        return []

    @cached_property
    def _frozen_digests(self) -> list[str]:
        return [Parent.of(source).sha256 for source in self.frozen_sources]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Notes the random generators' states where an optimizer step begins, for a checkpoint inside it."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._rng_before_step = random_state.capture()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps; the next checkpoint is of the state after it."""
        super().optimizer_step(*args, **kwargs)
        self._rng_before_step = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what is frozen, and adds what Lightning leaves out: the state of every random generator."""
        for name in self._unchanging(checkpoint["state_dict"]):
            del checkpoint["state_dict"][name]
        checkpoint["prunings"] = self.prunings
        checkpoint["frozen"] = self._frozen_digests
        # A step that has begun will be done again from its first micro-batch.
        mine = self._rng_before_step or random_state.capture()
        states: list[Any] = [mine]
        if dist.is_initialized():
            states = [None] * dist.get_world_size()
            dist.all_gather_object(states, mine)
        checkpoint["rng"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the generators' states until training starts, as building and loading draw from them; makes room for masks.

        Raises:
            UserError: The weights that the checkpoint left out are not those that it was trained with.
        """
        # A checkpoint that is scored needs no teacher, and one that is trained on may get one, or go on without.
        then = checkpoint["frozen"]
        for source, digest, now in zip(self.frozen_sources, then, self._frozen_digests, strict=False):
            if digest != now:
                raise UserError(
                    f"--ckpt_path: the weights of {source} are not those that the checkpoint was trained with; bring them "
                    "back, or start anew with another --run"
                )
        self._restored_rng = checkpoint["rng"]
        self.prunings = checkpoint["prunings"]
        self.masks.allocate(checkpoint.get("state_dict", {}), "masks.")  # FSDP2's strategy keeps the weights to itself

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Restores the weights; what is frozen stays as it is.

        Raises:
            UserError: They are of a model of another shape.
        """
        try:
            result = super().load_state_dict(state_dict, strict=False, assign=assign)
            absent = sorted({*result.missing_keys} - self._unchanging(result.missing_keys))
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

    def _unchanging(self, names: Iterable[str]) -> set[str]:
        """Those entries of the state dict that training leaves alone: frozen weights, and what quantized ones bring along."""
        frozen = {name for name, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return {name for name in names if name in frozen or any(name.startswith(f"{each}.") for each in frozen)}

    def on_train_start(self) -> None:
        """Sets the random generators to where the checkpoint left them, or to the seed."""
        rank = self.global_rank
        if self._restored_rng is not None and rank < len(self._restored_rng):
            random_state.restore(self._restored_rng[rank])
        else:
            # Whatever was drawn before this line (a new model's weights, say) leaves no trace in the training.
            random_state.reseed(torch.initial_seed() % 2**32 + rank)
