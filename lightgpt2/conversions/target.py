"""What a model can be exported as, and why not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from lightgpt2.conversions.gguf.writer import Kind, gguf_problems
from lightgpt2.conversions.onnx.decoder import ACTIVATIONS
from lightgpt2.conversions.onnx.weights import Form, block_size
from lightgpt2.errors import UserError
from lightgpt2.models.axes import Shape
from lightgpt2.models.loading import load_config, load_tokenizer
from lightgpt2.models.quantization import quantization_of
from lightgpt2.runtime.folder import is_exported

Format = Literal["onnx", "onnx-int8", "onnx-int4", "gguf"]
Embeddings = Literal["fp32", "int8", "int4"]
Prefill = Literal["int8"]

_LAYERS: dict[str, Form] = {"onnx": "fp32", "onnx-int8": "int8", "onnx-int4": "int4"}
_PRECISIONS = {"F32": "fp32", "F16": "f16", "Q8_0": "int8", "Q4_0": "int4"}
_HEAD_STEPS = {"gpt2": 8, "llama": 16}  # what ONNX Runtime's attention wants a head's channels to be a multiple of


@dataclass(frozen=True)
class Target:
    """What to make of a model.

    Attributes:
        form: The format.
        embeddings: How `onnx-int8` and `onnx-int4` store token embedding and vocabulary head; None: as the model's own file has
            them, or in INT8.
        group: Consecutive inputs that share a scale and zero point in `onnx-int4`, a power of two from 16 to 256; None: 32,
            or as the model's own file has it.
        gguf_type: What GGUF stores matrices as; None: F16.
        prefill: What `onnx-int4` multiplies more than one token with, once it is loaded; None: as it is stored.
    """

    form: Format
    embeddings: Embeddings | None = None
    group: int | None = None
    gguf_type: Kind | None = None
    prefill: Prefill | None = None

    @property
    def kind(self) -> Kind:
        """What GGUF stores matrices as."""
        return self.gguf_type or "F16"

    @property
    def layers(self) -> Form:
        """How ONNX stores the layers of the blocks."""
        return _LAYERS[self.form]

    @property
    def precision(self) -> str:
        """`fp32`, `f16`, `int8` or `int4`."""
        return _PRECISIONS[self.kind] if self.form == "gguf" else self.layers

    def option_problems(self) -> list[str]:
        """What does not go together, one line each."""
        found = []
        if self.embeddings and self.form not in ("onnx-int8", "onnx-int4"):
            found.append(f"--embeddings: {self.form} stores them as all the rest; remove it")
        if self.group and self.form != "onnx-int4":
            found.append("--group: only onnx-int4 has groups; remove it")
        elif self.group and (self.group > 256 or block_size(self.group) != self.group):
            found.append(f"--group: {self.group} is not possible; give 16, 32, 64, 128 or 256")
        if self.gguf_type and self.form != "gguf":
            found.append(f"--gguf-type: {self.form} is no GGUF; remove it, or give --format gguf")
        if self.prefill and self.form != "onnx-int4":
            found.append("--prefill: only onnx-int4 has it; remove it")
        return found

    def problems(self, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> list[str]:
        """Why a model cannot be made that, one line each.

        Args:
            config: The model's configuration.
            tokenizer: Its tokenizer.
        """
        if self.form == "gguf":
            return [*self.option_problems(), *gguf_problems(config, tokenizer, self.kind)]
        found = [*self.option_problems(), *_quantized_problems(config, self), *_shape_problems(config)]
        if (tokens := max(tokenizer.get_vocab().values()) + 1) > config.vocab_size:
            found.append(
                f"MODEL: its tokenizer has {tokens} tokens and the model {config.vocab_size}; give it the tokenizer that it "
                "was trained with"
            )
        return found


def check_model(source: str, target: Target, trust_remote_code: bool = False) -> None:
    """Finds what is wrong before text is read and weights are loaded.

    Args:
        source: Hub id, folder or GGUF file.
        target: What to make of it.
        trust_remote_code: Whether code in the model's folder may run.

    Raises:
        UserError: The model cannot be loaded, or does not fit the format.
    """
    try:
        if is_exported(source):
            raise UserError(f"MODEL: {source} is an exported folder already; give the model that it was made from")
        config = load_config(source, "MODEL", trust_remote_code)
        tokenizer = load_tokenizer(source, "MODEL", trust_remote_code)
    except UserError as error:
        raise UserError([*target.option_problems(), *error.problems]) from error
    if problems := target.problems(config, tokenizer):
        raise UserError(problems)


def default_output(source: str, target: Target) -> Path:
    """Where an export goes unless a person says: beside a local model, `MODEL-FORMAT`; else into the working folder."""
    path = Path(source).expanduser()
    if path.name in ("", ".."):  # `.` would be written into itself
        path = path.resolve()
    stem = path.stem if path.suffix == ".gguf" else path.name
    return (path.parent if path.exists() else Path()) / f"{stem}-{target.form}"


def _quantized_problems(config: PretrainedConfig, target: Target) -> list[str]:
    quantized, about = quantization_of(config), getattr(config, "lightgpt2", {})
    if quantized is None:
        return []
    if "stored" not in about:
        return [
            f"--format: the model is {quantized} by another library, whose scales {target.form} does not have; export the "
            "model that it was made from"
        ]
    if target.group:
        return ["--group: the model's weights have groups of their own, with scales that were trained; remove it"]
    if target.form != f"onnx-{quantized}":
        return [f"--format: the model's weights are {quantized} with scales that were trained; give onnx-{quantized}"]
    return []


def _shape_problems(config: PretrainedConfig) -> list[str]:
    found = []
    activation = config.activation_function if config.model_type == "gpt2" else config.hidden_act
    step = _HEAD_STEPS[config.model_type]
    if (head := Shape.of(config).head) % step:
        found.append(
            f"--format: heads have {head} channels, and ONNX Runtime attends with a multiple of {step} in models of type "
            f"{config.model_type}; train one that has"
        )
    if activation not in ACTIVATIONS:
        found.append(f"--format: the activation {activation} is not written; known are {', '.join(ACTIVATIONS)}")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ("default", "linear", "llama3"):
        found.append(
            f"--format: rotary positions of type {rope} change with the length of the text; no format holds them"
        )
    return found
