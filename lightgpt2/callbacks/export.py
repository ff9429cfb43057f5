"""Exported copies of the artefact, at fit end."""

from jsonargparse.typing import PositiveInt

from lightgpt2.callbacks.convert import Convert
from lightgpt2.conversions.base import Conversion
from lightgpt2.conversions.convert import Converted
from lightgpt2.conversions.export import conversion_of
from lightgpt2.conversions.target import Embeddings, Format, GgufType, Prefill, Target, option_problems
from lightgpt2.errors import Problem
from lightgpt2.report.table import exported_line
from lightgpt2.runs.run import Run


class Export(Convert):
    """Writes the artefact in other formats beside it, as `model-onnx/`, `model-onnx-int8/`, ...: folders that stand alone.

    As `lightgpt2 export` does, each verified on the whole validation split. `lightgpt2 generate` and `lightgpt2 benchmark` take
    the folders.

    ```yaml
    trainer:
      callbacks:
        - class_path: lightgpt2.callbacks.Export
          init_args: {formats: [onnx-int8, gguf], gguf_type: Q8_0}
    ```

    Args:
        formats: What to write.
        embeddings: How onnx-int8 and onnx-int4 store token embedding and vocabulary head; null: as the model's own file has
            them, or in INT8.
        group: Consecutive inputs that share a scale in onnx-int4: 16, 32, 64, 128 or 256; null: 32, or as the model's own file
            has it.
        gguf_type: What gguf stores matrices as; null: F16.
        prefill: `int8`: onnx-int4's weights become INT8 when it is loaded, to read prompts with: faster, in more memory;
            null: they stay INT4.
    """

    setting = "formats"

    def __init__(
        self,
        formats: list[Format],
        embeddings: Embeddings | None = None,
        group: PositiveInt | None = None,
        gguf_type: GgufType | None = None,
        prefill: Prefill | None = None,
    ) -> None:
        self.embeddings, self.group, self.gguf_type, self.prefill = embeddings, group, gguf_type, prefill
        self.targets = [Target.of(form, vars(self)) for form in formats]
        super().__init__([conversion_of(target) for target in self.targets])

    def attach(self, run: Run) -> list[Problem]:
        return [*super().attach(run), *option_problems(self.names, vars(self))]

    def show(self, conversion: Conversion, made: Converted) -> None:
        print(exported_line(self.run.sibling(conversion.name), made.about), flush=True)
