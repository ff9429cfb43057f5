"""How a method keeps weights at zero that were pruned: in its own run, or by an earlier stage."""

from collections.abc import Mapping
from typing import Any

from lightning import LightningModule
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightgpt2.functional.pruning import Masks
from lightgpt2.models import ledger
from lightgpt2.models.operations import Operation
from lightgpt2.models.pruning import prunable


class Pruned(LightningModule):
    """The part of a method that is the same whoever prunes.

    Attributes:
        model: The model.
        masks: Which weights are held at zero.
        prunings: What put them there, as the ledger has it.
    """

    model: PreTrainedModel
    masks: Masks
    prunings: list[Operation]

    def prune(self, masks: Mapping[str, Tensor], operation: Operation) -> None:
        """Sets weights to zero, for good.

        Args:
            masks: Boolean masks by the names of `self.model`'s parameters, true where a weight stays.
            operation: The ledger's record of it.
        """
        self.masks.set(masks)
        self.mask_weights()
        self.prunings = [done for done in self.prunings if done["targets"] != operation["targets"]] + [operation]

    def hold_zeros(self, entries: list[dict[str, Any]]) -> None:
        """Masks what an earlier stage pruned, so that it stays zero through this one.

        Args:
            entries: The ledger of the model that this stage started from.
        """
        adapters = any(".lora_" in name for name, _ in self.model.named_parameters())
        for operation in ledger.held_prunings(entries):
            if operation["adapters"] is adapters:  # else they are merged away, or frozen
                held = prunable(self.model, operation["targets"], "the pruning of an earlier stage")
                self.prune({name: p.detach() != 0 for name, p in held.items()}, {**operation, "held": True})

    def mask_gradients(self) -> None:
        """Sets the gradients of pruned weights to zero."""
        self.masks.gradients_(self._parameters_by_name)

    def mask_weights(self) -> None:
        """Sets pruned weights to zero."""
        self.masks.weights_(self._parameters_by_name)

    @property
    def _parameters_by_name(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters()) if len(self.masks) else {}
