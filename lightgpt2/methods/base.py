"""What all training methods share: the optimizer, the step's bookkeeping, validation, and what a checkpoint needs."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.errors import UserError
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.functional.pruning import Masks
from lightgpt2.methods import random_state
from lightgpt2.methods.optimizer import OptimizerConfig
from lightgpt2.models import ledger
from lightgpt2.models.families import blocks, check_head
from lightgpt2.models.ledger import Parent
from lightgpt2.models.pruning import prunable, saved_zeros
from lightgpt2.models.quantization import quantization_of
from lightgpt2.models.saving import save_model
from lightgpt2.models.surgery import Operation
from lightgpt2.tasks.language_modeling import LanguageModeling


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
        self.masks = Masks()
        self.prunings: list[Operation] = []
        self.val_nll = MeanMetric().set_dtype(torch.float64)
        self.step_metrics: dict[str, float] = {}
        self._terms: list[Tensor] = []
        self._restored_rng: list[dict[str, Any]] | None = None
        self._rng_before_step: dict[str, Any] | None = None

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

    @property
    def start(self) -> PreTrainedModel:
        """The model as it is before the first step, to be scored."""
        return self.model

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

    def misfits(self, quantized: str) -> str | None:
        """Why this method cannot train a quantized model, with what to do; nothing where it can.

        Args:
            quantized: What its weights are quantized to.
        """
        return "such weights cannot be trained; give the model in full precision, or use lightgpt2.methods.QLoRA"

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
            return error.problems
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
        self._hold_zeros()
        if self.compile_model:
            self.model.base_model.compile()
        if self.device_mesh is not None:
            if len(self.masks):
                raise UserError(
                    "trainer.strategy: masks of pruned weights are not supported with FSDP2; use auto, or ddp"
                )
            self.shard(self.device_mesh["data_parallel"])

    def _hold_zeros(self) -> None:
        """Masks what an earlier stage pruned, so that it stays zero through this one."""
        adapters = any(".lora_" in name for name, _ in self.model.named_parameters())
        for operation in ledger.held_prunings(ledger.read(self.parent[0])):
            if operation["adapters"] is adapters:  # else they are merged away, or frozen
                held = prunable(self.model, operation["targets"], "the pruning of an earlier stage")
                self.prune({name: p.detach() != 0 for name, p in held.items()}, {**operation, "held": True})

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
        trainable = [p for p in self.parameters() if p.requires_grad]
        parts = ([p for p in trainable if (p.ndim >= 2) is wide] for wide in (True, False))
        groups = [{"params": p, **settings} for p, settings in zip(parts, self._group_settings(), strict=True)]
        scheduler = LambdaLR(optimizer := torch.optim.AdamW(groups), self.optimizer_config.factor(self.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _group_settings(self) -> list[dict[str, Any]]:
        # Lightning refuses to clip gradients under autocast for an optimizer that could unscale them itself.
        return self.optimizer_config.groups(fused=not str(self.trainer.precision).endswith("-mixed"))

    def _apply_settings(self) -> None:
        """Puts the configuration's settings over those that a checkpoint restored: the command line has the last word."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        scheduler: Any = self.lr_schedulers()
        settings = self._group_settings()
        scheduler.base_lrs = [group["lr"] for group in settings]
        factor = self.optimizer_config.factor(self.total_steps)(scheduler.last_epoch)
        for group, values in zip(optimizer.param_groups, settings, strict=True):
            group.update(values, initial_lr=values["lr"], lr=values["lr"] * factor)

    # -- training ----------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Notes the random generators' states where an optimizer step begins, for a checkpoint inside it."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._rng_before_step = random_state.capture()

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
        self.masks.gradients_(self._parameters_by_name)
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
        self.masks.weights_(self._parameters_by_name)  # momentum and weight decay know nothing of masks
        self._rng_before_step = None

    @property
    def _parameters_by_name(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters()) if len(self.masks) else {}

    def prune(self, masks: Mapping[str, Tensor], operation: Operation) -> None:
        """Sets weights to zero, for good.

        Args:
            masks: Boolean masks by the names of `self.model`'s parameters, true where a weight stays.
            operation: The ledger's record of it.
        """
        self.masks.set(masks)
        self.masks.weights_(self._parameters_by_name)
        self.prunings = [done for done in self.prunings if done["targets"] != operation["targets"]] + [operation]

    # -- scoring -----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Adds a batch of windows to the split's token-weighted mean; returns each window's score."""
        scored = self._scored(batch)
        self.val_nll.update(scored["nll"] / scored["tokens"].clamp(min=1), weight=scored["tokens"])
        return scored

    def _scored(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        tokens = (batch["labels"] != IGNORE).sum(dim=1)
        return {"document": batch["document"], "nll": self.task.nll(self.model, batch), "tokens": tokens}

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
        values = {f"{name}/loss": loss, f"{name}/perplexity": loss.exp()}
        self.log_dict(values, prog_bar=True, logger=False, sync_dist=True)  # the same on all processes already

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        """What the predictions file is made of: each window's score, or each document's continuation."""
        if self.task.predict == "scores":
            return self._scored(batch)
        prompts = [row[:n].tolist() for row, n in zip(batch["input_ids"], batch["lengths"].tolist(), strict=True)]
        shown = self.trainer.datamodule.tokenizer.batch_decode(prompts, skip_special_tokens=True)  # type: ignore[attr-defined]
        rows = zip(batch["document"].tolist(), shown, self.continuations(prompts), strict=True)
        return [{"document": document, "prompt": prompt, "continuation": text} for document, prompt, text in rows]

    def continuations(self, prompts: list[list[int]]) -> list[str]:
        """What the model makes of the beginnings of texts.

        Args:
            prompts: Token lists.
        """
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        return self.task.continuations(self.model, tokenizer, prompts)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what is frozen, and adds what Lightning leaves out: the state of every random generator."""
        for name in self._unchanging(checkpoint["state_dict"]):
            del checkpoint["state_dict"][name]
        checkpoint["prunings"] = self.prunings
        # A step that has begun will be done again from its first micro-batch.
        mine = self._rng_before_step or random_state.capture()
        states: list[Any] = [mine]
        if dist.is_initialized():
            states = [None] * dist.get_world_size()
            dist.all_gather_object(states, mine)
        checkpoint["rng"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the generators' states until training starts, as building and loading draw from them; makes room for masks."""
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
        """Sets the optimizer as configured, and the random generators to where the checkpoint left them or to the seed."""
        self._apply_settings()
        rank = self.global_rank
        if self._restored_rng is not None and rank < len(self._restored_rng):
            random_state.restore(self._restored_rng[rank])
        else:
            # Whatever was drawn before this line (a new model's weights, say) leaves no trace in the training.
            random_state.reseed(torch.initial_seed() % 2**32 + rank)

    def parent_record(self) -> Parent:
        """The ledger's record of the model this stage starts from."""
        return Parent.of(self.parent[0])
