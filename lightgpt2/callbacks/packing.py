"""A packed sibling of the artefact, at fit end."""

import torch
from lightning import Callback, LightningModule, Trainer

from lightgpt2.conversions.packing import pack_folder
from lightgpt2.measure.memory import weights_mb
from lightgpt2.methods.method import Method
from lightgpt2.models import ledger
from lightgpt2.models.files import restore_folder, write_json
from lightgpt2.models.ledger import Parent
from lightgpt2.models.loading import load_model
from lightgpt2.models.saving import measure_sizes
from lightgpt2.runs.run import Run


class PackedArtefact(Callback):
    """Writes the artefact beside it as `model-packed/`, with its zeros left out and the rest compressed, and nothing lost.

    Pruned weights and integers get smaller so, dense FP32 weights hardly. It is smaller on disk only: loaded (with
    `trust_remote_code=True` in plain transformers) it is the artefact, to the last bit, which is checked.

    ```yaml
    trainer:
      callbacks:
        - class_path: lightgpt2.callbacks.PackedArtefact
    ```
    """

    order = 1  # after the artefact

    def __init__(self) -> None:
        self.run: Run

    def attach(self, run: Run) -> None:
        """Says whose artefact it is."""
        self.run = run

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Packs, loads, compares, prints."""
        assert isinstance(pl_module, Method)
        if not trainer.is_global_zero:
            return
        folder = self.run.sibling("packed")
        restore_folder(folder)
        made = pack_folder(self.run.model, folder)
        model, own = (load_model(str(path), "model", pl_module.trust_remote_code) for path in (folder, self.run.model))
        weights = own.state_dict()
        if not all(torch.equal(value, weights[name]) for name, value in model.state_dict().items()):
            raise RuntimeError(f"{folder} does not load as the model that was packed")
        entries = ledger.read(str(self.run.model))
        memory = weights_mb(model)
        entry = {
            **entries[-1],
            "method": type(self).__name__,
            "parent": vars(Parent.of(str(self.run.model))),
            "operations": [made.operation()],
            "quality": {"after": entries[-1]["quality"]["after"]},  # of equal weights
            "sizes": {**measure_sizes(model, folder).as_dict(), "dense_megabytes": made.dense, "memory": memory},
        }
        for key in ("curve", "training", "benchmark", "sweeps", "generation"):
            entry.pop(key, None)
        write_json(folder / ledger.FILE, [*entries, entry])
        print(
            f"{folder.name}: {made.packed:.2f} MB packed, {made.dense:.2f} MB dense, {memory:.2f} MB in memory; "
            f"{made.sparse} of {made.tensors} tensors sparse, equal to the last bit",
            flush=True,
        )
