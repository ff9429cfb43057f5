"""The one LightningModule: a task, a start, an objective and adaptations make a training run."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.tensorboard import SummaryWriter
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.adaptations.base import Adaptation, Context, Result, Saved
from lightgpt2.adaptations.masks import HeldMasks
from lightgpt2.data.base import Connection, TaskData
from lightgpt2.errors import Problem, UserError
from lightgpt2.functional.schedules import Progress
from lightgpt2.methods import random_state, resume
from lightgpt2.methods.optimizer import OptimizerConfig
from lightgpt2.methods.parts import Parts
from lightgpt2.methods.processes import of_all_processes
from lightgpt2.models.families import blocks, check_head
from lightgpt2.models.ledger import Ledger, Parent
from lightgpt2.models.loading import new_model
from lightgpt2.models.operations import Operation
from lightgpt2.models.saving import save_model, whole_weights
from lightgpt2.models.standalone import stored_weights
from lightgpt2.objectives.base import Binding, Objective
from lightgpt2.objectives.cross_entropy import CrossEntropy
from lightgpt2.starts.base import Start
from lightgpt2.tasks.base import Batch, Row, Task
from lightgpt2.tasks.language_modeling import LanguageModeling


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite."""


class Method(LightningModule):
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
        names: Where the settings of the parts stand in a preset's configuration: `{"start.model": "teacher"}`.
        contradictions: Mistakes that a preset found in its arguments.
        step_metrics: Figures of the optimizer step that was taken last, to log.
    """

    names: dict[str, str]

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
        self.objective = objective or CrossEntropy()
        self.held = HeldMasks()
        for number, adaptation in enumerate(adaptations or []):
            adaptation.key = f"adaptations.{number}"
        ordered = sorted([*(adaptations or []), self.held], key=lambda each: each.order)
        self.adaptations = nn.ModuleList(ordered)
        # FSDP2's strategy, which loads weights itself, refuses a checkpoint without the frozen ones otherwise.
        self.strict_loading = not any(part.freezes for part in ordered)
        self.compile_model, self.activation_checkpointing = compile, activation_checkpointing
        self.trust_remote_code = trust_remote_code
        self.names = {}
        self.contradictions: list[Problem] = []
        self.operations: list[Operation] = []
        self.step_metrics: dict[str, float] = {}
        self._terms: list[Tensor] = []
        self._rows: list[Row] = []
        self._restored_rng: list[dict[str, Any]] | None = None
        self._rng_before_step: dict[str, Any] | None = None

    # -- what the parts say --------------------------------------------------------------------------------------------

    @property
    def data(self) -> TaskData:
        """The data module."""
        found: TaskData = self.trainer.datamodule  # type: ignore[attr-defined]
        return found

    @property
    def _adapted(self) -> list[Adaptation]:
        return [part for part in self.adaptations if isinstance(part, Adaptation)]

    @property
    def parts(self) -> Parts:
        """What the method is put together from."""
        return Parts(
            self.task,
            self.start,
            self.objective,
            self._adapted,
            self.names,
            self.contradictions,
            self.trust_remote_code,
        )

    @property
    def precision(self) -> str | None:
        """What the artefact's weights are quantized to; None: they are in full precision."""
        return self.parts.precision

    @property
    def removes(self) -> bool:
        """Whether the artefact lacks parts of what was trained."""
        return any(part.removes for part in self._adapted)

    @property
    def teacher_source(self) -> str | None:
        """The model that the run learns from, if any."""
        return self.objective.teacher_source

    @property
    def frozen_sources(self) -> list[str]:
        """The models that training reads and does not change, so that no checkpoint holds them."""
        frozen = self.start.sources if any(part.freezes for part in self._adapted) else []
        return [*frozen, *self.objective.sources]

    @property
    def references(self) -> dict[str, PreTrainedModel]:
        """Other models to score before the first step: the `teacher`; the `source` where the start computes something else."""
        teacher = self.objective.reference
        found = {} if teacher is None else {"teacher": teacher}
        if self.start.original is not None and self.start.original is not teacher:
            found["source"] = self.start.original
        if any(part.changes_start for part in self._adapted) and self.teacher_source != self.start.source:
            adapters = any(part.freezes for part in self._adapted)  # which give the model's own weights other names
            found["source"] = self.start.plain(self.trust_remote_code) if adapters else self.model
        return found

    def parent_record(self) -> Parent:
        """The ledger's record of the model this stage starts from."""
        return Parent.of(self.start.source)

    def configs(self) -> dict[str, PretrainedConfig]:
        """See `Parts.configs`."""
        return self.parts.configs()

    def problems(self, data: TaskData, training: bool) -> list[str]:
        """See `Parts.check`."""
        return self.parts.check(data, training)

    # -- building ------------------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Any]:
        """Hands the data what it needs of the model: the first hook that Lightning calls, before it prepares the data."""
        source, key = self.start.tokenizer
        key = self.parts.keyed(Problem(key, "")).key
        self.data.connect(
            Connection(source, key, self.trust_remote_code, self.start.trims_vocabulary, self.task.prompt_length)
        )
        return []

    def configure_model(self) -> None:
        """Builds the model once, before optimizers exist and before a checkpoint is loaded."""
        if hasattr(self, "model") or self._trainer is None:  # `load_from_checkpoint` builds it with what that brings
            return
        training = self.trainer.state.fn == "fit"
        problems: list[str] = []
        for part in self._adapted:
            if self.device_mesh is not None and not part.shards:
                name = type(part).__name__
                problems.append(f"trainer.strategy: {name} is not supported with FSDP2; use auto, or ddp")
            problems += [self.parts.keyed(each) for each in part.step_problems(self.total_steps)] if training else []
        if problems := problems or self.problems(self.data, training):
            raise UserError(problems)
        try:
            self._build(training)
        except UserError as error:
            raise UserError([self.parts.keyed(problem) for problem in error.problems]) from error
        if self.device_mesh is not None:
            if len(self.held.masks):
                raise UserError(
                    "trainer.strategy: masks of pruned weights are not supported with FSDP2; use auto, or ddp"
                )
            self.shard(self.device_mesh["data_parallel"])

    def _build(self, training: bool) -> None:
        self.model, self.operations = self.start.build(self.data, self.trust_remote_code)
        self.assemble(self.total_steps if training else 0, training)
        check_head(self.model, self.parts.source_key)
        tokens, rows = len(self.data.tokenizer), self.model.config.vocab_size
        if tokens > rows:
            raise UserError(
                f"data.tokenizer: it has {tokens} tokens and the model of {self.parts.source_key} has {rows}; use the "
                "model's own tokenizer"
            )
        self.held.hold(self.model, Ledger.read(self.start.source))
        for part in self._adapted:
            part.check(self.model)
        if self.activation_checkpointing:
            self.model.activation_checkpointing_enable()
        for model in (self.model, *self.objective.frozen_models) if self.compile_model else ():
            model.base_model.compile()

    def _rebuild(self, checkpoint: dict[str, Any]) -> None:
        """Builds the model of a checkpoint without a trainer: what is frozen is loaded anew, all else has its shape there."""
        if any(part.freezes for part in self._adapted):
            self.model, _ = self.start.build(None, self.trust_remote_code)  # type: ignore[arg-type]
        else:
            values = json.loads(checkpoint["model_config"])
            kind = CONFIG_MAPPING[values["model_type"]]
            self.model = new_model(kind.from_dict(values))
        self.objective, self.operations = CrossEntropy(), []  # a teacher is not needed to use the model
        for name in [name for name in checkpoint["state_dict"] if name.startswith("objective.")]:
            del checkpoint["state_dict"][name]
        self.assemble(total_steps=0, training=False)
        prefix = next(name for name, inner in self.named_modules() if inner is self.held.masks)
        self.held.masks.allocate(checkpoint["state_dict"], f"{prefix}.")
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
        for part in self._adapted:
            others = [other for other in self._adapted if other is not part]
            plain = partial(self.start.plain, trust)
            context = Context(self.task, plain, self.start.adapter, others, self.held.masks, training, total_steps)
            self.operations += part.apply_to(self.model, context)
        self.model.train()

    def shard(self, mesh: DeviceMesh) -> None:
        """Spreads the parameters over processes (FSDP2): each holds a part, and a block is whole only while it runs.

        Args:
            mesh: One dimension of processes, each of which built the same model.
        """
        for block in blocks(self.model):
            fully_shard(block, mesh=mesh)
        fully_shard(self, mesh=mesh)
        for name in ("training_step", "validation_step", "test_step", "predict_step", "samples"):
            register_fsdp_forward_method(self, name)
        for model in self.objective.frozen_models:
            for block in blocks(model):
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
        """How far the run is."""
        return Progress(self.global_step, self.total_steps)

    def configure_optimizers(self) -> Any:
        """AdamW over what is trainable, matrices with weight decay and vectors without."""
        optimizer = torch.optim.AdamW(self.parameter_groups())
        scheduler = LambdaLR(optimizer, self.optimizer_config.factor(self.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer trains, in groups with their settings."""
        # Lightning refuses to clip gradients under autocast for an optimizer that could unscale them itself.
        fused = not str(self.trainer.precision).endswith("-mixed")
        groups = self.optimizer_config.groups((p for p in self.parameters() if p.requires_grad), fused)
        for part in self._adapted:
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
        random_state.begin(self._restored_rng, self.global_rank)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Notes the random generators' states where an optimizer step begins, for a checkpoint inside it."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._rng_before_step = random_state.capture()
        for part in self._adapted:
            part.before_step(self.progress)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One micro-batch's share of the step's loss."""
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
        for part in self._adapted:
            if (penalty := part.penalty(self.progress)) is not None:
                # Once for each supervised item, as the sum is divided by their number.
                added = penalty * self.task.items(batch)
                loss, terms = loss + added, {**terms, "penalty": added.detach()}
        return loss, terms

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Sums the step's terms over micro-batches and processes, and stops before a non-finite loss does harm."""
        for part in self._adapted:
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
        for part in reversed(self._adapted):
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

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Scores a batch; its `rows`."""
        rows = self.task.rows(self.model, batch)
        self._rows += rows
        return {"rows": rows}

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Logs the validation split's metrics."""
        self._log_split("val")

    def on_test_epoch_end(self) -> None:
        """Logs the test split's metrics."""
        self._log_split("test")

    def _log_split(self, split: str) -> None:
        rows = of_all_processes(self._rows)
        loss = sum(row["loss"] for row in rows) / max(1.0, sum(row["items"] for row in rows))
        values = {"loss": loss, **{name: metric.value() for name, metric in self.task.metrics(rows).items()}}
        fits = self.trainer.state.fn == "fit"  # whose curves are against optimizer steps; others return what they log
        for name, value in values.items():
            shown = name in ("loss", self.task.primary)
            self.log(
                f"{split}/{name}", value, prog_bar=shown, logger=not fits, sync_dist=True
            )  # alike on all processes
        if fits and not self.trainer.sanity_checking:
            self._write_logs({f"{split}/{name}": value for name, value in values.items()})

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """What the predictions file is made of."""
        if self.task.predict == "scores":
            return [*self.task.rows(self.model, batch)]
        return self.task.predicted(self.model, self.data.tokenizer, batch)

    def samples(self, prompts: list[Any]) -> list[tuple[str, str]]:
        """Pairs of texts, the prompt and what the model makes of it; all processes must call it."""
        return self.task.samples(self.model, self.data.tokenizer, prompts)

    def write_images(self, board: SummaryWriter, step: int) -> None:
        """Shows in TensorBoard what no single number says."""
        for part in self._adapted:
            part.write_images(board, step)

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
        for part in self._adapted:
            part.finish(result)

        def finish(temporary: Path) -> None:
            for step in result.steps:
                step(temporary)
            if result.checks:
                saved = Saved(stored_weights.read(temporary / "model.safetensors"))
                for check in result.checks:
                    check(saved)

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

    def zeros(self, folder: Path, names: Sequence[str]) -> int:
        """How many of the named parameters' elements are zero in what `save` wrote to a folder."""
        for part in self._adapted:
            if (found := part.zeros(folder, names)) is not None:
                return found
        return Saved(stored_weights.read(folder / "model.safetensors")).zeros(names)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what is frozen, and adds what Lightning leaves out."""
        checkpoint["model_config"] = self.model.config.to_json_string()
        resume.pack(self, self.held, self.start, self.frozen_sources, checkpoint, self._rng_before_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the checkpoint belongs to this run; restores what Lightning does not.

        Raises:
            UserError: The weights that the checkpoint left out have changed, or the text that decided the vocabulary.
        """
        if self._trainer is None:
            self._rebuild(checkpoint)
            return
        self._restored_rng = resume.unpack(self, self.held, self.start, self.frozen_sources, checkpoint)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Restores the weights; what is frozen stays as it is.

        Raises:
            UserError: They are of a model of another shape.
        """
        return resume.load(self, super().load_state_dict, state_dict, assign)
