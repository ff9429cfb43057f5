"""What a benchmark measures: arms and workloads, checked before anything heavy starts."""

import inspect
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from transformers import PretrainedConfig

from lightgpt2.errors import Problem, UserError, refuse
from lightgpt2.measure.arms import GRAPH, Arm, cuda_problem, is_graph, own_precision
from lightgpt2.models.loading import folder_config
from lightgpt2.models.quantization import DYNAMIC, Format, inference_config
from lightgpt2.models.saving import positions_of
from lightgpt2.models.sources import verify
from lightgpt2.models.workloads import Positions, Workload
from lightgpt2.runtime.folder import GGUF, is_exported
from lightgpt2.tasks import Task, task_of


def plan(
    models: Sequence[str],
    precisions: Sequence[str] | None,
    attentions: Sequence[str],
    settings: Mapping[str, Any],
    trust_remote_code: bool = False,
    device: str = "cpu",
    verified: bool = False,
) -> tuple[list[Arm], list[Workload]]:
    """List the arms of `lightgpt2 benchmark`, every model in every precision with every kind of attention, and its workloads.

    Exported folders are measured as they are. No `precisions` mean FP32, or a folder's own where it is quantized already.
    `verified` models are compared with their ledgers, file by file. The workloads are those of the models' task.

    Raises:
        UserError: With every mistake that shows without weights.
    """
    problems: list[Problem] = []
    chosen: list[tuple[str, str, str]] = []
    tasks: dict[str, tuple[Task, Positions]] = {}
    for given in models:
        file = Path(given).expanduser() / GGUF
        model = str(file) if is_exported(given) and file.is_file() else given  # measured like any GGUF file
        try:
            if verified:
                verify(given, "MODEL", recorded=True)
            mine = _precisions(model, own_precision(model, "MODEL", trust_remote_code), precisions, device)
            if is_graph(model) and device != "cpu":
                raise UserError([cuda_problem(model)])
            config = _config(model, trust_remote_code)
        except UserError as error:
            problems += error.problems
            continue
        tasks[model] = task_of(config), Positions(positions_of(config) or sys.maxsize, f"{model}'s")
        kinds = [GRAPH] if is_graph(model) else attentions
        chosen += [(model, precision, attention) for precision in mine for attention in kinds]
    workloads: list[Workload] = []
    if len({type(task) for task, _ in tasks.values()}) > 1:
        listed = ", ".join(f"{model} ({type(task).__name__})" for model, (task, _) in tasks.items())
        problems.append(Problem("MODEL", f"the models have different tasks: {listed}", "measure them apart"))
    elif tasks:
        task, positions = min(tasks.values(), key=lambda each: each[1].count)  # all models do the same
        try:
            workloads = workloads_of(task, settings, positions)
        except UserError as error:
            problems += [
                problem.renamed({key: f"--{key.replace('_', '-')}" for key in settings}) for problem in error.problems
            ]
    refuse(dict.fromkeys(problems))
    names = _names(chosen)
    return [Arm(name, *choice, trust_remote_code) for name, choice in zip(names, chosen, strict=True)], workloads


def workloads_of(task: Task, settings: Mapping[str, Any], positions: Positions, data: Any = None) -> list[Workload]:
    """The workloads of a task with those of the settings that are given; a `UserError` for one that means nothing to it."""
    given = {key: value for key, value in settings.items() if value is not None}
    known = inspect.signature(task.workloads).parameters
    name = type(task).__name__
    refuse(Problem(key, f"has no meaning for {name}", "remove it") for key in given if key not in known)
    return task.workloads(positions, data, **given)


def _config(model: str, trust_remote_code: bool) -> PretrainedConfig:
    if is_exported(model):
        return folder_config(Path(model).expanduser(), "MODEL")
    return inference_config(model, "MODEL", trust_remote_code)


def _precisions(model: str, own: str | None, wanted: Sequence[str] | None, device: str) -> list[str]:
    """The precisions to measure a model in; what is quantized already is measured as it is, GGUF in any that it is read in."""
    possible = ["fp32", "bf16", "fp16"] if own in (None, "gguf") else [str(own)]
    if own is None:
        possible += [*get_args(Format), *([DYNAMIC] if device == "cpu" else [])]
    for each in wanted or ():
        if each not in possible:
            what = f"must be {' or '.join(possible)} for {model}, which is {own}, got {each}"
            raise UserError([Problem("--precision", what, "leave it out to measure each model as it is")])
    return list(wanted or possible[:1])


def _names(chosen: list[tuple[str, str, str]]) -> list[str]:
    """A unique name for each arm: the last part of the model's path where that is enough, and what differs."""

    def last(source: str) -> str:
        return Path(source).resolve().name if Path(source).exists() else Path(source).name

    times = Counter(last(source) for source in {source for source, _, _ in chosen})
    several = len({attention for _, _, attention in chosen} - {GRAPH}) > 1
    seen, names = Counter[str](), []
    for source, precision, attention in chosen:
        model = last(source) if times[last(source)] == 1 else source.rstrip("/")
        name = " ".join([model, precision, *([attention] if several and attention != GRAPH else [])])
        seen[name] += 1  # a model beside itself is a control: its ratio should be 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names
