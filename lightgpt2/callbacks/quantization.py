"""Quantized siblings of the artefact, at fit end."""

from typing import Any, Literal, get_args

import torch
from lightning import Callback, LightningModule, Trainer

from lightgpt2.callbacks.export import Export, check_exports, export_sibling
from lightgpt2.conversions.target import Target
from lightgpt2.errors import UserError
from lightgpt2.measure.memory import weights_mb
from lightgpt2.methods.method import Method
from lightgpt2.models import ledger
from lightgpt2.models.files import restore_folder, write_json
from lightgpt2.models.ledger import Parent
from lightgpt2.models.loading import load_model
from lightgpt2.models.quantization import Format, check_blocks, quantize_folder
from lightgpt2.models.saving import measure_sizes
from lightgpt2.report.table import precisions
from lightgpt2.runs.run import Run
from lightgpt2.tasks.scoring import score

OnnxFormat = Literal["onnx-int8", "onnx-int4"]

_NAME = "trainer.callbacks.PostTrainingQuantization"


class PostTrainingQuantization(Callback):
    """Writes the artefact in NF4 and INT8 beside it, as `model-nf4/` and `model-int8/`, and scores each from disk.

    Those by bitsandbytes, through transformers, which loads the folders on processors and on CUDA. `onnx-int8` and `onnx-int4`
    are for ONNX Runtime on processors, as `Export` writes them: embeddings in INT8 too. All linear layers of the blocks
    are quantized, or it fails; with bitsandbytes embeddings, norms and the vocabulary head stay. NF4 wants layers whose inputs
    are a multiple of 64, for bitsandbytes computes others wrongly on some processors. The table has the artefact in FP32 and
    with its weights rounded to bfloat16 too (computed in FP32): what half precision alone would save is no merit of
    quantization.

    ```yaml
    trainer:
      callbacks:
        - class_path: lightgpt2.callbacks.PostTrainingQuantization
          init_args: {formats: [nf4, int8]}
    ```

    Args:
        formats: What to write.
    """

    order = 1  # after the artefact

    def __init__(self, formats: list[Format | OnnxFormat] | None = None) -> None:
        self.formats = [*(get_args(Format) if formats is None else formats)]
        self.run: Run

    @property
    def targets(self) -> list[Target]:
        """What is written for ONNX Runtime."""
        return [Target(form) for form in get_args(OnnxFormat) if form in self.formats]

    def attach(self, run: Run) -> None:
        """Says whose artefact it is; checks the settings."""
        self.run = run
        if not self.formats or len(set(self.formats)) < len(self.formats):
            raise UserError(f"{_NAME}.formats: give one or more of nf4, int8, onnx-int8, onnx-int4, each once")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks whether there will be anything to quantize, before anything is touched.

        Raises:
            UserError: There will not, or another callback writes the same folder.
        """
        assert isinstance(pl_module, Method)
        if stage != "fit":
            return
        if pl_module.makes:
            raise UserError(
                f"{_NAME}: {type(pl_module).__name__} leaves the weights in {pl_module.makes.upper()}, and nothing is "
                "converted twice; remove it (lightgpt2.callbacks.Export writes them with their own scales)"
            )
        others: list[Any] = [other for other in trainer.callbacks if isinstance(other, Export)]  # type: ignore[attr-defined]
        if twice := {form for other in others for form in other.formats} & set(self.formats):
            raise UserError(f"{_NAME}.formats: {min(twice)} is among those of Export too; remove one of the two")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks for what cannot be quantized, before anything is trained."""
        assert isinstance(pl_module, Method)
        for form in self._of_bitsandbytes():
            check_blocks(pl_module.model, form)
        check_exports(trainer, pl_module, self.targets, _NAME)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Quantizes, scores, prints."""
        assert isinstance(pl_module, Method)
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        entries = ledger.read(str(self.run.model))
        known = entries[-1]["quality"]["after"]  # of the same folder, in FP32
        rows = {
            "fp32": self._figures(trainer, pl_module, "fp32", known),
            "bf16": self._figures(trainer, pl_module, "bf16"),
        }
        entries[-1]["quality"]["bf16"] = {key: rows["bf16"][key] for key in ledger.QUALITY}
        write_json(self.run.model / ledger.FILE, entries)
        for form in self._of_bitsandbytes():
            folder = self.run.sibling(form)
            restore_folder(folder)
            made = quantize_folder(self.run.model, folder, form, data.tokenizer, pl_module.trust_remote_code)
            rows[form] = self._figures(trainer, pl_module, form) | {"quantized": f"{made['matched']}/{made['linears']}"}
            entry = {
                **entries[-1],
                "method": "PostTrainingQuantization",
                "parent": vars(Parent.of(str(self.run.model))),
                "operations": [made],
                "quality": {"after": {key: rows[form][key] for key in ledger.QUALITY}},
                "sizes": {
                    key: rows[form][key] for key in ("parameters", "nonzero", "embedding", "megabytes", "memory")
                },
            }
            for key in ("curve", "training", "benchmark", "sweeps"):
                entry.pop(key, None)
            write_json(folder / ledger.FILE, [*entries, entry])
        for target in self.targets:
            rows[target.form] = _exported(export_sibling(trainer, pl_module, self.run, target, _NAME))
        print(precisions(rows), flush=True)

    def _of_bitsandbytes(self) -> list[Format]:
        return [form for form in get_args(Format) if form in self.formats]

    def _figures(
        self, trainer: Trainer, method: Method, precision: str, quality: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Quality, unless it is known, and sizes of the artefact in one precision, as it loads from disk."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        half = precision == "bf16"
        folder = self.run.model if half or precision == "fp32" else self.run.sibling(precision)
        dtype = torch.bfloat16 if half else torch.float32
        model = load_model(str(folder), "model", method.trust_remote_code, dtype=dtype)
        sizes = {**measure_sizes(model, folder).as_dict(), "memory": weights_mb(model)}
        if half:
            sizes["megabytes"] = None  # which no file has
            # Processors without instructions for bfloat16 take up to 60 times as long. What is stored is rounded all the same.
            model.float()
        model.to(device=trainer.strategy.root_device)
        if quality is None:
            loader, documents = data.scoring_loader("valid"), data.document_sizes("valid")
            quality = score(model, method.task, loader, documents, f"Scoring {precision}").as_dict()
        return {**quality, **sizes}


def _exported(about: dict[str, Any]) -> dict[str, Any]:
    """The figures of what `export.json` tells; how much memory its weights take is ONNX Runtime's business."""
    megabytes = sum(about["bytes"].values()) / 1e6
    return {**about["quality"]["after"], "megabytes": megabytes, "memory": None, "quantized": "all"}
