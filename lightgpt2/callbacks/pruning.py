"""Global L1 pruning, once at the end or along a cubic schedule; and random pruning as its control."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt, restricted_number_type
from lightning import LightningModule, Trainer
from torch import Tensor

from lightgpt2.callbacks.base import RunCallback
from lightgpt2.errors import Problem, UserError
from lightgpt2.functional.pruning import keep_masks, magnitudes, random_scores
from lightgpt2.functional.schedules import cubic
from lightgpt2.methods.method import Method
from lightgpt2.models.operations import KINDS
from lightgpt2.models.pruning import prunable
from lightgpt2.runs.run import Run

Criterion = Literal["l1", "random"]
if TYPE_CHECKING:
    Share = float
else:
    Share = restricted_number_type("Share", float, [(">=", 0), ("<", 1)])
_KEY = "trainer.callbacks.GlobalL1Pruning"


class GlobalL1Pruning(RunCallback):
    """Sets a share of the chosen weights to zero: those of smallest magnitude, by one threshold over all of them.

    What is pruned stays so: through the rest of the run, a resumption, and any stage that starts from the artefact (from the
    adapter folder, for adapters). The ledger has the sparsity that was counted on disk.

    ```yaml
    trainer:
      callbacks:
        - class_path: lightgpt2.callbacks.GlobalL1Pruning
          init_args: {targets: lora, amount: 0.8}
    ```

    Args:
        targets: `lora` (adapters), `linear` (the weights of the blocks' linear layers), or a regular expression on the names of
            the blocks' matrices. Embeddings, norms, biases and the vocabulary head are never pruned.
        amount: Share of the chosen weights that goes, in [0, 1).
        schedule: `one-shot` prunes once, at the end of the run; `cubic` prunes step by step (see `functional.schedules.cubic`).
        warmup: Share of the run's steps before the first weight goes, with `cubic`.
        hold: Share of its steps that are left when the last one has gone, with `cubic`.
        every: Optimizer steps between two steps of `cubic`.
        criterion: `l1`, or `random` as a control.
        seed: Seed of `random`.
    """

    def __init__(
        self,
        targets: str = "linear",
        amount: Share = 0.8,
        schedule: Literal["one-shot", "cubic"] = "one-shot",
        warmup: Share = 0.1,
        hold: Share = 0.3,
        every: PositiveInt = 10,
        criterion: Criterion = "l1",
        seed: NonNegativeInt = 0,
    ) -> None:
        self.targets, self.schedule, self.criterion, self.seed = targets, schedule, criterion, seed
        # plain numbers: checkpoints hold nothing else
        self.amount, self.warmup, self.hold, self.every = float(amount), float(warmup), float(hold), int(every)
        self._trained = False

    def attach(self, run: Run) -> list[Problem]:
        """Checks the settings."""
        super().attach(run)
        what = f"{self.warmup} and hold: {self.hold} leave no step to prune at"
        return [] if self.warmup + self.hold < 1 else [Problem("warmup", what, "give a sum below 1")]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that what is pruned will be in the artefact, before anything is touched."""
        assert isinstance(pl_module, Method)
        if stage == "fit" and pl_module.removes:
            what = (
                f"{type(pl_module).__name__} removes heads and neurons, with some of the weights that would be counted"
            )
            raise UserError(f"{_KEY}: {what}; prune weights in a stage after it")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses what cannot be pruned, before anything is trained or scored."""
        assert isinstance(pl_module, Method)
        if pl_module.device_mesh is not None:
            raise UserError(f"{_KEY}: not supported with FSDP2; use trainer.strategy auto, or ddp")
        chosen = prunable(pl_module.model, self.targets, f"{_KEY}.targets")
        weights, gone = pl_module.held.masks.counts(chosen)
        if gone > round(self.amount * weights) and trainer.ckpt_path is None:
            what = f"{self.amount} is less than the {gone / weights:.4f} that an earlier stage pruned; give more"
            raise UserError(f"{_KEY}.amount: {what}")
        if pl_module.total_steps == 0:
            if self.schedule == "cubic":
                raise UserError(f"{_KEY}.schedule: cubic needs steps, and trainer.max_steps is 0; use one-shot")
            self._check_trained(chosen)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Prunes what is due before the next optimizer step."""
        assert isinstance(pl_module, Method)
        if self.schedule == "cubic" and batch_idx % trainer.accumulate_grad_batches == 0:
            total = pl_module.total_steps
            begin, end = round(self.warmup * total), round((1 - self.hold) * total)
            step = trainer.global_step
            if step > begin and (step % self.every == 0 or step == end):
                self._prune(pl_module, cubic(step, begin, end, 0.0, self.amount))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prunes before the artefact is saved."""
        assert isinstance(pl_module, Method)
        self._trained = True
        self._prune(pl_module, self.amount)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prunes if there was no step to train; a `UserError` if a finished run was resumed, and was not pruned so."""
        assert isinstance(pl_module, Method)
        wanted = {"op": "global_l1", "targets": self.targets, "amount": self.amount, "criterion": self.criterion}
        if not self._trained and trainer.ckpt_path is None:
            self._prune(pl_module, self.amount)
        elif not self._trained and not any(wanted.items() <= done.items() for done in pl_module.held.prunings):
            raise UserError(
                f"{_KEY}: the run has no step left, so nothing would be pruned; raise trainer.max_steps, or start another run "
                "from its artefact with trainer.max_steps: 0"
            )

    @torch.no_grad()
    def _prune(self, method: Method, amount: float) -> None:
        chosen = prunable(method.model, self.targets, f"{_KEY}.targets")
        self._check_trained(chosen)
        scores = magnitudes(chosen) if self.criterion == "l1" else random_scores(chosen, self.seed)
        masks = keep_masks(scores, amount, dict(method.held.masks.items()))
        device, adapters = next(iter(chosen.values())).device, any(".lora_" in name for name in chosen)
        operation = KINDS["global_l1"].record(
            criterion=self.criterion, targets=self.targets, adapters=adapters, amount=self.amount
        )
        method.held.prune(method.model, {name: mask.to(device) for name, mask in masks.items()}, operation)

    def _check_trained(self, chosen: Mapping[str, Tensor]) -> None:
        """Refuse new adapters: B = 0 would be what goes, and nothing could be learned any more."""
        second = [p for name, p in chosen.items() if ".lora_B." in name]
        if second and not any(bool(p.count_nonzero()) for p in second):
            raise UserError(
                f"{_KEY}.targets: the adapters are untrained (B is all zero, and would be what is pruned); train them first: "
                "give trainer.max_steps, or an adapter folder as model.model"
            )
