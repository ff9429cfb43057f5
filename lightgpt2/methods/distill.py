"""Knowledge distillation: a small student learns from a large teacher's logits and hidden states.

    L = a * CE(y, z_s) + b * MSE(h_t, h_s) + g * T^2 * D(softmax(z_t / T), softmax(z_s / T))

Hinton et al. 2015 (arXiv:1503.02531) for the logits, Sanh et al. 2019 (DistilBERT, arXiv:1910.01108) for a student made
of the teacher's layers, Jiao et al. 2020 (TinyBERT, arXiv:1909.10351, eq. 8-9) for the hidden states.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, OpenUnitInterval, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.errors import UserError
from lightgpt2.functional.divergence import IGNORE, Divergence, masked_mse
from lightgpt2.functional.layers import check_layers, even_layers
from lightgpt2.functional.vocabulary import LossWeights, Teacher, vocabulary_loss
from lightgpt2.methods.method import Method
from lightgpt2.methods.optimizer import OptimizerConfig
from lightgpt2.models import surgery
from lightgpt2.models.families import blocks
from lightgpt2.models.loading import load_config, load_model, new_model
from lightgpt2.tasks.language_modeling import LanguageModeling


@dataclass
class DistillLoss:
    """Weights of the distillation loss.

    Attributes:
        ce: Weight of the cross-entropy with the next token (a).
        hidden: Weight of the squared error between hidden states (b); 0 for logits only.
        kd: Weight of the divergence from the teacher's distribution (g).
        divergence: `kl` (teacher first), `reverse_kl` or `js`.
        temperature: Softmax temperature T of the divergence.
        beta: Weight of the teacher in the mixture of `js`.
    """

    ce: NonNegativeFloat = 0.1
    hidden: NonNegativeFloat = 3.0
    kd: NonNegativeFloat = 0.8
    divergence: Divergence = "kl"
    temperature: PositiveFloat = 2.0
    beta: OpenUnitInterval = 0.5


class Distill(Method):
    """Trains a student to follow a teacher.

    Args:
        teacher: Hub id, model folder or GGUF file of the teacher.
        student: Hub id, folder or GGUF file of a student to load; or configuration values that differ from the teacher's,
            for a student that starts from random weights; or nothing, for a student made of the teacher's layers.
        layers: Which of the teacher's layers make the student: their number, evenly spaced with both ends, or a list.
            The default is half of them. Only without `student`.
        layer_map: The teacher layer that each student layer is compared with in the hidden loss: `even`, or a list as long
            as the student. The default for a student made of the teacher's layers is those layers. Embeddings are
            compared with embeddings always.
        loss: Weights of the loss.
        task: What is predicted and how it is scored.
        optimizer: AdamW and its schedule.
        compile: Whether to compile the models with torch.compile, in place.
        activation_checkpointing: Whether to keep of each block only its input for the backward pass, and compute the rest again
            there (Chen et al. 2016, arXiv:1604.06174): less memory for more time, and the same gradients.
        trust_remote_code: Whether code in a model's folder may run. Off unless asked.
    """

    def __init__(
        self,
        teacher: str,
        student: str | dict[str, Any] | None = None,
        layers: PositiveInt | list[int] | None = None,
        layer_map: Literal["even"] | list[int] | None = None,
        loss: DistillLoss = DistillLoss(),
        task: LanguageModeling = LanguageModeling(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        compile: bool = False,
        activation_checkpointing: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(task, optimizer, compile, activation_checkpointing, trust_remote_code)
        self._teacher_source, self._student_source = teacher, student
        self.layers, self.layer_map = layers, layer_map
        self.loss = loss
        self.weights = LossWeights(loss.ce, loss.kd, loss.divergence, loss.temperature, loss.beta)

    @property
    def parent(self) -> tuple[str | dict[str, Any], str]:
        """The student where one is loaded, the teacher where it is made of that."""
        if self._student_source is None:
            return self._teacher_source, "model.teacher"
        return self._student_source, "model.student"

    @property
    def teacher_source(self) -> str | None:
        """The model learnt from."""
        return self._teacher_source

    @property
    def reference(self) -> tuple[str, PreTrainedModel] | None:
        """The teacher."""
        return "teacher", self.teacher

    @property
    def frozen_sources(self) -> list[str]:
        """The teacher."""
        return [self._teacher_source]

    @property
    def tokenizer_source(self) -> tuple[str | dict[str, Any], str]:
        """A student that starts from random weights uses the teacher's tokenizer."""
        return (self._teacher_source, "model.teacher") if isinstance(self._student_source, dict) else self.parent

    @property
    def teacher(self) -> PreTrainedModel:
        """The teacher, hidden from Lightning: never in a checkpoint, an optimizer or a gradient reduction."""
        return self._hidden_teacher[0]

    def configs(self) -> dict[str, PretrainedConfig]:
        """The student's configuration and the teacher's; checks that the two fit together.

        Raises:
            UserError: They do not.
        """
        source, problems = self._student_source, self._loss_problems()
        if source is not None and self.layers is not None:
            problems.append("model.layers: cannot be given together with model.student; remove one of them")
        named = {"model.teacher": self._teacher_source, "model.student": source}
        loaded: dict[str, PretrainedConfig] = {}
        for key, name in named.items():
            if isinstance(name, str):
                try:
                    loaded[key] = load_config(name, key, self.trust_remote_code)
                except UserError as error:
                    problems += error.problems
        if "model.teacher" not in loaded or (isinstance(source, str) and "model.student" not in loaded):
            raise UserError(problems)
        teacher = loaded["model.teacher"]
        if source is None:
            student = copy.deepcopy(teacher)
            try:
                student.num_hidden_layers = len(self._chosen_layers(teacher))
            except ValueError as error:
                raise UserError(f"model.layers: {error}") from error
        elif isinstance(source, dict):
            unshared = ("transformers_version", "layer_types", "lightgpt2", "auto_map", "architectures")
            values = {k: v for k, v in teacher.to_diff_dict().items() if k not in unshared}
            student = load_config({**values, "model_type": teacher.model_type, **source}, "model.student")
        else:
            student = loaded["model.student"]
        if student.vocab_size != teacher.vocab_size:
            problems.append(
                f"model.student: its vocabulary has {student.vocab_size} tokens and the teacher's {teacher.vocab_size}; "
                "distillation compares them token by token, so choose models that share a tokenizer"
            )
        try:
            self._pair_layers(teacher, student)
        except ValueError as error:
            problems.append(f"model.layer_map: {error}")
        if problems:
            raise UserError(problems)
        return {"model.student" if source is not None else "model.layers": student, "model.teacher": teacher}

    def _loss_problems(self) -> list[str]:
        weights = (self.loss.ce, self.loss.kd, self.loss.hidden)
        return [] if any(weights) else ["model.loss: every weight is 0; give ce, kd or hidden above 0"]

    def build(self) -> None:
        """Loads the teacher, makes the student, pairs their layers."""
        teacher = load_model(self._teacher_source, "model.teacher", self.trust_remote_code)
        self._hidden_teacher: tuple[PreTrainedModel, ...] = (teacher.eval().requires_grad_(False),)
        if self._student_source is None:
            self.operations = [{"op": "extract_layers", "layers": self._chosen_layers(teacher.config)}]
            self.model = surgery.apply(teacher, self.operations).requires_grad_(True)
        elif isinstance(self._student_source, dict):
            self.model = new_model(self.configs()["model.student"], "model.student")
        else:
            self.model = load_model(self._student_source, "model.student", self.trust_remote_code)
        self._pair(teacher)

    def _pair(self, teacher: PreTrainedModel) -> None:
        """Pairs the layers, with a projection for each pair where the widths differ."""
        self.pairs = self._pair_layers(teacher.config, self.model.config)
        wide, narrow = teacher.config.hidden_size, self.model.config.hidden_size
        self.projections = nn.ModuleList(
            nn.Linear(narrow, wide, bias=False) if wide != narrow else nn.Identity() for _ in self.pairs
        )
        if self.compile_model:
            teacher.base_model.compile()

    def shard(self, mesh: DeviceMesh) -> None:
        """Spreads the student over processes, and the teacher's blocks."""
        super().shard(mesh)
        for block in blocks(self.teacher):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)

    def _chosen_layers(self, teacher: PretrainedConfig) -> list[int]:
        """The teacher's layers that a student without a source of its own is made of."""
        deep = teacher.num_hidden_layers
        chosen = self.layers if self.layers is not None else max(1, deep // 2)
        layers = even_layers(deep, chosen) if isinstance(chosen, int) else chosen
        check_layers(layers, deep)
        return layers

    def _pair_layers(self, teacher: PretrainedConfig, student: PretrainedConfig) -> list[tuple[int, int]]:
        """Pairs (student state, teacher state), as indices of `Features.states`; none without a hidden loss."""
        deep, shallow = teacher.num_hidden_layers, student.num_hidden_layers
        if self.loss.hidden == 0:
            return []
        if isinstance(self.layer_map, list):
            layers = self.layer_map
        elif self.layer_map is None and self._student_source is None:
            layers = self._chosen_layers(teacher)
        else:
            layers = even_layers(deep, shallow)
        check_layers(layers, deep)
        if len(layers) != shallow:
            raise ValueError(f"it lists {len(layers)} layers and the student has {shallow}")
        return [(0, 0), *((ours + 1, theirs + 1) for ours, theirs in enumerate(layers))]

    def on_fit_start(self) -> None:
        """Moves the teacher where the student is."""
        self.teacher.to(device=self.device)

    def losses(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The three terms; see the head of this file."""
        labels = self.task.labels(batch)
        student = self.task.features(self.model, batch, [s for s, _ in self.pairs])
        with torch.no_grad():
            teacher = self.task.features(self.teacher, batch, [t for _, t in self.pairs])
        loss, ce, kd = vocabulary_loss(
            student.final, student.weight, labels, self.weights, Teacher(teacher.final, teacher.weight)
        )
        terms = {"ce": ce, "kd": kd}
        if self.pairs:
            errors = [
                masked_mse(project(student.states[s]), teacher.states[t], labels != IGNORE)
                for project, (s, t) in zip(self.projections, self.pairs, strict=True)
            ]
            hidden = torch.stack(errors).mean()
            loss, terms["hidden"] = loss + self.loss.hidden * hidden, hidden.detach()
        return loss, terms
