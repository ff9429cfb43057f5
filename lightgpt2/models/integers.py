"""Models whose weights are, or will be, integers with scales: trained as such, saved, counted."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightgpt2.errors import Problem
from lightgpt2.functional.quantization import fake_quantize, integers
from lightgpt2.models.axes import Shape
from lightgpt2.models.families import block_linears, compute_with, family_of, unquantized_head
from lightgpt2.models.operations import KINDS, Operation
from lightgpt2.models.saving import bring_code
from lightgpt2.models.standalone import stored_weights

_GROUP = 32


@dataclass
class Integers:
    """The integer format of a model; the linear layers of its blocks always have it.

    Attributes:
        bits: 8, with one scale for each output channel; or 4, with one for each group of its weights.
        group: With 4 bits, the number of consecutive inputs of an output channel that share a scale; 32 unless given.
        activations: Round the inputs of those layers as well, to 8 bits with one scale for each token.
        embeddings: Round the token and position embeddings too, and the vocabulary head, tied or not.
    """

    bits: Literal[8, 4] = 8
    group: int | None = None
    activations: bool = False
    embeddings: bool = False

    @property
    def name(self) -> str:
        """`int8` or `int4`."""
        return f"int{self.bits}"

    @property
    def size(self) -> int | None:
        """Inputs that share a scale; None if all of an output channel do."""
        return None if self.bits == 8 else self.group or _GROUP

    def problems(self, config: PretrainedConfig) -> list[Problem]:
        """The problems of the format with a model; keys below the section."""
        if not isinstance(self.bits, int):  # 8.0, which is one of the two as well
            return [Problem("bits", f"must be a whole number, got {self.bits}", "give 8 or 4")]
        if self.bits == 8 and self.group is not None:
            return [Problem("group", "INT8 has one scale for each output channel", "remove it, or give bits 4")]
        if self.activations and family_of(config).recurrent:
            what = f"the kernel that runs a model of type {config.model_type} does not round what its layers read"
            return [Problem("activations", what, "give false")]
        most = max(Shape.of(config).channels().values())
        if self.group is not None and not 2 <= self.group <= most:
            what = f"must be between 2 and {most}, the most inputs of a layer, got {self.group}"
            return [Problem("group", what, f"give {_GROUP}, say")]
        return []


def round_weights(model: PreTrainedModel, form: Integers, active: Callable[[], bool]) -> None:
    """Let a model compute with weights that the integers can hold; what is trained stays as it is, under its names.

    `active` is asked at every forward pass whether to round.
    """

    def rounded(module: nn.Module, name: str, value: Tensor) -> Tensor:
        if name != "weight" or not active():
            return value
        rows = fake_quantize(_as_rows(module, value.float()), form.bits, form.size)
        return _as_rows(module, rows).to(value.dtype)

    for module in _rounded(model, form).values():
        compute_with(module, partial(rounded, module))
    for module in block_linears(model).values() if form.activations else ():
        module.register_forward_pre_hook(
            lambda module, args: stored_weights.round_inputs(module, args) if active() else None
        )


def _rounded(model: PreTrainedModel, form: Integers) -> dict[str, nn.Module]:
    """The modules whose weights are rounded, by name."""
    chosen = block_linears(model)
    if form.embeddings:
        head = model.get_output_embeddings()
        chosen |= {n: m for n, m in model.named_modules() if isinstance(m, nn.Embedding) or m is head}
    return chosen


def _as_rows(module: nn.Module, weight: Tensor) -> Tensor:
    """A module's weight with one row for each output channel, or back: a Conv1D's has columns."""
    return weight.T.contiguous() if isinstance(module, Conv1D) else weight


def integer_tensors(
    model: PreTrainedModel, form: Integers, weights: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Callable[[Path], None]]:
    """The integers with scales of a model with these weights, whole and not rounded; and what writes them into its folder."""
    tensors, table = dict(weights), {}
    for module_name, module in _rounded(model, form).items():
        if (name := f"{module_name}.weight") in weights:  # a tied head is the embedding
            rows = _as_rows(module, weights[name].float())
            whole, tensors[f"{name}_scale"] = integers(rows, form.bits, form.size)
            tensors[name] = stored_weights.halved(whole) if form.bits == 4 else whole
            about = {"shape": list(weights[name].shape), "transposed": isinstance(module, Conv1D)}
            table[name] = {"bits": form.bits, "group": whole.shape[-1], **about}

    def write(folder: Path) -> None:
        stored_weights.write(folder / "model.safetensors", tensors, table)
        bring_code(folder, stored=form.name, **({"activations": "int8"} if form.activations else {}))

    return tensors, write


def operation(model: PreTrainedModel, form: Integers) -> Operation:
    """The ledger's record: the format, how many of the linear layers it matched, and which were left and why."""
    count = len(block_linears(model))
    settings = {"bits": form.bits, "group": form.size, "activations": form.activations, "embeddings": form.embeddings}
    kept = {} if form.embeddings else unquantized_head(model)
    return KINDS["integers"].record(**settings, matched=count + form.embeddings, linears=count + 1, kept=kept)
