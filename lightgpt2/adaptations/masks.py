"""Weights that are held at zero: what this run, or an earlier stage, has pruned."""

from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel

from lightgpt2.adaptations.base import Adaptation
from lightgpt2.errors import UserError
from lightgpt2.functional.pruning import Masks
from lightgpt2.functional.schedules import Progress
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.operations import Operation
from lightgpt2.models.pruning import prunable


class HeldMasks(Adaptation):
    """Keeps pruned weights at zero; every run has it."""

    order = 40
    accepts = frozenset({"fp32", "nf4"})

    def __init__(self) -> None:
        super().__init__()
        self.masks = Masks()  # which weights stay, by parameter name
        self.prunings: list[Operation] = []  # what put the masks there, for the ledger

    def prune(self, model: PreTrainedModel, masks: Mapping[str, Tensor], operation: Operation) -> None:
        """Sets weights to zero, for good: masks by parameter name, true where a weight stays; the ledger's record."""
        self.masks.set(masks)
        self.masks.weights_(model)
        self.prunings = [done for done in self.prunings if done["targets"] != operation["targets"]] + [operation]

    def hold(self, model: PreTrainedModel, ledger: Ledger) -> None:
        """Masks what an earlier stage pruned, by the ledger of the model that the run started from."""
        adapters = any(".lora_" in name for name, _ in model.named_parameters())
        for operation in ledger.held_prunings():
            try:
                found = prunable(
                    model, operation["targets"], "the pruning of an earlier stage", operation.get("whole", ())
                )
            except UserError:
                if operation["adapters"] is adapters:
                    raise
                continue  # merged away, or frozen
            held = {name: p for name, p in found.items() if (".lora_" in name) is operation["adapters"]}
            if held:
                self.prune(model, {name: p.detach() != 0 for name, p in held.items()}, {**operation, "held": True})

    def mask_gradients(self, model: PreTrainedModel) -> None:
        self.masks.gradients_(model)

    def after_step(self, model: PreTrainedModel, progress: Progress) -> Mapping[str, float]:
        """Sets pruned weights to zero: momentum and weight decay know nothing of masks."""
        self.masks.weights_(model)
        weights, pruned = self.masks.counts()
        return {"train/sparsity": pruned / weights} if weights else {}
