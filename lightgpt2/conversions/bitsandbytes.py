"""NF4 and INT8 by bitsandbytes, which plain transformers loads."""

from pathlib import Path

import torch
from transformers import PretrainedConfig

from lightgpt2.conversions.base import Conversion
from lightgpt2.data.base import TaskData
from lightgpt2.errors import Problem, UserError
from lightgpt2.models.loading import new_model
from lightgpt2.models.operations import Operation
from lightgpt2.models.quantization import Format, check_blocks, quantization_of, quantize_folder

TWICE = "remove it (lightgpt2.callbacks.Export writes them with their own scales)"


class BitsAndBytes(Conversion):
    """Quantizes all linear layers of the blocks, or fails; embeddings, norms and the vocabulary head stay."""

    def __init__(self, form: Format = "nf4") -> None:
        self.form = form
        self.name: str = form

    def problems(self, config: PretrainedConfig, data: TaskData) -> list[Problem]:
        if quantized := quantization_of(config):
            return [Problem("", f"the weights are {quantized} already, and nothing is converted twice", TWICE)]
        try:
            with torch.device("meta"):
                check_blocks(new_model(config), self.form)
        except UserError as error:
            return [Problem("", problem.removeprefix(f"{self.form}: ")) for problem in error.problems]
        return []

    def write(self, source: Path, target: Path, data: TaskData) -> Operation:
        return quantize_folder(source, target, self.form, data.tokenizer, self.trust_remote_code)
