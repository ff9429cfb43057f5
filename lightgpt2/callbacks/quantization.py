"""Quantized copies of the artefact, at fit end."""

from typing import Any, get_args

import torch
from lightning import Trainer

from lightgpt2.callbacks.convert import Convert
from lightgpt2.conversions.bitsandbytes import TWICE, BitsAndBytes
from lightgpt2.conversions.convert import Converter
from lightgpt2.conversions.export import conversion_of
from lightgpt2.conversions.target import QuantizedFormat, Target
from lightgpt2.errors import Problem, UserError
from lightgpt2.methods.method import Method
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.loading import load_model
from lightgpt2.models.quality import add_scores
from lightgpt2.models.quantization import Format


class PostTrainingQuantization(Convert):
    """Writes the artefact in NF4 and INT8 beside it, as `model-nf4/` and `model-int8/`, and scores each from disk.

    Those by bitsandbytes, which transformers loads on processors and CUDA; NF4 wants layers whose inputs are a multiple of 64.
    `onnx-int8` and `onnx-int4` are for ONNX Runtime on processors, as `Export` writes them. The table has the artefact in FP32
    and rounded to bfloat16 too (computed in FP32): what half precision alone saves is no merit of quantization.

    ```yaml
    trainer:
      callbacks: [{class_path: lightgpt2.callbacks.PostTrainingQuantization, init_args: {formats: [nf4, int8]}}]
    ```

    Args:
        formats: What to write.
    """

    setting = "formats"

    def __init__(self, formats: list[Format | QuantizedFormat] | None = None) -> None:
        chosen = get_args(Format) if formats is None else formats
        super().__init__([BitsAndBytes(f) if f == "nf4" or f == "int8" else conversion_of(Target(f)) for f in chosen])

    def setup(self, trainer: Trainer, pl_module: Method, stage: str) -> None:
        """Refuse weights that will be integers already, before anything is touched."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and (stored := pl_module.precision):
            what = f"{type(pl_module).__name__} leaves the weights in {stored.upper()}, and nothing is converted twice"
            raise UserError([Problem("trainer.callbacks.PostTrainingQuantization", what, TWICE)])

    def references(self, converter: Converter, trust_remote_code: bool) -> dict[str, dict[str, Any]]:
        """The artefact in FP32 and in bfloat16; the score of the latter goes into its ledger."""
        folder, ledger = self.run.model, Ledger.read(self.run.model)
        quality, sizes = ledger.last["quality"], []
        for dtype in (torch.float32, torch.bfloat16):
            model = load_model(str(folder), "model", trust_remote_code, dtype=dtype)
            sizes.append(converter.sizes(model, folder))
        # Processors without instructions for bfloat16 take up to 60 times as long. What is stored is rounded all the same.
        metrics = converter.evaluate(model.float(), "bf16")
        half = converter.task.quality(metrics)
        add_scores(folder, quality, "bf16", metrics)
        ledger.amended(quality={"bf16": half}).write(folder)
        return {"fp32": quality["after"] | sizes[0], "bf16": half | sizes[1] | {"megabytes": None}}  # which no file has
