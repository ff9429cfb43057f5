"""What methods share that shrink a given model, on text alone or with a teacher beside it."""

from typing import Any, Literal

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.errors import UserError
from lightgpt2.methods.distill import Distill, DistillLoss
from lightgpt2.methods.method import Method
from lightgpt2.methods.optimizer import OptimizerConfig
from lightgpt2.models.loading import load_config, load_model
from lightgpt2.tasks.language_modeling import LanguageModeling

_ALONE = DistillLoss(ce=1.0, hidden=0.0, kd=0.0)


class Taught(Distill):
    """Trains one model with cross-entropy, or with the loss of `Distill` where there is a teacher.

    Args:
        model: Hub id, model folder or GGUF file.
        teacher: Hub id, model folder or GGUF file of the teacher, if any.
        loss: Weights of the loss with a teacher.
        layer_map: As for `Distill`, with a hidden loss.
        task: What is predicted and how it is scored.
        optimizer: AdamW and its schedule.
        compile: Whether to compile the models with torch.compile, in place.
        activation_checkpointing: Whether to keep of each block only its input for the backward pass.
        trust_remote_code: Whether code in a model's folder may run.
    """

    def __init__(
        self,
        model: str,
        teacher: str | None,
        loss: DistillLoss | None,
        layer_map: Literal["even"] | list[int] | None,
        task: LanguageModeling,
        optimizer: OptimizerConfig,
        compile: bool,
        activation_checkpointing: bool,
        trust_remote_code: bool,
    ) -> None:
        weights = (loss or DistillLoss()) if teacher else _ALONE
        super().__init__(
            teacher or model, model, None, layer_map, weights, task, optimizer, compile, activation_checkpointing,
            trust_remote_code,
        )  # fmt: skip
        self._source, self.learns = model, teacher is not None
        self._unread = [] if teacher else [name for name, given in (("loss", loss), ("layer_map", layer_map)) if given]

    @property
    def parent(self) -> tuple[str | dict[str, Any], str]:
        """The model, under `model.model`."""
        return self._source, "model.model"

    @property
    def teacher_source(self) -> str | None:
        """The model learnt from, if any."""
        return self._teacher_source if self.learns else None

    @property
    def reference(self) -> tuple[str, PreTrainedModel] | None:
        """The teacher, if any."""
        return ("teacher", self.teacher) if self.learns else None

    @property
    def frozen_sources(self) -> list[str]:
        """The teacher, if any."""
        return [self._teacher_source] if self.learns else []

    @property
    def tokenizer_source(self) -> tuple[str | dict[str, Any], str]:
        """The model's own."""
        return self.parent

    def configs(self) -> dict[str, PretrainedConfig]:
        """The model's configuration, and the teacher's; checks that the two fit together.

        Raises:
            UserError: They do not.
        """
        if self._unread:
            raise UserError([f"model.{name}: means nothing without model.teacher; give both" for name in self._unread])
        if not self.learns:
            return {"model.model": load_config(self._source, "model.model", self.trust_remote_code)}
        try:
            found = super().configs()
        except UserError as error:  # of the roles that they play there
            raise UserError(
                [problem.replace("model.student:", "model.model:", 1) for problem in error.problems]
            ) from error
        return {"model.model" if key == "model.student" else key: config for key, config in found.items()}

    def build(self) -> None:
        """Loads the model, and the teacher."""
        if self.learns:
            super().build()
        else:
            self.model = load_model(self._source, "model.model", self.trust_remote_code)

    def shard(self, mesh: DeviceMesh) -> None:
        """Spreads the model over processes, and the teacher's blocks."""
        if self.learns:
            super().shard(mesh)
        else:
            Method.shard(self, mesh)

    def on_fit_start(self) -> None:
        """Moves the teacher where the model is."""
        if self.learns:
            super().on_fit_start()

    def losses(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Those of distillation, or cross-entropy with the next token."""
        if self.learns:
            return super().losses(batch)
        return self.task.cross_entropy(self.model, batch), {}
