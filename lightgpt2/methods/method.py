"""The one LightningModule: a task, a start, an objective and adaptations make a training run."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast

from lightgpt2.adaptations.base import Adaptation, Context, Result
from lightgpt2.adaptations.masks import HeldMasks
from lightgpt2.data.base import Connection
from lightgpt2.data.tokenizer import other_token
from lightgpt2.errors import Problem, UserError, refuse
from lightgpt2.functional.schedules import Progress
from lightgpt2.methods import resume
from lightgpt2.methods.callbacks import callback_problems
from lightgpt2.methods.optimizer import OptimizerConfig
from lightgpt2.methods.parts import Parts
from lightgpt2.methods.processes import of_all_processes
from lightgpt2.models.families import blocks, check_finite, family_of
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.loading import new_model, untie
from lightgpt2.models.operations import Operation
from lightgpt2.models.pruning import prunable, saved_zeros
from lightgpt2.models.quality import Metric
from lightgpt2.models.saving import save_model, whole_weights
from lightgpt2.models.tokenizers import load_tokenizer
from lightgpt2.models.vocabulary import needed_rows
from lightgpt2.objectives.base import Binding, Objective
from lightgpt2.objectives.cross_entropy import CrossEntropy
from lightgpt2.starts.base import Start
from lightgpt2.tasks.base import Batch, Row, Task
from lightgpt2.tasks.language_modeling import LanguageModeling


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite."""


class Method(Parts):
    """Trains one model.

    The loss is a mean over all supervised items of an optimizer step, whatever the padding, the accumulation and the number of
    processes.

    Args:
        start: Where the model comes from.
        objective: What is minimized. The default is cross-entropy.
        adaptations: What of the model is trained and how it is saved. The default is all weights.
        task: What is predicted and how it is scored.
        optimizer: AdamW and its schedule.
        compile: Compile the models with torch.compile, in place.
        activation_checkpointing: Keep only each block's input for the backward pass and compute the rest again there (Chen et
            al. 2016, arXiv:1604.06174): less memory, more time, the same gradients.
        trust_remote_code: Let code in a model's folder run.

    Attributes:
        step_metrics: Figures of the optimizer step that was taken last, to log.
        metrics: The metrics of the split that was scored last, by name.
    """

    def __init__(
        self,
        start: Start,
        objective: Objective | None = None,
        adaptations: list[Adaptation] | None = None,
        task: Task = LanguageModeling(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        compile: bool = False,
        activation_checkpointing: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        self.start, self.task, self.optimizer_config = start, task, optimizer
        start.task = task
        self.objective = objective or CrossEntropy()
        self.held = HeldMasks()
        for number, adaptation in enumerate(adaptations or []):
            adaptation.key = f"adaptations.{number}"
        ordered = sorted([*(adaptations or []), self.held], key=lambda each: each.order)
        self.adaptations = cast(Sequence[Adaptation], nn.ModuleList(ordered))
        # FSDP2's strategy, which loads weights itself, refuses a checkpoint without the frozen ones otherwise.
        self.strict_loading = not any(part.freezes for part in ordered)
        self.compile_model, self.activation_checkpointing = compile, activation_checkpointing
        self.trust_remote_code = trust_remote_code
        self.names = {}
        self.contradictions = []
        self.operations: list[Operation] = []
        self.step_metrics: dict[str, float] = {}
        self.metrics: dict[str, Metric] = {}
        self._terms: list[Tensor] = []
        self._rows: list[Row] = []
        self._restored_rng: list[resume.RandomState] | None = None
        self._rng_before_step: resume.RandomState | None = None

    # -- building ------------------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Any]:
        """Hands the data what it needs of the model: the first hook that Lightning calls, before it prepares the data.

        Raises:
            UserError: The trainer has callbacks that a run cannot have.
        """
        refuse(callback_problems(cast(Any, self.trainer).callbacks, self.task))
        source, key = self.start.tokenizer
        key = self.config_key(key)
        config = None
        with suppress(UserError):  # which `configure_model` will tell, with all other mistakes
            config = next(iter(self.start.configs(self.trust_remote_code).values()))
        trims, prompt = self.start.trims_vocabulary, self.task.prompt_length
        self.data.connect(Connection(source, key, self.trust_remote_code, trims, prompt, config))
        return []

    def configure_model(self) -> None:
        """Builds the model once, before optimizers exist and before a checkpoint is loaded."""
        if hasattr(self, "model") or self._trainer is None:  # `load_from_checkpoint` builds it with what that brings
            return
        training = self.trainer.state.fn == "fit"
        problems: list[str] = []
        if training:
            problems += [p.under("model.optimizer") for p in self.optimizer_config.problems(self.total_steps)]
        for part in self.adaptations:
            if self.device_mesh is not None and not part.shards:
                name = type(part).__name__
                problems.append(f"trainer.strategy: {name} is not supported with FSDP2; use auto, or ddp")
            problems += [self.keyed(each) for each in part.step_problems(self.total_steps)] if training else []
        if problems := problems or self.problems(self.data, training):
            raise UserError(problems)
        try:
            self._build(training)
        except UserError as error:
            raise UserError([self.keyed(problem) for problem in error.problems]) from error
        if self.device_mesh is not None:
            if len(self.held.masks):
                what = "masks of pruned weights are not supported with FSDP2"
                raise UserError(f"trainer.strategy: {what}; use auto, or ddp")
            self._shard(self.device_mesh["data_parallel"])

    def _build(self, training: bool) -> None:
        self.task.bind(self.data)
        self.model, self.operations = self.start.build(self.data, self.trust_remote_code)
        self.assemble(self.total_steps if training else 0, training)
        self._check_teachers()
        key = self.config_key()
        check_finite(self.model, key)
        self.task.check(self.model, key)
        models = {key: self.model.config} | self.objective.configs(self.trust_remote_code)
        for key, config in models.items():
            if (tokens := needed_rows(self.data.tokenizer)) > config.vocab_size:
                what = f"it has {tokens} tokens and the model of {self.config_key(key)} has {config.vocab_size}"
                raise UserError(f"data.tokenizer: {what}; use the model's own tokenizer, and a teacher that shares it")
        self.held.hold(self.model, Ledger.read(self.start.source))
        for part in self.adaptations:
            part.check(self.model)
        if self.activation_checkpointing:
            self.model.activation_checkpointing_enable()
        for model in (self.model, *self.objective.frozen_models) if self.compile_model else ():
            for module in family_of(model).called(model):
                module.compile()

    def _check_teachers(self) -> None:
        """Refuses a teacher to which the ids of the text's tokens are other tokens."""
        for source, key in {} if self.start.trims_vocabulary else self.objective.sources.items():
            try:
                theirs = load_tokenizer(source, key, self.trust_remote_code)
            except UserError:
                continue  # it brings none, and reads what it is given
            if wrong := other_token(self.data.tokenizer, theirs):
                what = f"{source} reads other tokens than the text is cut into ({wrong})"
                raise UserError([Problem(key, what, "choose models that share a tokenizer")])

    def _rebuild(self, checkpoint: dict[str, Any]) -> None:
        """Builds the model of a checkpoint without a trainer: what is frozen is loaded anew, all else has its shape there."""
        values = json.loads(checkpoint["model_config"])
        config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
        self.task.restore(config)
        if self.freezes:
            self.model, _ = self.start.build(None, self.trust_remote_code)  # type: ignore[arg-type]
        else:
            self.model = new_model(config)
            if not checkpoint.get("tied", True):
                untie(self.model)
        self.objective, self.operations = CrossEntropy(), []  # a teacher is not needed to use the model
        for name in [name for name in checkpoint["state_dict"] if name.startswith("objective.")]:
            del checkpoint["state_dict"][name]
        self.assemble(total_steps=0, training=False)
        self.held.masks.allocate(checkpoint["state_dict"], resume.MASKS)
        self.model.eval()

    def assemble(self, total_steps: int, training: bool = True) -> None:
        """Binds the objective to `self.model` and applies the adaptations.

        Args:
            total_steps: Optimizer steps of the run.
            training: Whether the run will train, and not only score.
        """
        trust, original = self.trust_remote_code, self.start.original
        layers = None if original is None else self.start.layers(original.config)
        self.objective.bind(Binding(self.task, self.model, original, str(self.start.source), layers, trust))
        for part in self.adaptations:
            others = [other for other in self.adaptations if other is not part]
            plain = partial(self.start.plain, trust)
            context = Context(self.task, plain, self.start.adapter, others, self.held.masks, training, total_steps)
            self.operations += part.apply_to(self.model, context)
        self.model.train()

    def _shard(self, mesh: DeviceMesh) -> None:
        """Spreads the parameters over processes (FSDP2): each holds a part, and a block is whole only while it runs."""
        for block in blocks(self.model).values():
            fully_shard(block, mesh=mesh)
        fully_shard(self, mesh=mesh)
        for name in ("training_step", "validation_step", "test_step", "predict_step", "samples"):
            register_fsdp_forward_method(self, name)
        for model in self.objective.frozen_models:
            for block in blocks(model).values():
                fully_shard(block, mesh=mesh, reshard_after_forward=True)

    def on_fit_start(self) -> None:
        """Moves models that Lightning does not know of where the trained one is."""
        for model in self.objective.frozen_models:
            model.to(device=self.device)

    # -- the optimizer -------------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run, from the trainer's limits.

        `trainer.estimated_stepping_batches` would set up the data before a checkpoint's position is restored, and lose it.
        """
        trainer, per_epoch = self.trainer, self.data.steps_per_epoch
        limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            limits.append(trainer.max_epochs * per_epoch)
        return min(limits, default=1000 * per_epoch)

    @property
    def progress(self) -> Progress:
        return Progress(self.global_step, self.total_steps)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameter_groups())
        scheduler = LambdaLR(optimizer, self.optimizer_config.factor(self.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        # Lightning refuses to clip gradients under autocast for an optimizer that could unscale them itself.
        fused = not str(self.trainer.precision).endswith("-mixed")
        groups = self.optimizer_config.groups((p for p in self.parameters() if p.requires_grad), fused)
        for part in self.adaptations:
            groups = part.parameter_groups(groups)
        return groups

    def _apply_settings(self) -> None:
        """Puts the configuration's settings over those that a checkpoint restored: the command line has the last word."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        scheduler: Any = self.lr_schedulers()
        settings = [{k: value for k, value in group.items() if k != "params"} for group in self.parameter_groups()]
        scheduler.base_lrs = [group["lr"] for group in settings]
        factor = self.optimizer_config.factor(self.total_steps)(scheduler.last_epoch)
        for group, values in zip(optimizer.param_groups, settings, strict=True):
            group.update(values, initial_lr=values["lr"], lr=values["lr"] * factor)

    # -- training ------------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Sets the optimizer as configured, and the random generators to where the checkpoint left them, or to the seed."""
        self._apply_settings()
        if self.start.original is not self.objective.reference:
            self.start.original = None  # it has been scored
        resume.set_random_state(self._restored_rng, self.global_rank)
        self._accumulate = self.trainer.accumulate_grad_batches

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Notes the random generators' states where an optimizer step begins, for a checkpoint inside it."""
        if self.trainer.accumulate_grad_batches != self._accumulate:  # for which a step's items are counted
            raise UserError(f"trainer.accumulate_grad_batches: must stay {self._accumulate}; remove what changes it")
        if batch_idx % self._accumulate == 0:
            self._rng_before_step = resume.random_state()
        for part in self.adaptations:
            part.before_step(self.progress)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, terms = self.losses(batch)
        # Lightning divides by the number of micro-batches and DDP averages over processes; a mean over the step's items
        # needs neither.
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / batch["step_items"]
        self._term_names = ["loss", *terms]
        self._terms.append(torch.stack([loss.detach(), *terms.values()]) / batch["step_items"])
        scaled: Tensor = loss * scale
        return scaled

    def losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimize and its terms to log, each summed over the micro-batch's supervised items."""
        loss, terms = self.objective(self.model, batch, self.progress)
        for part in self.adaptations:
            if (penalty := part.penalty(self.progress)) is not None:
                # Once for each supervised item, as the sum is divided by their number.
                added = penalty * self.task.items(batch)
                loss, terms = loss + added, {**terms, "penalty": added.detach()}
        return loss, terms

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Sums the step's terms over micro-batches and processes, and stops before a non-finite loss does harm."""
        for part in self.adaptations:
            part.mask_gradients(self.model)
        terms = self.trainer.strategy.reduce(torch.stack(self._terms).sum(dim=0), reduce_op="sum")
        local, self._terms = self._terms, []
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        if isinstance(norm, DTensor):  # of gradients that are spread over processes
            norm = norm.full_tensor()
        # With fp16 an overflowing gradient is the scaler's business: it skips the step.
        sound = torch.isfinite(terms).all() and (self.trainer.precision == "16-mixed" or torch.isfinite(norm))
        if not sound:
            micro = next((i for i, t in enumerate(local) if not torch.isfinite(t).all()), 0)
            first = self.trainer.fit_loop.epoch_loop.batch_idx - len(local) + 1
            what = "gradient" if torch.isfinite(terms).all() else "loss"
            raise NonFiniteLossError(
                f"the {what} is not finite at step {self.global_step + 1} (epoch {self.current_epoch}, batch "
                f"{first + micro}); the weights before it are saved. Lower model.optimizer.lr, set "
                "trainer.gradient_clip_val, or raise the precision, and resume with --ckpt_path last, or best"
            )
        named = dict(zip(self._term_names, terms.tolist(), strict=True))
        named |= {"grad_norm": float(norm), "lr": float(optimizer.param_groups[0]["lr"])}
        self.step_metrics = {f"train/{name}": value for name, value in named.items()}

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Steps, then frees the gradients: Lightning would hold them through the next forward pass."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._rng_before_step = None  # the next checkpoint is of the state after the step
        optimizer.zero_grad()
        after = Progress(self.global_step + 1, self.total_steps)  # which Lightning counts after this
        for part in reversed(self.adaptations):
            self.step_metrics |= part.after_step(self.model, after)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs a finished optimizer step, against the number of steps taken: curves of runs with any accumulation line up."""
        metrics, self.step_metrics = self.step_metrics, {}
        if metrics:
            self.log("loss", metrics["train/loss"], prog_bar=True, logger=False, batch_size=1)
            self._write_logs(metrics)

    def _write_logs(self, metrics: Mapping[str, float]) -> None:
        for logger in self.loggers:
            logger.log_metrics(dict(metrics), step=self.global_step)

    # -- scoring -------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._rows += self.task.rows(self.model, batch)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._log_split("val")

    def on_test_epoch_end(self) -> None:
        self._log_split("test")

    def _log_split(self, split: str) -> None:
        rows = of_all_processes(self._rows)
        self.metrics = self.task.metrics(rows)
        loss = sum(row["loss"] for row in rows) / max(1.0, sum(row["items"] for row in rows))
        values = {"loss": loss, **{name: metric.value() for name, metric in self.metrics.items()}}
        fits = self.trainer.state.fn == "fit"  # whose curves are against optimizer steps; others return what they log
        for name, value in values.items():
            shown = name in ("loss", self.task.primary)
            # Alike on all processes, which Lightning wants to be told.
            self.log(f"{split}/{name}", value, prog_bar=shown, logger=not fits, sync_dist=True)
        if fits and not self.trainer.sanity_checking:
            self._write_logs({f"{split}/{name}": value for name, value in values.items()})

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        if self.task.predict == "scores":
            return [*self.task.rows(self.model, batch)]
        return self.task.predicted(self.model, self.data.tokenizer, batch)

    def samples(self, prompts: list[Any]) -> list[tuple[str, str]]:
        """Pairs of texts, the prompt and what the model makes of it; all processes must call it."""
        return self.task.samples(self.model, self.data.tokenizer, prompts)

    # -- the artefact --------------------------------------------------------------------------------------------------

    def save(
        self, folder: Path, tokenizer: PreTrainedTokenizerFast, weights: dict[str, Tensor]
    ) -> dict[Path, list[Operation]]:
        """Writes the artefact, and the folders beside it that adaptations write.

        Args:
            folder: The artefact's folder.
            tokenizer: The tokenizer that goes with it.
            weights: The weights of `self.model`, gathered from all processes.

        Returns:
            The folders that were written, each with what was done to the model in it.
        """
        # Before what the parts do now: a merge ends the pruning of adapters.
        result = Result(self.model, weights, folder, tokenizer, [*self.operations, *self.held.prunings])
        for part in self.adaptations:
            part.finish(result)

        def finish(temporary: Path) -> None:
            for step in (*result.steps, *result.checks):
                step(temporary)

        save_model(result.model, tokenizer, folder, result.weights, finish)
        return {**result.folders, folder: result.operations}

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the artefact as it is now into a folder that plain transformers loads.

        Args:
            folder: The folder; replaced if it exists.
        """
        target = Path(folder)
        self.save(target, self.data.tokenizer, whole_weights(self.model))
        return target

    def count_zeros(self, folder: Path) -> None:
        """Completes the records of prunings by the zeros in what `save` wrote to a folder."""
        for operation in self.held.prunings:
            names = list(prunable(self.model, operation["targets"], "targets", operation.get("whole", ())))
            weights, pruned = self.held.masks.counts(names)
            own = (part.zeros(folder, names) for part in self.adaptations)
            zeros = next((found for found in own if found is not None), None)
            if zeros is None:
                zeros = saved_zeros(folder / "model.safetensors", names)
            if zeros < pruned:
                raise RuntimeError(f"{pruned} weights were pruned and {zeros} are zero on disk")
            operation |= {"tensors": len(names), "weights": weights, "pruned": pruned, "achieved": zeros / weights}

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        resume.pack(self, checkpoint, self._rng_before_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is None:
            self._rebuild(checkpoint)
        else:
            self._restored_rng = resume.unpack(self, checkpoint)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return resume.load(self, super().load_state_dict, state_dict, assign)
