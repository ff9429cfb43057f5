"""What a benchmark measures: its arms and its settings, checked before anything heavy starts."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightgpt2.errors import UserError
from lightgpt2.models.loading import load_config
from lightgpt2.models.quantization import stored_precision
from lightgpt2.runtime.folder import is_exported, open_export
from lightgpt2.runtime.loading import context_of

EXPORTED = ("onnx", "onnx-int8", "onnx-int4")  # precisions of folders that ONNX Runtime runs
GRAPH = "graph"  # their kind of attention: the graph's own

_QUANTIZING = ("int8", "nf4")


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        prompt_tokens: Length of the random prompt that generation starts from.
        new_tokens: Numbers of new tokens to generate.
        forward_tokens: Length of the sequences of a forward pass.
        batches: Batch sizes of the forward pass.
        rounds: How often every arm is measured, in turn with the others.
    """

    prompt_tokens: int
    new_tokens: list[int]
    forward_tokens: int
    batches: list[int]
    rounds: int

    def problems(self, positions: int, owner: str, key: Callable[[str], str]) -> list[str]:
        """What does not fit a model, one line each.

        Args:
            positions: How many positions the model has.
            owner: Whose positions they are, in the genitive: `the model's`.
            key: The name of a setting where the person wrote it.
        """
        found = [f"{key(name)}: give at least one" for name in ("new_tokens", "batches") if not getattr(self, name)]
        if self.new_tokens and min(self.new_tokens) < 2:
            found.append(f"{key('new_tokens')}: the first token is timed apart from the others; give at least 2")
        if self.forward_tokens > positions:
            fix = f"give at most {positions}"
            found.append(
                f"{key('forward_tokens')}: {self.forward_tokens} is more than {owner} {positions} positions; {fix}"
            )
        room, longest = positions - self.prompt_tokens, max(self.new_tokens, default=0)
        if room < 2:
            found.append(
                f"{key('prompt_tokens')}: {self.prompt_tokens} leaves no room for new tokens in {owner} {positions} "
                f"positions; give at most {positions - 2}"
            )
        elif longest > room:
            found.append(
                f"{key('new_tokens')}: {longest} after a prompt of {self.prompt_tokens} is more than {owner} "
                f"{positions} positions; give at most {room}"
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Arm:
    """One way to run one model.

    Attributes:
        name: What it is called in tables; no two arms share one.
        source: Hub id, folder or GGUF file.
        precision: `fp32`, `bf16`, `fp16`, `int8`, `nf4`, or what the folder is quantized to or exported as already.
        attention: `sdpa`, `eager`, or `flash`, which is sdpa held to its flash kernel; `graph` for an exported folder.
        trust_remote_code: Whether code in the model's folder may run.
    """

    name: str
    source: str
    precision: str
    attention: str
    trust_remote_code: bool = False

    @property
    def file_name(self) -> str:
        """Its name without spaces and slashes."""
        return "-".join(self.name.replace("/", " ").split())


def plan(
    models: Sequence[str],
    precisions: Sequence[str] | None,
    attentions: Sequence[str],
    settings: Settings,
    trust_remote_code: bool = False,
    device: str = "cpu",
) -> list[Arm]:
    """The arms of `lightgpt2 benchmark`: every model in every precision with every kind of attention.

    Exported folders are measured as they are.

    Args:
        models: Hub ids, folders and GGUF files.
        precisions: Precisions; None for FP32, and for its own where a folder is quantized or exported already.
        attentions: Kinds of attention.
        settings: What will be measured.
        trust_remote_code: Whether code in the models' folders may run.
        device: `cpu` or `cuda:N`.

    Raises:
        UserError: Every mistake that shows without weights.
    """
    problems: list[str] = []
    chosen: list[tuple[str, str, str]] = []
    for given in models:
        model = _gguf_of(given)
        try:
            own = own_precision(model, "MODEL", trust_remote_code)
            mine = _precisions(model, own, precisions)
            if own in EXPORTED and device != "cpu":
                raise UserError(cuda_problem(model))
            positions = _positions(model, own, trust_remote_code)
        except UserError as error:
            problems += error.problems
            continue
        problems += settings.problems(positions, f"{model}'s", _option)
        kinds = [GRAPH] if own in EXPORTED else attentions
        chosen += [(model, precision, attention) for precision in mine for attention in kinds]
    if problems:
        raise UserError(list(dict.fromkeys(problems)))
    names = _names(chosen)
    return [Arm(name, *choice, trust_remote_code) for name, choice in zip(names, chosen, strict=True)]


def own_precision(source: str, key: str, trust_remote_code: bool = False) -> str | None:
    """What a model is quantized to or exported as already: as `stored_precision`, or one of `EXPORTED`.

    Args:
        source: Hub id, folder or GGUF file.
        key: Config key to name in errors.
        trust_remote_code: Whether code in the model's folder may run.

    Raises:
        UserError: Its configuration cannot be loaded, or an exported folder is damaged.
    """
    if not is_exported(source):
        return stored_precision(source, key, trust_remote_code)
    form = open_export(Path(source).expanduser(), key).get("format")
    if form not in EXPORTED:
        raise UserError(f"{key}: {source} says that it holds {form!r}; export the model again")
    return str(form)


def _positions(model: str, own: str | None, trust_remote_code: bool) -> int:
    if own in EXPORTED:
        return context_of(Path(model).expanduser(), "MODEL")
    positions: int = load_config(model, "MODEL", trust_remote_code).max_position_embeddings
    return positions


def cuda_problem(source: str) -> str:
    """Why an exported folder is not measured on CUDA."""
    return f"--device: {source} is exported for processors, and its figures would not be CUDA's; give --device cpu"


def _gguf_of(source: str) -> str:
    """The file of an exported folder that holds GGUF, which is measured as any such file is; else the source itself."""
    file = Path(source).expanduser() / "model.gguf"
    return str(file) if is_exported(source) and file.is_file() else source


def _option(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def _precisions(model: str, stored: str | None, wanted: Sequence[str] | None) -> list[str]:
    """The precisions to measure a model in; refuses to quantize what is already quantized."""
    if stored == "gguf":
        if refused := [p for p in wanted or () if p in _QUANTIZING]:
            raise UserError(
                f"--precision: {refused[0]} of {model} would be quantizing what is already quantized (a GGUF file); give "
                "fp32, bf16 or fp16, for which it is dequantized"
            )
    elif stored is not None:
        if refused := [p for p in wanted or () if p != stored]:
            again = refused[0] in _QUANTIZING and stored not in EXPORTED
            reason = "would be quantizing what is already quantized" if again else "is not there"
            raise UserError(
                f"--precision: {refused[0]} of {model} {reason}: the folder is {stored}; leave --precision out to measure "
                "each model as it is"
            )
        return [stored]
    return list(wanted or ["fp32"])


def _names(chosen: list[tuple[str, str, str]]) -> list[str]:
    """A name for each arm: the last part of the model's path where that is enough, and what tells arms apart."""
    sources = {source for source, _, _ in chosen}
    last = Counter(_last(source) for source in sources)
    several = len({attention for _, _, attention in chosen} - {GRAPH}) > 1
    seen: Counter[str] = Counter()
    names = []
    for source, precision, attention in chosen:
        model = _last(source) if last[_last(source)] == 1 else source.rstrip("/")
        name = " ".join([model, precision, *([attention] if several and attention != GRAPH else [])])
        seen[name] += 1  # a model beside itself is a control: its ratio should be 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def _last(source: str) -> str:
    return Path(source).resolve().name if Path(source).exists() else Path(source).name
