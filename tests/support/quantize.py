"""A callback that stands in for one that quantizes the artefact."""

from lightning import Callback, LightningModule, Trainer

from lightgpt2.models.quantization import load_for_inference
from lightgpt2.runs import Run


class Quantize(Callback):
    """Writes `model-nf4` beside the artefact."""

    order = 1

    def attach(self, run: Run) -> None:
        """Says whose model it is."""
        self.run = run

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Quantizes."""
        model = load_for_inference(str(self.run.model), "model", "nf4", "sdpa", "cpu")
        model.save_pretrained(self.run.model.with_name("model-nf4"))
