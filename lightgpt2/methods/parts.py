"""What a method is put together from, and what of it does not fit together."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from lightning import LightningModule
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.adaptations.base import Adaptation, contradictions
from lightgpt2.adaptations.masks import HeldMasks
from lightgpt2.data.base import TaskData
from lightgpt2.errors import Problem, UserError
from lightgpt2.models import room
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.quantization import quantization_of
from lightgpt2.models.saving import positions_of
from lightgpt2.models.sources import verify
from lightgpt2.objectives.base import Objective
from lightgpt2.starts.base import Start
from lightgpt2.tasks.base import Task

_TOKEN = 72  # bytes that the trainer of a tokenizer allocates for each token


class Parts(LightningModule):
    """The parts of a method.

    Attributes:
        adaptations: In the order in which they are applied; `held` is one of them.
        names: Where the settings of the parts stand in a preset's configuration: `{"start.model": "teacher"}`.
        contradictions: Mistakes that a preset found in its arguments.
    """

    task: Task
    start: Start
    objective: Objective
    adaptations: Sequence[Adaptation]
    held: HeldMasks
    names: dict[str, str]
    contradictions: list[Problem]
    trust_remote_code: bool
    model: PreTrainedModel

    @property
    def data(self) -> TaskData:
        return cast(TaskData, self.trainer.datamodule)  # type: ignore[attr-defined]

    @property
    def precision(self) -> str | None:
        """What the artefact's weights are quantized to; None: they are in full precision."""
        return next((part.precision for part in self.adaptations if part.precision), None)

    @property
    def removes(self) -> bool:
        """Whether the artefact lacks parts of what was trained."""
        return any(part.removes for part in self.adaptations)

    @property
    def freezes(self) -> bool:
        """Whether the weights of the model that the run starts from stay as they are."""
        return any(part.freezes for part in self.adaptations)

    @property
    def references(self) -> dict[str, PreTrainedModel]:
        """Other models to score before the first step: the `teacher`; the `source` where the start computes something else."""
        teacher = self.objective.reference
        found = {} if teacher is None else {"teacher": teacher}
        if self.start.original is not None and self.start.original is not teacher:
            found["source"] = self.start.original
        changed = any(part.changes_start for part in self.adaptations)
        if changed and self.objective.teacher_source != self.start.source:
            # Adapters give the model's own weights other names.
            found["source"] = self.start.plain(self.trust_remote_code) if self.freezes else self.model
        return found

    def keyed(self, problem: Problem) -> Problem:
        """A problem of one of the parts, with the key that the setting has in the configuration."""
        if problem.key.split(".")[0] not in ("start", "objective", "adaptations", "task"):
            return problem
        return problem.renamed(self.names).under("model")

    def config_key(self, key: str = "start.model") -> str:
        """The key in the configuration of a setting of one of the parts."""
        return self.keyed(Problem(key, "")).key

    def configs(self) -> dict[str, PretrainedConfig]:
        """Configurations of the models involved by config key, without their weights; the trained one first.

        Raises:
            UserError: A model cannot be found, or settings contradict each other; with all such problems.
        """
        start, trust = self.start, self.trust_remote_code
        problems = [*self.contradictions]
        found: list[dict[str, PretrainedConfig]] = []
        for origin in (start, self.objective):
            try:
                found.append(origin.configs(trust))
            except UserError as error:
                problems += error.problems
        student: PretrainedConfig | None = None
        if len(found) == 2:
            student, *rest = found[0].values()
            original = rest[0] if rest else None
            layers = None if original is None else start.layers(original)
            problems += self.objective.problems(student, original, layers, trust)
        problems += contradictions(self.adaptations, student, start.precision, start.rebuilds)
        if problems:
            raise UserError([self.keyed(problem) for problem in problems])
        return {self.config_key(key): config for each in found for key, config in each.items()}

    def problems(self, data: TaskData, training: bool) -> list[str]:
        """What is wrong with the settings, as far as shows without weights, one line each.

        Args:
            data: The data module.
            training: Whether the model is to be trained, and not only scored.
        """
        try:
            configs = self.configs()
        except UserError as error:
            return [*error.problems]
        limits = {key: positions_of(config) for key, config in configs.items()}
        found = data.fits({key: limit for key, limit in limits.items() if limit})
        found += [self.keyed(problem.under("task")) for problem in self.task.problems(configs, data)]
        source, key = self.start.source, self.config_key()
        quantized = quantization_of(configs[key]) if key in configs else None
        if training and quantized and (reason := self._refusal(quantized)):
            found.append(f"{key}: {source} is quantized to {quantized.upper()}: {reason}")
        keys = {each: self.config_key(its) for each, its in self.objective.sources.items()}
        keys |= dict.fromkeys(self.start.sources, key)
        for each, its_key in (keys | ({source: key} if isinstance(source, str) else {})).items():
            try:
                verify(each, its_key)
            except UserError as error:
                found += error.problems
        try:
            held = Ledger.read(source).held_prunings()
        except UserError as error:
            return [*dict.fromkeys([*found, *error.problems])]
        if not found and training and self.removes and held:
            found.append(
                f"{key}: single weights of {source} are pruned, which removing heads and neurons would make a wrong "
                "count of; remove those first and prune weights after it, or give pruning.granularity weight or block"
            )
        return found

    def lacks(self, data: TaskData, steps: bool, folder: Path) -> list[Problem]:
        """What memory and disk do not hold, as far as the settings say; a lower bound: activations come on top.

        Args:
            data: The data module.
            steps: Whether optimizer steps will be taken.
            folder: Where the run writes.
        """
        vocabulary, free = getattr(data, "vocab_size", None), room.free_memory()
        if vocabulary and (what := room.lack(vocabulary * _TOKEN, free, "memory to train the tokenizer")):
            return [Problem("data.vocab_size", what, "give fewer tokens")]
        (key, config), *others = self.configs().items()
        if vocabulary and isinstance(self.start.source, dict) and "vocab_size" not in self.start.source:
            config.vocab_size = vocabulary
        count = room.parameters(config, key)
        trained = steps and not self.freezes
        memory = count * (room.TRAINED if trained else room.WEIGHT if self.start.precision == "fp32" else 0)
        memory += sum(room.parameters(each, other) for other, each in others) * room.WEIGHT
        disk = count * (
            room.TRAINED if trained else room.WEIGHT
        )  # a model; with the optimizer's state, its checkpoint too
        lacks = [room.lack(memory, free, "memory"), room.lack(disk, room.free_disk(folder), "disk")]
        return [Problem(key, f"it has {count:,} parameters: {what}", "give a smaller model") for what in lacks if what]

    def _refusal(self, quantized: str) -> str | None:
        """Why a quantized model cannot be trained, with what to do; None where it can."""
        accepted = [part.accepts for part in self.adaptations if part is not self.held] or [frozenset({"fp32"})]
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
