"""What a benchmark measures: arms and settings, checked before anything heavy starts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from lightgpt2.errors import Problem, UserError
from lightgpt2.models.loading import load_config
from lightgpt2.models.quantization import Format, stored_precision
from lightgpt2.models.sources import verify
from lightgpt2.runtime.folder import GGUF, ONNX, is_exported, open_export
from lightgpt2.runtime.loading import context_of

GRAPH = "graph"  # the attention of an exported ONNX folder: its graph's own


@dataclass(frozen=True)
class Settings:
    """How much is measured; the fields are explained at `InferenceBenchmark`."""

    prompt_tokens: int
    new_tokens: list[int]
    forward_tokens: int
    batches: list[int]
    rounds: int

    def problems(self, positions: int, owner: str) -> list[Problem]:
        """What does not fit a model with this number of positions; `owner` is a genitive: `the model's`."""
        found = [Problem(n, "must have at least one value") for n in ("new_tokens", "batches") if not getattr(self, n)]
        if self.new_tokens and min(self.new_tokens) < 2:
            what = f"must be at least 2, got {min(self.new_tokens)}"
            found.append(Problem("new_tokens", what, "the first token is timed apart from the others"))
        has, length = f"{owner} {positions} positions", self.forward_tokens
        if length > positions:
            found.append(Problem("forward_tokens", f"must be within {has}, got {length}", f"give at most {positions}"))
        prompt, longest = self.prompt_tokens, max(self.new_tokens, default=0)
        room = positions - prompt
        if room < 2:
            what = f"must leave room for new tokens in {has}, got {prompt}"
            found.append(Problem("prompt_tokens", what, f"give at most {positions - 2}"))
        elif longest > room:
            what = f"must be within {has} after a prompt of {prompt}, got {longest}"
            found.append(Problem("new_tokens", what, f"give at most {room}"))
        return found


@dataclass(frozen=True)
class Arm:
    """One way to run one model."""

    name: str  # unique, as in tables
    source: str  # hub id, folder or GGUF file
    precision: str  # `fp32`, `bf16`, `fp16`, `int8`, `nf4`, or what the folder is quantized to or exported as already
    attention: str  # `sdpa`, `eager`, or `flash`, which is sdpa held to its flash kernel; `GRAPH` for exported ONNX
    trust_remote_code: bool = False


def plan(
    models: Sequence[str],
    precisions: Sequence[str] | None,
    attentions: Sequence[str],
    settings: Settings,
    trust_remote_code: bool = False,
    device: str = "cpu",
    verified: bool = False,
) -> list[Arm]:
    """List the arms of `lightgpt2 benchmark`: every model in every precision with every kind of attention.

    Exported folders are measured as they are. No `precisions` mean FP32, or a folder's own where it is quantized already. A
    `UserError` has every mistake that shows without weights. `verified` models are compared with their ledgers, file by file.
    """
    problems: list[Problem] = []
    chosen: list[tuple[str, str, str]] = []
    for given in models:
        file = Path(given).expanduser() / GGUF
        model = str(file) if is_exported(given) and file.is_file() else given  # measured like any GGUF file
        try:
            if verified:
                verify(given, "MODEL")
            mine = _precisions(model, own_precision(model, "MODEL", trust_remote_code), precisions)
            if is_graph(model) and device != "cpu":
                raise UserError([cuda_problem(model)])
            mistakes = settings.problems(_positions(model, trust_remote_code), f"{model}'s")
        except UserError as error:
            problems += error.problems
            continue
        problems += [Problem(f"--{found.key.replace('_', '-')}", found.what, found.fix) for found in mistakes]
        kinds = [GRAPH] if is_graph(model) else attentions
        chosen += [(model, precision, attention) for precision in mine for attention in kinds]
    if problems:
        raise UserError(list(dict.fromkeys(problems)))
    names = _names(chosen)
    return [Arm(name, *choice, trust_remote_code) for name, choice in zip(names, chosen, strict=True)]


def is_graph(source: str) -> bool:
    """True for a folder that was exported for ONNX Runtime."""
    return is_exported(source) and (Path(source).expanduser() / ONNX).is_file()


def own_precision(source: str, key: str, trust_remote_code: bool = False) -> str | None:
    """The precision or format that a model says its file is in; None for plain weights, a `UserError` if it is damaged."""
    if is_exported(source):
        return str(open_export(Path(source).expanduser(), key).get("format"))
    return stored_precision(source, key, trust_remote_code)


def cuda_problem(source: str) -> Problem:
    """Why an exported folder is not measured on CUDA."""
    what = f"{source} is exported for processors, and its figures would not be CUDA's"
    return Problem("--device", what, "give --device cpu")


def _positions(model: str, trust_remote_code: bool) -> int:
    if is_exported(model):
        return context_of(Path(model).expanduser(), "MODEL")
    positions: int = load_config(model, "MODEL", trust_remote_code).max_position_embeddings
    return positions


def _precisions(model: str, own: str | None, wanted: Sequence[str] | None) -> list[str]:
    """The precisions to measure a model in; what is quantized already is measured as it is, GGUF in any that it is read in."""
    possible = ["fp32", "bf16", "fp16"] if own in (None, "gguf") else [str(own)]
    if own is None:
        possible += get_args(Format)
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
