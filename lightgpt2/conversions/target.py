"""The formats of exports with their options. Imports nothing heavy: the command line reads the names from here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightgpt2.errors import Problem

QuantizedFormat = Literal["onnx-int8", "onnx-int4"]
Format = Literal["onnx", "onnx-int8", "onnx-int4", "gguf"]
Embeddings = Literal["fp32", "int8", "int4"]
Prefill = Literal["int8"]
GgufType = Literal["F32", "F16", "Q8_0", "Q4_0"]
_GROUPS = (16, 32, 64, 128, 256)
_HAVING = {  # the formats that have an option
    "embeddings": ("onnx-int8", "onnx-int4"),
    "group": ("onnx-int4",),
    "prefill": ("onnx-int4",),
    "gguf_type": ("gguf",),
}


@dataclass(frozen=True)
class Target:
    """A format with its options; `callbacks.Export` says what they are."""

    form: Format
    embeddings: Embeddings | None = None
    group: int | None = None
    gguf_type: GgufType | None = None
    prefill: Prefill | None = None

    @classmethod
    def of(cls, form: Format, options: Mapping[str, Any]) -> "Target":
        """A format with those of the options that it has."""
        return cls(form, **{key: options[key] for key, forms in _HAVING.items() if form in forms})

    def problems(self) -> list[Problem]:
        """The options that do not go together."""
        return option_problems([self.form], vars(self))

    def as_options(self, problems: Sequence[Problem]) -> list[Problem]:
        """Problems of the conversion by the command's options."""
        names = {key: f"--{key.replace('_', '-')}" for key in _HAVING} | {"": f"--format {self.form}"}
        return [problem.renamed(names) for problem in problems]


def option_problems(forms: Sequence[str], options: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with options by name, None where one is not given, for formats that are written together."""
    found = []
    for key, having in _HAVING.items():
        if options[key] and not {*forms} & {*having}:
            found.append(Problem(key, f"only {' and '.join(having)} can have it, got {', '.join(forms)}", "remove it"))
    if (group := options["group"]) and group not in _GROUPS and "onnx-int4" in forms:
        found.append(Problem("group", f"must be {', '.join(map(str, _GROUPS[:-1]))} or {_GROUPS[-1]}, got {group}"))
    return found


def default_output(source: str, target: Target) -> Path:
    """The folder of an export: beside a local model, `MODEL-FORMAT`; else in the working folder."""
    path = Path(source).expanduser()
    if path.name in ("", ".."):  # `.` would be written into itself
        path = path.resolve()
    stem = path.stem if path.suffix == ".gguf" else path.name
    return (path.parent if path.exists() else Path()) / f"{stem}-{target.form}"
