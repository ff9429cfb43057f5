"""What a method is put together from, and what of it does not fit together."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig

from lightgpt2.adaptations.base import Adaptation, contradictions
from lightgpt2.adaptations.masks import HeldMasks
from lightgpt2.data.base import TaskData
from lightgpt2.errors import Problem, UserError
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.quantization import quantization_of
from lightgpt2.objectives.base import Objective
from lightgpt2.starts.base import Start
from lightgpt2.tasks.base import Task


@dataclass(frozen=True)
class Parts:
    """What a method is put together from.

    Attributes:
        task: The task.
        start: Where the model comes from.
        objective: What is minimized.
        adaptations: What of the model is trained, in the order in which they are applied.
        names: Where the settings of the parts stand in a preset's configuration.
        contradictions: Mistakes that the preset found in its arguments.
        trust: Whether code in a model's folder may run.
    """

    task: Task
    start: Start
    objective: Objective
    adaptations: Sequence[Adaptation]
    names: dict[str, str]
    contradictions: Sequence[Problem]
    trust: bool

    @property
    def precision(self) -> str | None:
        """What the artefact's weights are quantized to; None: they are in full precision."""
        return next((part.precision for part in self.adaptations if part.precision), None)

    def keyed(self, problem: Problem) -> Problem:
        """A problem of one of the parts, with the key that the setting has in the configuration."""
        if problem.key.split(".")[0] not in ("start", "objective", "adaptations", "task"):
            return problem
        return problem.renamed(self.names).under("model")

    def configs(self) -> dict[str, PretrainedConfig]:
        """Configurations of the models involved by config key, without their weights; the trained one first.

        Raises:
            UserError: A model cannot be found, or settings contradict each other; with all such problems.
        """
        problems = [*self.contradictions]
        found: list[dict[str, PretrainedConfig]] = []
        for origin in (self.start, self.objective):
            try:
                found.append(origin.configs(self.trust))
            except UserError as error:
                problems += error.problems
        student: PretrainedConfig | None = None
        if len(found) == 2:
            student, *rest = found[0].values()
            original = rest[0] if rest else None
            layers = None if original is None else self.start.layers(original)
            problems += self.objective.problems(student, original, layers, self.trust)
        problems += contradictions(self.adaptations, student, self.start.precision, self.start.rebuilds)
        if problems:
            raise UserError([self.keyed(problem) for problem in problems])
        return {self.keyed(Problem(key, "")).key: config for each in found for key, config in each.items()}

    def check(self, data: TaskData, training: bool) -> list[str]:
        """What is wrong with the settings, as far as shows without weights, one line each.

        Args:
            data: The data module.
            training: Whether the model is to be trained, and not only scored.
        """
        try:
            configs = self.configs()
        except UserError as error:
            return [*error.problems]
        found = data.fits({key: config.max_position_embeddings for key, config in configs.items()})
        found += [self.keyed(problem.under("task")) for problem in self.task.problems(configs, data)]
        source, key = self.start.source, self.source_key
        quantized = quantization_of(configs[key]) if key in configs else None
        if training and quantized and (reason := self._refusal(quantized)):
            found.append(f"{key}: {source} is quantized to {quantized.upper()}: {reason}")
        try:
            held = Ledger.read(source).held_prunings()
        except UserError as error:
            return [*found, *error.problems]
        if not found and training and any(part.removes for part in self.adaptations) and held:
            found.append(
                f"{key}: single weights of {source} are pruned, which removing heads and neurons would make a wrong "
                "count of; remove those first and prune weights after it, or give pruning.granularity weight or block"
            )
        return found

    @property
    def source_key(self) -> str:
        """The config key of the model that the run starts from."""
        return self.keyed(Problem("start.model", "")).key

    def _refusal(self, quantized: str) -> str | None:
        """Why a quantized model cannot be trained, with what to do; None where it can."""
        accepted = [part.accepts for part in self.adaptations if not isinstance(part, HeldMasks)] or [
            frozenset({"fp32"})
        ]
        loads = self.start.precision
        if all(quantized in each for each in accepted) and quantized == loads:
            return None
        if loads == "nf4":
            return "give the model in full precision, or in NF4"
        if any("nf4" in each for each in accepted):
            if quantized != "nf4":
                return "give the model in full precision"
            return "adapters cannot be merged into 4 bit; use lightgpt2.methods.QLoRA, which merges into dequantized weights"
        if self.precision:
            return "it cannot be converted twice; give the model in full precision that it was made of"
        other = ", or use lightgpt2.methods.QLoRA" if quantized == "nf4" else ""
        return f"such weights cannot be trained; give the model in full precision{other}"
