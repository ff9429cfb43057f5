"""GGUF for llama.cpp, in a folder with what other clients read beside the file."""

import re
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.conversions.exported import Exported
from lightgpt2.conversions.gguf.writer import gguf_problems, write_gguf
from lightgpt2.errors import Problem
from lightgpt2.models.loading import load_exported_gguf
from lightgpt2.models.operations import Operation
from lightgpt2.runtime.engines import Engine
from lightgpt2.runtime.transformers_engine import TransformersEngine

FILE = "model.gguf"


class Gguf(Exported):
    """Writes `model.gguf`."""

    def problems(self, config: PretrainedConfig, data: Any) -> list[Problem]:
        """See `Conversion`: what llama.cpp could not run with the same result."""
        found = gguf_problems(config, data.tokenizer, self.target.kind)
        # Its lines name the command's options.
        found = [re.sub(r"--format |--gguf-type ", "", line.removeprefix("--format gguf: ")) for line in found]
        return [*self.target.own_problems(), *(Problem("", line) for line in found)]

    def write_model(self, source: Path, model: PreTrainedModel, folder: Path, data: Any) -> Operation:
        """See `Exported`."""
        written = write_gguf(model, data.tokenizer, folder / FILE, self.target.kind)
        weights, size = sum(written["bytes"].values()), (folder / FILE).stat().st_size
        return {"type": self.target.kind, **written, "weights": weights, "bytes": {FILE: size}}

    def runner(self, folder: Path) -> Engine:
        """The file's weights, dequantized, in PyTorch."""
        return TransformersEngine(load_exported_gguf(folder, "MODEL"))
