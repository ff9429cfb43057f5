"""What a benchmark measures: its arms and its settings, checked before anything heavy starts."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightgpt2.errors import UserError
from lightgpt2.models.loading import load_config
from lightgpt2.models.quantization import stored_precision

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
        precision: `fp32`, `bf16`, `fp16`, `int8`, `nf4`, or what the folder is quantized to already.
        attention: `sdpa`, `eager`, or `flash`, which is sdpa held to its flash kernel.
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
) -> list[Arm]:
    """The arms of `lightgpt2 benchmark`: every model in every precision with every kind of attention.

    Args:
        models: Hub ids, folders and GGUF files.
        precisions: Precisions; None for FP32, and for its own where a folder is quantized already.
        attentions: Kinds of attention.
        settings: What will be measured.
        trust_remote_code: Whether code in the models' folders may run.

    Raises:
        UserError: Every mistake that shows without weights.
    """
    problems: list[str] = []
    chosen: list[tuple[str, str, str]] = []
    for model in models:
        try:
            config = load_config(model, "MODEL", trust_remote_code)
            mine = _precisions(model, stored_precision(model, "MODEL", trust_remote_code), precisions)
        except UserError as error:
            problems += error.problems
            continue
        problems += settings.problems(config.max_position_embeddings, f"{model}'s", _option)
        chosen += [(model, precision, attention) for precision in mine for attention in attentions]
    if problems:
        raise UserError(list(dict.fromkeys(problems)))
    names = _names(chosen)
    return [Arm(name, *choice, trust_remote_code) for name, choice in zip(names, chosen, strict=True)]


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
            reason = "would be quantizing what is already quantized" if refused[0] in _QUANTIZING else "is not there"
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
    several = len({attention for _, _, attention in chosen}) > 1
    seen: Counter[str] = Counter()
    names = []
    for source, precision, attention in chosen:
        model = _last(source) if last[_last(source)] == 1 else source.rstrip("/")
        name = " ".join([model, precision, *([attention] if several else [])])
        seen[name] += 1  # a model beside itself is a control: its ratio should be 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def _last(source: str) -> str:
    return Path(source).resolve().name if Path(source).exists() else Path(source).name
