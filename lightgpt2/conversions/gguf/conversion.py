"""GGUF for llama.cpp, in a folder with what other clients read beside the file."""

from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.conversions.exported import Exported
from lightgpt2.conversions.gguf.writer import gguf_problems, write_gguf
from lightgpt2.conversions.target import GgufType, Target
from lightgpt2.data.base import TaskData
from lightgpt2.errors import Problem
from lightgpt2.models.loading import load_exported_gguf
from lightgpt2.models.operations import Operation
from lightgpt2.runtime.engines import Engine
from lightgpt2.runtime.folder import GGUF
from lightgpt2.runtime.transformers_engine import TransformersEngine

_PRECISIONS: dict[GgufType, str] = {"F32": "fp32", "F16": "f16", "Q8_0": "int8", "Q4_0": "int4"}


class Gguf(Exported):
    """Writes `model.gguf`."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.kind: GgufType = target.gguf_type or "F16"
        self.precision = _PRECISIONS[self.kind]

    def problems(self, config: PretrainedConfig, data: TaskData) -> list[Problem]:
        """See `Conversion`: what llama.cpp could not run with the same result."""
        return [*super().problems(config, data), *gguf_problems(config, data.tokenizer, self.kind)]

    def write_model(self, source: Path, model: PreTrainedModel, folder: Path, data: TaskData) -> Operation:
        """See `Exported`."""
        written = write_gguf(model, data.tokenizer, folder / GGUF, self.kind)
        weights, size = sum(written["bytes"].values()), (folder / GGUF).stat().st_size
        return {"type": self.kind, **written, "weights": weights, "bytes": {GGUF: size}}

    def runner(self, folder: Path) -> Engine:
        """The file's weights, dequantized, in PyTorch."""
        return TransformersEngine(load_exported_gguf(folder, "MODEL"))
