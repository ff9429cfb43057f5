"""The formats of exports with their options. Imports nothing heavy: the command line reads the names from here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from lightgpt2.errors import Problem, UserError

if TYPE_CHECKING:
    from lightgpt2.conversions.exported import Exported

QuantizedFormat = Literal["onnx-int8", "onnx-int4"]
Format = Literal["onnx", QuantizedFormat, "gguf"]
Embeddings = Literal["fp32", "int8", "int4"]
Prefill = Literal["int8"]
GgufType = Literal["F32", "F16", "Q8_0", "Q4_0"]
Precision = Literal["fp32", "f16", "int8", "int4"]

_PRECISIONS: dict[str, Precision] = {
    "onnx": "fp32", "onnx-int8": "int8", "onnx-int4": "int4", "F32": "fp32", "F16": "f16", "Q8_0": "int8", "Q4_0": "int4",
}  # fmt: skip
_GROUPS = (16, 32, 64, 128, 256)
_OPTIONS = {  # and the formats that have them
    "embeddings": ("onnx-int8", "onnx-int4"),
    "group": ("onnx-int4",),
    "prefill": ("onnx-int4",),
    "gguf_type": ("gguf",),
}


@dataclass(frozen=True)
class Target:
    """A format with its options.

    Attributes:
        form: The format.
        embeddings: How `onnx-int8` and `onnx-int4` store token embedding and vocabulary head; None: as the model's own file has
            them, or in INT8.
        group: Consecutive inputs that share a scale and zero point in `onnx-int4`: 16, 32, 64, 128 or 256; None: 32, or as the
            model's own file has it.
        gguf_type: What GGUF stores matrices as; None: F16.
        prefill: What `onnx-int4` multiplies more than one token with, once it is loaded; None: as it is stored.
    """

    form: Format
    embeddings: Embeddings | None = None
    group: int | None = None
    gguf_type: GgufType | None = None
    prefill: Prefill | None = None

    @classmethod
    def of(cls, form: Format, options: Mapping[str, Any]) -> "Target":
        """A format with those of the options that it has."""
        return cls(form, **{key: options[key] for key, forms in _OPTIONS.items() if form in forms})

    @property
    def kind(self) -> GgufType:
        """What GGUF stores matrices as."""
        return self.gguf_type or "F16"

    @property
    def precision(self) -> Precision:
        """The precision of the weights."""
        return _PRECISIONS[self.kind if self.form == "gguf" else self.form]

    @property
    def conversion(self) -> "Exported":
        """What writes it."""
        if self.form == "gguf":
            from lightgpt2.conversions.gguf_file import Gguf

            return Gguf(self)
        from lightgpt2.conversions.onnx.conversion import Onnx

        return Onnx(self)

    def own_problems(self) -> list[Problem]:
        """What does not go together; the keys are names of options."""
        return option_problems([self.form], vars(self))

    def problems(self, config: Any, tokenizer: Any) -> list[Problem]:
        """Why a model of this configuration, with this tokenizer, cannot be written so, by the command's options."""
        return self.as_options(self.conversion.problems(config, SimpleNamespace(tokenizer=tokenizer)))

    def as_options(self, problems: Sequence[Problem]) -> list[Problem]:
        """Problems of the conversion by the command's options."""
        names = {key: f"--{key.replace('_', '-')}" for key in _OPTIONS} | {"": f"--format {self.form}"}
        return [problem.renamed(names) for problem in problems]


def option_problems(forms: Sequence[str], options: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with options by name, None where one is not given, for formats that are written together."""
    found = []
    for key, having in _OPTIONS.items():
        if options[key] and not {*forms} & {*having}:
            found.append(Problem(key, f"only {' and '.join(having)} can have it, got {', '.join(forms)}", "remove it"))
    if (group := options["group"]) and group not in _GROUPS and "onnx-int4" in forms:
        found.append(Problem("group", f"must be {', '.join(map(str, _GROUPS[:-1]))} or {_GROUPS[-1]}, got {group}"))
    return found


def check_model(source: str, target: Target, trust_remote_code: bool = False) -> None:
    """Find what is wrong before text is read and weights are loaded.

    Args:
        source: Hub id, folder or GGUF file.
        target: The format.
        trust_remote_code: Whether code in the model's folder may run.

    Raises:
        UserError: The model cannot be loaded, or does not fit the format.
    """
    from lightgpt2.models.loading import load_config, load_tokenizer
    from lightgpt2.runtime.folder import is_exported

    try:
        if is_exported(source):
            raise UserError(f"MODEL: {source} is an exported folder already; give the model that it was made from")
        config = load_config(source, "MODEL", trust_remote_code)
        tokenizer = load_tokenizer(source, "MODEL", trust_remote_code)
    except UserError as error:
        raise UserError([*target.as_options(target.own_problems()), *error.problems]) from error
    if problems := target.problems(config, tokenizer):
        raise UserError(problems)


def default_output(source: str, target: Target) -> Path:
    """The folder of an export: beside a local model, `MODEL-FORMAT`; else in the working folder."""
    path = Path(source).expanduser()
    if path.name in ("", ".."):  # `.` would be written into itself
        path = path.resolve()
    stem = path.stem if path.suffix == ".gguf" else path.name
    return (path.parent if path.exists() else Path()) / f"{stem}-{target.form}"
