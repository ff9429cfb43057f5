"""What ONNX and GGUF folders share: they stand alone, with weights that take the room they should."""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.conversions.base import Conversion
from lightgpt2.conversions.target import Target
from lightgpt2.data.base import TaskData
from lightgpt2.errors import Problem, UserError
from lightgpt2.models.axes import Shape, named_axes
from lightgpt2.models.families import family_of
from lightgpt2.models.loading import load_model
from lightgpt2.models.operations import KINDS, Operation
from lightgpt2.models.saving import carry_licence, complete_config, positions_of, save_tokenizer
from lightgpt2.runtime.folder import describe

# A matrix in INT8 or INT4 takes at most this share of its bytes in FP32, and 64 bytes more a row: its scale, and what
# fills up its last block of inputs. GGUF has some in F16 where there are no whole blocks.
_SHRINKS, _SHRINKS_SOME, _ROW = 0.35, 0.55, 64


class Exported(Conversion):
    """A conversion for another program, which needs neither LightGPT2 nor PyTorch."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.name: str = target.form

    def problems(self, config: PretrainedConfig, data: TaskData) -> list[Problem]:
        return [*self.target.problems(), *self.model_problems(config, data)]

    @abstractmethod
    def model_problems(self, config: PretrainedConfig, data: TaskData) -> Iterator[Problem]:
        """Why the other program could not run the model with the same result."""

    @abstractmethod
    def write_model(self, source: Path, model: PreTrainedModel, folder: Path, data: TaskData) -> Operation:
        """Write the weights: `weights`, their bytes without headers and padding, `bytes` by file, and what else is known."""

    def write(self, source: Path, target: Path, data: TaskData) -> Operation:
        model = load_model(str(source), "MODEL", self.trust_remote_code).eval()
        written = self.write_model(source, model, target, data)
        most = self._most_bytes(model, bool(written.get("fallback")))
        if self.precision in ("int8", "int4") and written["weights"] > most:
            said = f"its weights take {written['weights'] / 1e6:.2f} MB where {most / 1e6:.2f} were expected at most"
            raise UserError([Problem("", said, "nothing was written")])
        plain = model.config.to_dict()
        for key in ("auto_map", "quantization_config"):  # which tell of files that are not in the folder
            plain.pop(key, None)
        type(model.config).from_dict(plain).save_pretrained(target)
        complete_config(target)
        if (generation := getattr(model, "generation_config", None)) is not None:  # a classifier has none
            generation.save_pretrained(target)
        save_tokenizer(data.tokenizer, target, positions_of(model.config))
        carry_licence(str(source), target)
        return KINDS["export"].record(format=self.name, **written)

    def finish(self, folder: Path, about: dict[str, Any]) -> None:
        describe(folder, about)

    def _most_bytes(self, model: PreTrainedModel, fallback: bool) -> float:
        whole = {"position"} | ({"vocabulary"} if self.target.embeddings == "fp32" else set())
        share = _SHRINKS_SOME if fallback else _SHRINKS
        kinds = len({*(getattr(model.config, "layer_types", None) or [""])})  # of layers, which may turn differently
        family = family_of(model)
        tables = (family.positions(model.config) or 0) * Shape.of(model.config).head  # of angles
        most = 4.0 * kinds * tables
        for each in named_axes(model):
            size, roles = 4 * each.value.numel(), {role for axis in each.axes for role in axis}
            small = each.value.ndim == 2 and not roles & whole and not each.name.startswith(family.head_parts)
            most += size * share + _ROW * max(each.value.shape) if small else size
        return most
