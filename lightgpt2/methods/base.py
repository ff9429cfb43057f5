"""What all training methods share: the optimizer, the step's bookkeeping, validation, and what a checkpoint needs."""

import random
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, OpenUnitInterval, PositiveFloat
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.errors import UserError
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.functional.schedules import Decay, warmup_decay
from lightgpt2.models.families import check_head
from lightgpt2.models.ledger import Parent
from lightgpt2.models.surgery import Operation
from lightgpt2.tasks.language_modeling import LanguageModeling


@dataclass
class OptimizerConfig:
    """AdamW and its learning-rate schedule.

    Attributes:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of matrices; vectors (biases, norms) have none.
        beta1: Decay of the gradient's running mean.
        beta2: Decay of its running square.
        warmup_steps: Optimizer steps over which the learning rate rises from zero.
        decay: How it falls from there to the end of the run.
        final_lr: The learning rate at the end, as a share of the peak.
    """

    lr: PositiveFloat = 5e-4
    weight_decay: NonNegativeFloat = 0.01
    beta1: OpenUnitInterval = 0.9
    beta2: OpenUnitInterval = 0.95
    warmup_steps: NonNegativeInt = 0
    decay: Decay = "cosine"
    final_lr: ClosedUnitInterval = 0.0


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite."""


class Method(LightningModule):
    """A training method on one model.

    A subclass builds `self.model` in `build` and returns the terms of its loss, summed over the supervised tokens of a
    micro-batch, from `losses`. This class makes of them a mean over all supervised tokens of the optimizer step, whatever
    the padding, the accumulation and the number of processes.

    Args:
        task: What is predicted and how it is scored.
        optimizer: AdamW and its schedule.
        compile: Whether to compile the model with torch.compile, in place.
        trust_remote_code: Whether code in a model's folder may run. Off unless asked.
    """

    model: PreTrainedModel
    operations: list[Operation]

    def __init__(
        self, task: LanguageModeling, optimizer: OptimizerConfig, compile: bool, trust_remote_code: bool
    ) -> None:
        super().__init__()
        self.task = task
        self.optimizer_config = optimizer
        self.compile_model = compile
        self.trust_remote_code = trust_remote_code
        self.operations = []
        self.val_nll = MeanMetric().set_dtype(torch.float64)
        self.step_metrics: dict[str, float] = {}
        self._terms: list[Tensor] = []
        self._restored_rng: list[dict[str, Any]] | None = None

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
    def tokenizer_source(self) -> tuple[str | dict[str, Any], str]:
        """Where the tokenizer comes from when the data names none, and the config key."""
        return self.parent

    @abstractmethod
    def build(self) -> None:
        """Makes `self.model` and whatever else has parameters, and sets `self.operations`.

        Raises:
            UserError: What was asked for does not fit together.
        """

    @abstractmethod
    def losses(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and its terms to log, each summed over the micro-batch's supervised tokens."""

    # -- building ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def configs(self) -> dict[str, PretrainedConfig]:
        """Configurations of the models involved by config key, without their weights; the trained one first.

        Raises:
            UserError: A model cannot be found, or one setting contradicts another; with all such problems.
        """

    def problems(self, data: Any) -> list[str]:
        """What is wrong with the settings, as far as shows without weights, one line each.

        Args:
            data: The data module.
        """
        try:
            configs = self.configs()
        except UserError as error:
            return error.problems
        positions = {config.max_position_embeddings: key for key, config in configs.items()}
        return [
            f"data.sequence_length: {data.sequence_length} is longer than the {n} positions of {key}; give at most that"
            for n, key in positions.items()
            if data.sequence_length > n
        ]

    def configure_model(self) -> None:
        """Builds the model once, before optimizers exist and before a checkpoint is loaded."""
        if hasattr(self, "model"):
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if problems := self.problems(data):
            raise UserError(problems)
        self.build()
        check_head(self.model, self.parent[1])
        if len(data.tokenizer) > self.model.config.vocab_size:
            raise UserError(
                f"data.tokenizer: it has {len(data.tokenizer)} tokens and the model of {self.parent[1]} has "
                f"{self.model.config.vocab_size}; use the model's own tokenizer"
            )
        self.model.train()
        if self.compile_model:
            self.model.base_model.compile()

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
        trainable = [p for p in self.parameters() if p.requires_grad]
        matrices, vectors = ([p for p in trainable if (p.ndim >= 2) is wide] for wide in (True, False))
        settings = self._group_settings()
        groups = [{"params": p, **s} for p, s in zip((matrices, vectors), settings, strict=True)]
        scheduler = LambdaLR(optimizer := torch.optim.AdamW(groups), self._lr_factor())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _group_settings(self) -> list[dict[str, Any]]:
        """What the configuration says of each parameter group; plain values, as a checkpoint holds nothing else."""
        config = self.optimizer_config
        common = {
            "lr": float(config.lr),
            "betas": (float(config.beta1), float(config.beta2)),
            # Lightning refuses to clip gradients under autocast for an optimizer that could unscale them itself.
            "fused": not str(self.trainer.precision).endswith("-mixed"),
        }
        return [{**common, "weight_decay": float(config.weight_decay)}, {**common, "weight_decay": 0.0}]

    def _lr_factor(self) -> Callable[[int], float]:
        config, total = self.optimizer_config, self.total_steps
        return lambda step: warmup_decay(step, total, config.warmup_steps, config.decay, config.final_lr)

    def _apply_settings(self) -> None:
        """Puts the configuration's settings over those that a checkpoint restored: the command line has the last word."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        scheduler: Any = self.lr_schedulers()
        settings = self._group_settings()
        scheduler.base_lrs = [group["lr"] for group in settings]
        factor = self._lr_factor()(scheduler.last_epoch)
        for group, values in zip(optimizer.param_groups, settings, strict=True):
            group.update(values, initial_lr=values["lr"], lr=values["lr"] * factor)

    # -- training ----------------------------------------------------------------------------------------------------

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
        terms = self.trainer.strategy.reduce(torch.stack(self._terms).sum(dim=0), reduce_op="sum")
        local, self._terms = self._terms, []
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
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

    # -- scoring -----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Adds a batch of windows to the split's token-weighted mean; returns each window's score."""
        nll = self.task.nll(self.model, batch)
        tokens = (batch["labels"] != IGNORE).sum(dim=1)
        self.val_nll.update(nll / tokens.clamp(min=1), weight=tokens)
        return {"document": batch["document"], "nll": nll, "tokens": tokens}

    def on_validation_epoch_end(self) -> None:
        """Logs the split's loss and perplexity."""
        self._log_split("val")

    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Logs the split's loss and perplexity."""
        self._log_split("test")

    def _log_split(self, name: str) -> None:
        loss = self.val_nll.compute()
        self.val_nll.reset()
        # Shown here; the Monitor callback writes them to the loggers, against the number of steps.
        self.log_dict({f"{name}/loss": loss, f"{name}/perplexity": loss.exp()}, prog_bar=True, logger=False)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """Rows for the predictions file: each window's score, or each document's continuation."""
        documents = batch["document"].tolist()
        if self.task.predict == "scores":
            nll = self.task.nll(self.model, batch).tolist()
            tokens = (batch["labels"] != IGNORE).sum(dim=1).tolist()
            return [{"document": d, "nll": v, "tokens": n} for d, v, n in zip(documents, nll, tokens, strict=True)]
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        prompts = [row[:n].tolist() for row, n in zip(batch["input_ids"], batch["lengths"].tolist(), strict=True)]
        texts = self.task.continuations(self.model, tokenizer, prompts)
        shown = tokenizer.batch_decode(prompts, skip_special_tokens=True)
        return [
            {"document": d, "prompt": p, "continuation": t} for d, p, t in zip(documents, shown, texts, strict=True)
        ]

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what Lightning leaves out: the state of every random generator of every process."""
        states: list[Any] = [_rng_state()]
        if dist.is_initialized():
            states = [None] * dist.get_world_size()
            dist.all_gather_object(states, _rng_state())
        checkpoint["rng"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the generators' states until training starts; building and loading draw from them."""
        self._restored_rng = checkpoint["rng"]

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Restores the weights.

        Raises:
            UserError: They are of a model of another shape.
        """
        try:
            return super().load_state_dict(*args, **kwargs)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip()
            raise UserError(
                f"--ckpt_path: the checkpoint is of a model of another shape ({first}); resume with the settings that "
                "wrote it, or start anew with another --run"
            ) from error

    def on_train_start(self) -> None:
        """Sets the optimizer as configured, and the random generators to where the checkpoint left them or to the seed."""
        self._apply_settings()
        rank = self.global_rank
        if self._restored_rng is not None and rank < len(self._restored_rng):
            _set_rng_state(self._restored_rng[rank])
        else:
            # Whatever was drawn before this line (a new model's weights, say) leaves no trace in the training.
            seed = torch.initial_seed() % 2**32 + rank
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)

    def parent_record(self) -> Parent:
        """The ledger's record of the model this stage starts from."""
        return Parent.of(self.parent[0])


def _rng_state() -> dict[str, Any]:
    """States of all generators of this process, as plain numbers: what every pickle and `weights_only=True` can carry."""
    algorithm, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (algorithm, np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"] and torch.cuda.is_available():
        for device, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(torch.tensor(device_state, dtype=torch.uint8), device)
