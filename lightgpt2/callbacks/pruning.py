"""Pruning of single weights, once at the end or along a cubic schedule: by magnitude, at random, or as a subclass decides."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import Trainer
from torch import Tensor

from lightgpt2.adaptations.pruning_settings import Share
from lightgpt2.callbacks.base import RunCallback
from lightgpt2.errors import Problem, UserError
from lightgpt2.functional.pruning import keep_masks, magnitudes, random_scores
from lightgpt2.functional.schedules import cubic
from lightgpt2.methods.method import Method
from lightgpt2.models.operations import KINDS, OperationKind
from lightgpt2.models.pruning import prunable
from lightgpt2.runs.run import Run


class PruningCallback(RunCallback):
    """Sets a share of the chosen weights to zero: those that `masks`, the criterion of a subclass, gives up.

    It refuses what cannot be pruned before anything is trained, prunes once or step by step, keeps zeros of earlier stages,
    and knows a finished run that is resumed.

    Args:
        targets: `lora` (adapters), `linear` (the weights of the blocks' linear layers), or a regular expression on the names of
            the blocks' matrices. Embeddings, norms, biases and the vocabulary head are never pruned.
        amount: Share of the chosen weights that goes, in [0, 1).
        schedule: `one-shot` prunes once, at the end of the run; `cubic` prunes step by step (see `functional.schedules.cubic`).
        warmup: Share of the run's steps before the first weight goes, with `cubic`.
        hold: Share of its steps that are left when the last one has gone, with `cubic`.
        every: Optimizer steps between two steps of `cubic`.

    Attributes:
        kind: The kind of its record in the ledger.
        criterion: What the record calls the criterion.
    """

    kind: OperationKind
    criterion: str

    def __init__(
        self,
        targets: str = "linear",
        amount: Share = 0.8,
        schedule: Literal["one-shot", "cubic"] = "one-shot",
        warmup: Share = 0.1,
        hold: Share = 0.3,
        every: PositiveInt = 10,
    ) -> None:
        self.targets, self.schedule = targets, schedule
        # plain numbers: checkpoints hold nothing else
        self.amount, self.warmup, self.hold, self.every = float(amount), float(warmup), float(hold), int(every)
        self._trained = False

    @abstractmethod
    def masks(self, method: Method, chosen: Mapping[str, Tensor], amount: float) -> Mapping[str, Tensor]:
        """A mask of each chosen weight, true where it stays; `amount` of all goes. Called without gradients.

        What earlier stages pruned (`method.held.masks`) stays at zero whatever the masks say.
        """

    def attach(self, run: Run) -> list[Problem]:
        super().attach(run)
        what = f"{self.warmup} and hold: {self.hold} leave no step to prune at"
        return [] if self.warmup + self.hold < 1 else [Problem("warmup", what, "give a sum below 1")]

    def setup(self, trainer: Trainer, pl_module: Method, stage: str) -> None:
        if stage == "fit" and pl_module.removes:
            what = (
                f"{type(pl_module).__name__} removes heads and neurons, with some of the weights that would be counted"
            )
            raise self._error("", what, "prune weights in a stage after it")

    def on_fit_start(self, trainer: Trainer, pl_module: Method) -> None:
        """Refuses what cannot be pruned, before anything is trained or scored."""
        if pl_module.device_mesh is not None:
            raise self._error("", "not supported with FSDP2", "use trainer.strategy auto, or ddp")
        chosen = self._chosen(pl_module)
        weights, gone = pl_module.held.masks.counts(chosen)
        if gone > round(self.amount * weights) and trainer.ckpt_path is None:
            what = f"{self.amount} is less than the {gone / weights:.4f} that an earlier stage pruned"
            raise self._error("amount", what, "give more")
        if pl_module.total_steps == 0:
            if self.schedule == "cubic":
                raise self._error("schedule", "cubic needs steps, and trainer.max_steps is 0", "use one-shot")
            self._check_trained(chosen)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Method, batch: Any, batch_idx: int) -> None:
        """Prunes what is due before the next optimizer step."""
        if self.schedule == "cubic" and batch_idx % trainer.accumulate_grad_batches == 0:
            total = pl_module.total_steps
            begin, end = round(self.warmup * total), round((1 - self.hold) * total)
            step = trainer.global_step
            if step > begin and (step % self.every == 0 or step == end):
                self._prune(pl_module, cubic(step, begin, end, 0.0, self.amount))

    def on_train_end(self, trainer: Trainer, pl_module: Method) -> None:
        """Prunes before the artefact is saved."""
        self._trained = True
        self._prune(pl_module, self.amount)

    def on_fit_end(self, trainer: Trainer, pl_module: Method) -> None:
        """Prunes if there was no step to train; a `UserError` if a finished run was resumed, and was not pruned so."""
        if self._trained:
            return
        if trainer.ckpt_path is None:
            self._prune(pl_module, self.amount)
            return
        wanted = {"op": self.kind.name, "targets": self.targets, "amount": self.amount, "criterion": self.criterion}
        if not any(wanted.items() <= done.items() for done in pl_module.held.prunings):
            fix = "raise trainer.max_steps, or start another run from its artefact with trainer.max_steps: 0"
            raise self._error("", "the run has no step left, so nothing would be pruned", fix)

    @torch.no_grad()
    def _prune(self, method: Method, amount: float) -> None:
        chosen = self._chosen(method)
        self._check_trained(chosen)
        held = dict(method.held.masks.items())
        masks = {name: mask.to(chosen[name].device) for name, mask in self.masks(method, chosen, amount).items()}
        masks = {name: mask & held[name] if name in held else mask for name, mask in masks.items()}
        record = self.kind.record(
            criterion=self.criterion,
            targets=self.targets,
            adapters=any(".lora_" in name for name in chosen),
            amount=self.amount,
        )
        method.held.prune(method.model, masks, record)

    def _chosen(self, method: Method) -> dict[str, torch.nn.Parameter]:
        return prunable(method.model, self.targets, f"{self._key}.targets")

    def _check_trained(self, chosen: Mapping[str, Tensor]) -> None:
        """Refuse new adapters: B = 0 would be what goes, and nothing could be learned any more."""
        second = [p for name, p in chosen.items() if ".lora_B." in name]
        if second and not any(bool(p.count_nonzero()) for p in second):
            what = "the adapters are untrained (B is all zero, and would be what is pruned)"
            fix = "train them first: give trainer.max_steps, or an adapter folder as model.model"
            raise self._error("targets", what, fix)

    @property
    def _key(self) -> str:
        return f"trainer.callbacks.{type(self).__name__}"

    def _error(self, setting: str, what: str, fix: str) -> UserError:
        return UserError([Problem(setting, what, fix).under(self._key)])


class GlobalL1Pruning(PruningCallback):
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
        criterion: `l1`, or `random` as a control.
        seed: Seed of `random`.
    """

    kind = KINDS["global_l1"]

    def __init__(self, criterion: Literal["l1", "random"] = "l1", seed: NonNegativeInt = 0, **settings: Any) -> None:
        super().__init__(**settings)
        self.criterion, self.seed = criterion, seed

    def masks(self, method: Method, chosen: Mapping[str, Tensor], amount: float) -> Mapping[str, Tensor]:
        scores = magnitudes(chosen) if self.criterion == "l1" else random_scores(chosen, self.seed)
        return keep_masks(scores, amount, dict(method.held.masks.items()))
