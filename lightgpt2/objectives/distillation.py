"""Knowledge distillation: a student learns from a teacher's logits and hidden states.

    L = a * CE(y, z_s) + b * MSE(h_t, h_s) + g * T^2 * D(softmax(z_t / T), softmax(z_s / T))

Hinton et al. 2015 (arXiv:1503.02531) for the logits, Sanh et al. 2019 (DistilBERT, arXiv:1910.01108) for a student made
of the teacher's layers, Jiao et al. 2020 (TinyBERT, arXiv:1909.10351, eq. 8-9) for the hidden states.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, OpenUnitInterval, PositiveFloat
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.errors import Problem
from lightgpt2.functional.divergence import Divergence, masked_mse
from lightgpt2.functional.layers import check_layers, even_layers
from lightgpt2.functional.schedules import Progress
from lightgpt2.functional.vocabulary import LossWeights, vocabulary_loss
from lightgpt2.models.families import family_of
from lightgpt2.models.layers import Layers, in_stacks, said_of
from lightgpt2.objectives.base import Binding, Objective
from lightgpt2.teachers.base import Teacher
from lightgpt2.teachers.mixture import Mixture, WeightedTeacher
from lightgpt2.teachers.model import ModelTeacher, PretrainedTeacher

StackMap = Literal["even"] | list[int]
LayerMap = StackMap | dict[str, StackMap]  # for every stack; or for each by its name
_TEACHER = Teacher.key  # the config key of the teacher


@dataclass
class DistillLoss:
    """Weights of the distillation loss.

    Attributes:
        ce: Weight of the cross-entropy with the labels (a).
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


class Distillation(Objective):
    """The loss of distillation, as the head of this file gives it.

    Args:
        teacher: The teacher; null: the model that the student is cut out of.
        loss: Weights of the terms.
        layer_map: The teacher layer that each student layer is compared with in the hidden loss: `even`, or a list as long
            as the student; `{encoder: ..., decoder: ...}` gives each stack its own. The default for a student made of the
            teacher's layers is those layers. Embeddings are compared with embeddings always.
        teachers: Further teachers: the student learns the weighted mean of all distributions, and the first one's states.
    """

    def __init__(
        self,
        teacher: Teacher | None = None,
        loss: DistillLoss = DistillLoss(),
        layer_map: LayerMap | None = None,
        teachers: Sequence[WeightedTeacher] = (),
    ) -> None:
        super().__init__()
        self.teacher, self.loss, self.layer_map = teacher, loss, layer_map
        numbered = enumerate(teachers, start=1)
        self.others = [PretrainedTeacher(each.model, f"objective.teachers.{i}.model") for i, each in numbered]
        self.shares = [1.0, *(each.weight for each in teachers)]
        self.weights = LossWeights(loss.ce, loss.kd, loss.divergence, loss.temperature, loss.beta)

    @property
    def sources(self) -> Mapping[str, str]:
        return {source: each.key for each in self._named for source in each.sources}

    def configs(self, trust_remote_code: bool) -> dict[str, PretrainedConfig]:
        return {each.key: each.config(trust_remote_code) for each in self._named}

    @property
    def _named(self) -> list[Teacher]:
        return [*([self.teacher] if self.teacher else []), *self.others]

    def problems(
        self, student: PretrainedConfig, original: PretrainedConfig | None, layers: Layers | None, trust: bool
    ) -> list[Problem]:
        found, key = [], "objective.layer_map"
        if not any((self.loss.ce, self.loss.kd, self.loss.hidden)):
            found.append(Problem("objective.loss", "every weight is 0", "give ce, kd or hidden above 0"))
        if self.others and not self.loss.kd:
            found.append(Problem("objective.teachers", "have no effect with loss.kd 0", "give loss.kd above 0"))
        if self.layer_map is not None and self.teacher is None and not self.loss.hidden:
            found.append(Problem(key, "has no effect without a hidden loss", "remove it, or give loss.hidden"))
        teacher = self.teacher.config(trust) if self.teacher else original
        if teacher is None:
            return [*found, Problem(_TEACHER, "required, but not given", "name a teacher")]
        if self.loss.hidden and (theirs := _kinds(teacher)) != (mine := _kinds(student)):
            what = f"layers of one kind are compared, and the teacher has {theirs} layers and the student {mine} layers"
            return [*found, Problem("objective.loss.hidden", what, "give 0")]
        try:
            self._pair_layers(teacher, student, layers)
        except ValueError as error:
            found.append(Problem(key, str(error)))
        return found

    def bind(self, binding: Binding) -> None:
        """Loads the teacher and pairs the layers, with a projection for each pair where the widths differ."""
        if self.teacher is None:
            assert binding.original is not None
            self.teacher = ModelTeacher(binding.original, binding.source)
        if self.others:
            self.teacher = Mixture([self.teacher, *self.others], self.shares)
        self.task, trust = binding.task, binding.trust_remote_code
        self.teacher.load(binding.task, trust)
        for model in self.teacher.models:
            self.task.align(model, binding.student.config)
        teacher, student = self.teacher.config(trust), binding.student.config
        self.pairs = self._pair_layers(teacher, student, binding.layers)
        widths = [(_width(student, ours), _width(teacher, theirs)) for ours, theirs in self.pairs]
        self.projections = nn.ModuleList(
            nn.Linear(narrow, wide, bias=False) if wide != narrow else nn.Identity() for narrow, wide in widths
        )

    def forward(
        self, model: PreTrainedModel, batch: dict[str, Any], progress: Progress
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum; `ce`, `kd` and `hidden` unweighted."""
        assert self.teacher is not None
        student = self.task.predictions(model, batch, [ours for ours, _ in self.pairs])
        with torch.no_grad():
            targets = self.teacher.targets(batch, [theirs for _, theirs in self.pairs])
        head = (student.bias, student.scale, student.weights)
        loss, ce, kd = vocabulary_loss(
            student.hidden, student.weight, student.labels, self.weights, targets.logits, *head
        )
        terms = {"ce": ce, "kd": kd}
        if self.pairs:
            errors = [
                masked_mse(project(student.states[ours][0]), targets.states[theirs], student.states[ours][1])
                for project, (ours, theirs) in zip(self.projections, self.pairs, strict=True)
            ]
            hidden = torch.stack(errors).mean()
            loss, terms["hidden"] = loss + self.loss.hidden * hidden, hidden.detach()
        return loss, terms

    @property
    def frozen_models(self) -> Sequence[PreTrainedModel]:
        return self.teacher.models if self.teacher else []

    @property
    def reference(self) -> PreTrainedModel | None:
        return self.teacher.reference if self.teacher else None

    def _pair_layers(
        self, teacher: PretrainedConfig, student: PretrainedConfig, layers: Layers | None
    ) -> list[tuple[str, str]]:
        """Pair student and teacher states by name, stack by stack; none without a hidden loss."""
        if self.loss.hidden == 0:
            return []
        theirs, mine = (family_of(config).depths(config) for config in (teacher, student))
        maps = in_stacks(self.layer_map, mine)
        found = []
        for (ours, shallow), (other, deep) in zip(mine.items(), theirs.items(), strict=True):
            with said_of(ours, mine):
                chosen = _mapped(maps[ours], deep, shallow, None if layers is None else layers[ours])
            pairs = [(0, 0), *((i + 1, layer + 1) for i, layer in enumerate(chosen))]
            found += [(f"{ours}.{i}", f"{other}.{layer}") for i, layer in pairs]
        return found


def _width(config: PretrainedConfig, state: str) -> int:
    """The width of the hidden states of a name, `decoder.3`."""
    return family_of(config).state_width(config, int(state.rpartition(".")[2]))


def _kinds(config: PretrainedConfig) -> str:
    return " and ".join(family_of(config).depths(config))


def _mapped(asked: StackMap | None, deep: int, shallow: int, layers: Sequence[int] | None) -> Sequence[int]:
    """The layers of a deep stack that those of a shallow one are compared with; `layers` are those that it was made of."""
    if asked is None and layers is not None:
        return layers
    chosen = asked if isinstance(asked, list) else even_layers(deep, shallow)
    check_layers(chosen, deep)
    if len(chosen) != shallow:
        raise ValueError(f"it lists {len(chosen)} layers and the student has {shallow}")
    return chosen
