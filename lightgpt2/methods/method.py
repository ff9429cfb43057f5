"""What all training methods share: building, the optimizer and the step's bookkeeping."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.tensorboard import SummaryWriter
from torchmetrics import MeanMetric
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.errors import UserError
from lightgpt2.functional.pruning import Masks
from lightgpt2.methods.optimizer import OptimizerConfig
from lightgpt2.methods.pruned import Pruned
from lightgpt2.methods.resumable import Resumable
from lightgpt2.methods.scored import Scored
from lightgpt2.models import ledger
from lightgpt2.models.families import blocks, check_head
from lightgpt2.models.ledger import Parent
from lightgpt2.models.operations import Operation
from lightgpt2.models.pruning import saved_zeros
from lightgpt2.models.quantization import quantization_of
from lightgpt2.models.saving import save_model
from lightgpt2.tasks.language_modeling import LanguageModeling


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite."""


class Method(Resumable, Scored, Pruned):
    """A training method on one model.

    A subclass builds `self.model` in `build` and returns the terms of its loss, summed over the supervised tokens of a
    micro-batch, from `losses`. This class makes of them a mean over all supervised tokens of the optimizer step, whatever
    the padding, the accumulation and the number of processes.

    Args:
        task: What is predicted and how it is scored.
        optimizer: AdamW and its schedule.
        compile: Whether to compile the model with torch.compile, in place.
        activation_checkpointing: Whether to keep of each block only its input for the backward pass, and compute the rest again
            there (Chen et al. 2016, arXiv:1604.06174): less memory for more time, and the same gradients.
        trust_remote_code: Whether code in a model's folder may run. Off unless asked.
    """

    operations: list[Operation]

    def __init__(
        self,
        task: LanguageModeling,
        optimizer: OptimizerConfig,
        compile: bool,
        activation_checkpointing: bool,
        trust_remote_code: bool,
    ) -> None:
        super().__init__()
        self.task = task
        self.optimizer_config = optimizer
        self.compile_model = compile
        self.activation_checkpointing = activation_checkpointing
        self.trust_remote_code = trust_remote_code
        self.operations = []
        self.masks = Masks()
        self.prunings = []
        self.val_nll = MeanMetric().set_dtype(torch.float64)
        self.step_metrics: dict[str, float] = {}
        self._terms: list[Tensor] = []

    # -- what a method defines ---------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def parent(self) -> tuple[str | dict[str, Any], str]:
        """The model that this stage starts from, and the config key that names it."""

    @property
    def teacher_source(self) -> str | None:
        """The model that this stage learns from, if any."""
        return None

    @property
    def reference(self) -> tuple[str, PreTrainedModel] | None:
        """Another model to score before the first step, and what it is to the one that is trained: `teacher`, or `source`."""
        return None

    @property
    def references(self) -> dict[str, PreTrainedModel]:
        """All other models to score before the first step, by what they are."""
        return dict([self.reference] if self.reference else [])

    @property
    def tokenizer_source(self) -> tuple[str | dict[str, Any], str]:
        """Where the tokenizer comes from when the data names none, and the config key."""
        return self.parent

    @property
    def trims_vocabulary(self) -> bool:
        """Whether the tokenizer, and with it the model, keeps only the tokens that the training split needs."""
        return False

    @abstractmethod
    def build(self) -> None:
        """Makes `self.model` and whatever else has parameters, and sets `self.operations`.

        Raises:
            UserError: What was asked for does not fit together.
        """

    @abstractmethod
    def losses(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and its terms to log, each summed over the micro-batch's supervised tokens."""

    @property
    def start(self) -> PreTrainedModel:
        """The model as it is before the first step, to be scored."""
        return self.model

    def save_start(self, folder: Path, tokenizer: PreTrainedTokenizerFast, weights: dict[str, Tensor]) -> None:
        """As `save`, with `start` and its weights, for a folder that is scored and removed."""
        save_model(self.start, tokenizer, folder, weights)

    @property
    def removes(self) -> bool:
        """Whether the artefact lacks parts of what was trained, so that what is zero in the one is not counted in the other."""
        return False

    @property
    def makes(self) -> str | None:
        """What the artefact's weights are quantized to; nothing where they are in full precision."""
        return None

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerFast, weights: dict[str, Tensor]) -> None:
        """Writes the artefact.

        Args:
            folder: The artefact's folder.
            tokenizer: The tokenizer that goes with it.
            weights: The weights of `self.model`, gathered from all processes.
        """
        save_model(self.model, tokenizer, folder, weights)

    def zeros(self, folder: Path, names: list[str]) -> int:
        """How many of the named parameters' elements are zero in what `save` wrote to a folder."""
        return saved_zeros(folder / "model.safetensors", names)

    def ledgers(self, folder: Path) -> dict[Path, list[Operation]]:
        """The folders that `save` wrote, each with what was done to the model in it."""
        return {folder: [*self.operations, *self.prunings]}

    def draw(self, board: SummaryWriter, step: int) -> None:
        """Shows in TensorBoard, at each validation, what no single number says; nothing unless a method has something.

        Args:
            board: Where to.
            step: Optimizer steps taken.
        """

    def misfits(self, quantized: str) -> str | None:
        """Why this method cannot train a quantized model, with what to do; nothing where it can.

        Args:
            quantized: What its weights are quantized to.
        """
        other = ", or use lightgpt2.methods.QLoRA" if quantized == "nf4" else ""
        return f"such weights cannot be trained; give the model in full precision{other}"

    # -- building ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def configs(self) -> dict[str, PretrainedConfig]:
        """Configurations of the models involved by config key, without their weights; the trained one first.

        Raises:
            UserError: A model cannot be found, or one setting contradicts another; with all such problems.
        """

    def problems(self, data: Any, training: bool) -> list[str]:
        """What is wrong with the settings, as far as shows without weights, one line each.

        Args:
            data: The data module.
            training: Whether the model is to be trained, and not only scored.
        """
        try:
            configs = self.configs()
        except UserError as error:
            return [*error.problems]
        positions = {config.max_position_embeddings: key for key, config in configs.items()}
        found = [
            f"data.sequence_length: {data.sequence_length} is longer than the {n} positions of {key}; give at most that"
            for n, key in positions.items()
            if data.sequence_length > n
        ]
        if self.task.prompt_tokens >= (room := next(iter(configs.values())).max_position_embeddings):
            found.append(
                f"model.task.prompt_tokens: {self.task.prompt_tokens} leaves none of the model's {room} positions for a "
                f"continuation; give at most {room - 1}"
            )
        source, key = self.parent
        quantized = quantization_of(configs[key]) if training and key in configs else None
        if quantized and (reason := self.misfits(quantized)):
            found.append(f"{key}: {source} is quantized to {quantized.upper()}: {reason}")
        try:
            ledger.read(source)
        except UserError as error:
            found += error.problems
        return found

    def configure_model(self) -> None:
        """Builds the model once, before optimizers exist and before a checkpoint is loaded."""
        if hasattr(self, "model"):
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if problems := self.problems(data, training=self.trainer.state.fn == "fit"):
            raise UserError(problems)
        self.build()
        check_head(self.model, self.parent[1])
        if len(data.tokenizer) > self.model.config.vocab_size:
            raise UserError(
                f"data.tokenizer: it has {len(data.tokenizer)} tokens and the model of {self.parent[1]} has "
                f"{self.model.config.vocab_size}; use the model's own tokenizer"
            )
        self.model.train()
        self.hold_zeros(ledger.read(self.parent[0]))
        if self.activation_checkpointing:
            self.model.activation_checkpointing_enable()
        if self.compile_model:
            self.model.base_model.compile()
        if self.device_mesh is not None:
            if len(self.masks):
                raise UserError(
                    "trainer.strategy: masks of pruned weights are not supported with FSDP2; use auto, or ddp"
                )
            self.shard(self.device_mesh["data_parallel"])

    def shard(self, mesh: DeviceMesh) -> None:
        """Spreads the parameters over processes (FSDP2): each holds a part, and a block is whole only while it runs.

        Args:
            mesh: One dimension of processes, each of which built the same model.
        """
        for block in blocks(self.model):
            fully_shard(block, mesh=mesh)
        fully_shard(self, mesh=mesh)
        for name in ("training_step", "validation_step", "test_step", "predict_step", "continuations"):
            register_fsdp_forward_method(self, name)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run, from the trainer's limits.

        `trainer.estimated_stepping_batches` would set up the data before a checkpoint's position is restored, and lose it.
        """
        trainer = self.trainer
        per_epoch = trainer.datamodule.steps_per_epoch  # type: ignore[attr-defined]
        limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            limits.append(trainer.max_epochs * per_epoch)
        return min(limits, default=1000 * per_epoch)

    def configure_optimizers(self) -> Any:
        """AdamW over what is trainable, matrices with weight decay and vectors without."""
        optimizer = torch.optim.AdamW(self.parameter_groups())
        scheduler = LambdaLR(optimizer, self.optimizer_config.factor(self.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer trains, in groups with their settings."""
        # Lightning refuses to clip gradients under autocast for an optimizer that could unscale them itself.
        fused = not str(self.trainer.precision).endswith("-mixed")
        return self.optimizer_config.groups((p for p in self.parameters() if p.requires_grad), fused)

    def _apply_settings(self) -> None:
        """Puts the configuration's settings over those that a checkpoint restored: the command line has the last word."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        scheduler: Any = self.lr_schedulers()
        settings = [
            {key: value for key, value in group.items() if key != "params"} for group in self.parameter_groups()
        ]
        scheduler.base_lrs = [group["lr"] for group in settings]
        factor = self.optimizer_config.factor(self.total_steps)(scheduler.last_epoch)
        for group, values in zip(optimizer.param_groups, settings, strict=True):
            group.update(values, initial_lr=values["lr"], lr=values["lr"] * factor)

    # -- training ----------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Sets the optimizer as configured."""
        self._apply_settings()
        super().on_train_start()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One micro-batch's share of the step's loss."""
        loss, terms = self.losses(batch)
        # Lightning divides by the number of micro-batches and DDP averages over processes; a mean over the step's tokens
        # needs neither.
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / batch["step_tokens"]
        self._term_names = ["loss", *terms]
        self._terms.append(torch.stack([loss.detach(), *terms.values()]) / batch["step_tokens"])
        scaled: Tensor = loss * scale
        return scaled

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Sums the step's terms over micro-batches and processes, and stops before a non-finite loss does harm."""
        self.mask_gradients()
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
        optimizer.zero_grad()
        self.mask_weights()  # momentum and weight decay know nothing of masks

    def parent_record(self) -> Parent:
        """The ledger's record of the model this stage starts from."""
        return Parent.of(self.parent[0])
