"""A packed copy of the artefact, at fit end."""

from lightgpt2.callbacks.convert import Convert
from lightgpt2.conversions.base import Conversion
from lightgpt2.conversions.convert import Converted
from lightgpt2.conversions.packing import Packed


class PackedArtefact(Convert):
    """Writes the artefact beside it as `model-packed/`, with its zeros left out and the rest compressed, and nothing lost.

    Pruned weights and integers get smaller so, dense FP32 weights hardly. It is smaller on disk only: loaded (with
    `trust_remote_code=True` in plain transformers) it is the artefact, to the last bit, which is checked.

    ```yaml
    trainer: {callbacks: [{class_path: lightgpt2.callbacks.PackedArtefact}]}
    ```
    """

    setting = ""

    def __init__(self) -> None:
        super().__init__([Packed()])

    def show(self, conversion: Conversion, made: Converted) -> None:
        sizes, done = made.sizes, made.operation
        print(
            f"model-packed: {sizes['megabytes']:.2f} MB packed, {sizes['dense_megabytes']:.2f} MB dense, "
            f"{sizes['memory']:.2f} MB in memory; {done['sparse']} of {done['tensors']} tensors sparse, equal to the last bit",
            flush=True,
        )
