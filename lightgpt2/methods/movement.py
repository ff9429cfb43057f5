"""Movement pruning: which heads and neurons, blocks or weights stay is learnt with the weights; the former are then removed.

Sanh et al. 2020 (arXiv:2005.07683) for the scores, Lagunas et al. 2021 (arXiv:2109.04838) for blocks, heads and neurons. The
algorithm itself is in `functional.movement`; which weights make a unit, in `models.units`.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from lightgpt2.errors import UserError
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.functional.movement import Units
from lightgpt2.functional.pruning import random_scores
from lightgpt2.functional.schedules import cubic
from lightgpt2.methods.distill import DistillLoss
from lightgpt2.methods.optimizer import OptimizerConfig
from lightgpt2.methods.pruning_settings import Pruning
from lightgpt2.methods.taught import Taught
from lightgpt2.methods.unit_pictures import pictures
from lightgpt2.models import units
from lightgpt2.models.axes import block_sizes, block_units
from lightgpt2.models.ledger import held_prunings, read
from lightgpt2.models.operations import Operation
from lightgpt2.models.pruning import saved_zeros
from lightgpt2.models.saving import save_model
from lightgpt2.models.surgery import removal
from lightgpt2.models.trimming import remove
from lightgpt2.tasks.language_modeling import LanguageModeling


class MovementPruning(Taught):
    """Trains a model while it is pruned by learnt scores, and removes what has gone.

    From `warmup` on the share that goes rises along the cubic schedule, step by step, until `cooldown`. Validation and
    checkpoints are always of the model as it is pruned then. Heads and neurons are
    removed from the artefact; single weights and blocks are zero in it, and stay so in later stages.

    Give it a teacher, the model itself where there is none better: what it is to find again is then what pruning took. Scores
    that a converged model learns from cross-entropy before anything is pruned rank its neurons worse than chance
    (`benchmarks/scores.py`). Compare with `criterion: magnitude`; benchmarks/RESULTS.md says where movement lost.

    Args:
        model: Hub id, model folder or GGUF file.
        teacher: Hub id, model folder or GGUF file of a teacher, if any: the model itself before it was pruned, say.
        loss: Weights of the loss with a teacher.
        layer_map: As for `Distill`, with a hidden loss.
        pruning: What goes, and when.
        task: What is predicted and how it is scored.
        optimizer: AdamW and its schedule, for the weights.
        compile: Whether to compile the models with torch.compile, in place.
        activation_checkpointing: Whether to keep of each block only its input for the backward pass, and compute the rest again
            there (Chen et al. 2016, arXiv:1604.06174): less memory for more time, and the same gradients.
        trust_remote_code: Whether code in a model's folder may run. Off unless asked.
    """

    def __init__(
        self,
        model: str,
        teacher: str | None = None,
        loss: DistillLoss | None = None,
        layer_map: Literal["even"] | list[int] | None = None,
        pruning: Pruning = Pruning(),
        task: LanguageModeling = LanguageModeling(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        compile: bool = False,
        activation_checkpointing: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(
            model, teacher, loss, layer_map, task, optimizer, compile, activation_checkpointing, trust_remote_code
        )
        self.pruning = pruning
        self._removed: list[Operation] = []

    @property
    def removes(self) -> bool:
        """Heads and neurons; weights and blocks are zero."""
        return self.pruning.granularity == "structured"

    # -- what is wrong -----------------------------------------------------------------------------------------------

    def configs(self) -> dict[str, PretrainedConfig]:
        """Those of the model and its teacher; checks that what is to go can go.

        Raises:
            UserError: It cannot.
        """
        problems = self.pruning.problems()
        try:
            found = super().configs()
            config = next(iter(found.values()))
            problems += self.pruning.misfits(*block_units(config), config.hidden_size)
        except UserError as error:
            problems += error.problems
        if problems:
            raise UserError(problems)
        return found

    def problems(self, data: Any, training: bool) -> list[str]:
        """As of any method; and single weights that are zero already, where whole heads and neurons are to go."""
        found, source = super().problems(data, training), self.parent[0]
        if not found and training and self.pruning.granularity == "structured" and held_prunings(read(source)):
            found.append(
                f"model.model: single weights of {source} are pruned, which removing heads and neurons would make a wrong "
                "count of; remove those first and prune weights after it, or give model.pruning.granularity weight or block"
            )
        return found

    # -- building ----------------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Loads the model, and puts gates on its weights."""
        super().build()
        pruning = self.pruning
        self.grips = units.grips(self.model, pruning.granularity, pruning.block)
        self.units = units.make_units(self.model, self.grips, trained=pruning.criterion == "movement")
        if pruning.criterion == "random":
            for i, (_, kind) in enumerate(self._kinds()):
                own = {name: kind.keep(name) for name in kind.names}
                kind.set_scores(random_scores(own, pruning.seed + i))
        units.gate_weights(self.model, self.grips, self.units)

    def _kinds(self) -> list[tuple[units.Kind, Units]]:
        return [(kind, self._units(kind)) for kind in units.KINDS if kind in self.units]

    def configure_model(self) -> None:
        """Builds the model, if there are steps enough to prune it.

        Raises:
            UserError: There are not, or it is to be spread over processes.
        """
        if self.device_mesh is not None:
            raise UserError("trainer.strategy: movement pruning is not supported with FSDP2; use auto, or ddp")
        if self.trainer.state.fn == "fit" and self._begin == self._end:
            raise UserError(
                f"trainer.max_steps: {self.total_steps} steps leave none for the schedule of model.pruning (warmup "
                f"{self.pruning.warmup}, cooldown {self.pruning.cooldown}); give more steps"
            )
        super().configure_model()

    def hold_zeros(self, entries: list[dict[str, Any]]) -> None:
        """As any method does; what is zero already counts among what goes.

        Raises:
            UserError: It is more than is to go, or nothing is.
        """
        super().hold_zeros(entries)
        for name, kind in self._kinds() if self.trainer.state.fn == "fit" else ():
            share, total = self.pruning.shares[name], sum(kind.keep(each).numel() for each in kind.names)
            gone = sum(int((~mask).sum()) for mask in self._left(name).values())
            if share and not round(share * total):
                raise UserError(
                    f"model.pruning.{name}: {share} of {total:,} is none; give at least {1 / total:.1g}, or 0"
                )
            if share and gone > round(share * total):
                raise UserError(
                    f"model.pruning.{name}: {share} is less than the {gone / total:.4f} that an earlier stage pruned; give "
                    "more, or 0"
                )

    def _left(self, kind: str) -> dict[str, Tensor]:
        """Of the blocks or weights of a kind, in matrices that hold zeros from elsewhere: which are not all zero."""
        held = dict(self.masks.items())
        grips = ((name, grip) for name, grip in self.grips.items() if grip.kind == kind and name in held)
        return {grip.name: grip.total(held[name].float()) > 0 for name, grip in grips}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The weights' groups, and the scores with a learning rate of their own and no weight decay."""
        scores = [p for p in self.units.parameters() if p.requires_grad]
        groups, own = super().parameter_groups(), {id(p) for p in scores}
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in own]
        return [*groups, {**groups[-1], "lr": float(self.pruning.lr), "params": scores}] if scores else groups

    # -- training ----------------------------------------------------------------------------------------------------

    @property
    def _begin(self) -> int:
        return round(self.pruning.warmup * self.total_steps)

    @property
    def _end(self) -> int:
        return round((1 - self.pruning.cooldown) * self.total_steps)

    def _scheduled(self, step: int, final: float) -> float:
        return cubic(step, self._begin, self._end, 0.0, final)

    def losses(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Those of the model; with a threshold also the L1 term on the scores."""
        loss, terms = super().losses(batch)
        if self.pruning.threshold is None or self.pruning.criterion != "movement":
            return loss, terms
        # Once for each supervised token, as the base class divides by their number.
        tokens = (self.task.labels(batch) != IGNORE).sum()
        penalty = torch.stack([kind.openness() for _, kind in self._kinds()]).mean() * tokens
        weight = self._scheduled(self.global_step, self.pruning.threshold.penalty)
        return loss + weight * penalty, {**terms, "penalty": penalty.detach()}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps; then decides anew which units stay, for the next step and for whoever looks at the model before it."""
        super().optimizer_step(*args, **kwargs)
        step = self.global_step + 1  # which Lightning counts after this
        if self.pruning.criterion == "magnitude":
            for name, scores in units.magnitudes(self.model, self.grips).items():
                self._units(name).set_scores(scores)
        for name, kind in self._kinds():
            if self.pruning.threshold:
                found = kind.decide_above(self._scheduled(step, self.pruning.threshold.at), self.pruning.regrow)
            else:
                share = self._scheduled(step, self.pruning.shares[name])
                found = kind.decide(share, self.pruning.scope, self.pruning.regrow, self._left(name))
            self._note(name, kind, found)

    def _note(self, name: str, kind: Units, found: dict[str, float]) -> None:
        gone = {layer: 1 - float(kind.keep(layer).float().mean()) for layer in kind.names}
        sizes = {layer: kind.keep(layer).numel() for layer in kind.names}
        total = sum(gone[layer] * size for layer, size in sizes.items()) / sum(sizes.values())
        figures = {**found, "sparsity": total} | {f"sparsity/{layer}": share for layer, share in gone.items()}
        self.step_metrics |= {f"pruning/{name}/{key}": value for key, value in figures.items()}

    def draw(self, board: SummaryWriter, step: int) -> None:
        """Histograms of the scores, and pictures of what stays: layers by units, or matrices."""
        for name, kind in self._kinds():
            scores = torch.cat([score.detach().flatten() for score in kind.scores.values()])
            board.add_histogram(f"pruning/{name}/scores", scores.cpu(), step)
            masks = {layer: kind.keep(layer) for layer in kind.names}
            for tag, picture in pictures(masks).items():
                board.add_image(f"pruning/{name}/{tag}", picture, step)

    # -- the artefact ------------------------------------------------------------------------------------------------

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerFast, weights: dict[str, Tensor]) -> None:
        """Writes the model without the heads and neurons that have gone, or with zeros for the blocks and weights that have."""
        told = self.pruning.told()
        if self.pruning.granularity == "structured":
            heads, neurons = self._kept("attention", 0), self._kept("ffn", 1)
            self._removed = [{**removal(self.model.config, heads, neurons), **told}]
            save_model(remove(self.model, heads, neurons), tokenizer, folder)
            return
        parameters = dict(self.model.named_parameters())
        pruned = {
            name: grip.gated(parameters[name], self._units(grip.kind).gate(grip.name)).detach()
            for name, grip in self.grips.items()
        }
        save_model(self.model, tokenizer, folder, weights | {name: value.cpu() for name, value in pruned.items()})
        weights_, zeros = sum(v.numel() for v in pruned.values()), saved_zeros(folder / "model.safetensors", pruned)
        counted = {"tensors": len(pruned), "weights": weights_, "achieved": zeros / weights_}
        self._removed = [{"op": "movement", "targets": "linear", "adapters": False, **counted, **told}]

    def _units(self, kind: str) -> Units:
        found = self.units[kind]
        assert isinstance(found, Units)
        return found

    def _kept(self, kind: units.Kind, index: int) -> list[Tensor]:
        """For each layer which of its units stay; nothing of a layer that had none."""
        known = self._units(kind) if kind in self.units else None
        count = len(block_sizes(self.model.config)[index])
        none = torch.zeros(0, dtype=torch.bool)
        return [known.keep(str(i)).cpu() if known and str(i) in known.names else none for i in range(count)]

    def ledgers(self, folder: Path) -> dict[Path, list[Operation]]:
        """With what has gone."""
        return {folder: [*self.operations, *self._removed, *self.prunings]}
