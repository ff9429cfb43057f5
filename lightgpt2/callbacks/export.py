"""Exported siblings of the artefact, at fit end."""

import copy
import re
from collections.abc import Sequence
from typing import Any, cast

from jsonargparse.typing import PositiveInt
from lightning import Callback, LightningModule, Trainer
from transformers import PretrainedConfig

from lightgpt2.conversions.export import export
from lightgpt2.conversions.gguf.writer import Kind
from lightgpt2.conversions.target import Embeddings, Format, Prefill, Target
from lightgpt2.errors import UserError
from lightgpt2.methods.method import Method
from lightgpt2.models import ledger
from lightgpt2.models.files import restore_folder
from lightgpt2.report.exported import exported_line
from lightgpt2.runs.run import Run

_NAME = "trainer.callbacks.Export"
_WITH_EMBEDDINGS = ("onnx-int8", "onnx-int4")


class Export(Callback):
    """Writes the artefact in other formats beside it, as `model-onnx/`, `model-onnx-int8/`, ...: folders that stand alone.

    As `lightgpt2 export` does, each verified on the whole validation split; one that is not good enough is not written, and the
    run fails when all others are there. `lightgpt2 generate` and `lightgpt2 benchmark` take the folders.

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

    order = 1  # after the artefact

    def __init__(
        self,
        formats: list[Format],
        embeddings: Embeddings | None = None,
        group: PositiveInt | None = None,
        gguf_type: Kind | None = None,
        prefill: Prefill | None = None,
    ) -> None:
        self.formats, self.embeddings, self.group, self.gguf_type = [*formats], embeddings, group, gguf_type
        self.prefill = prefill
        self.run: Run

    @property
    def targets(self) -> list[Target]:
        """What to make of the artefact."""
        return [
            Target(
                form,
                self.embeddings if form in _WITH_EMBEDDINGS else None,
                self.group if form == "onnx-int4" else None,
                self.gguf_type if form == "gguf" else None,
                self.prefill if form == "onnx-int4" else None,
            )
            for form in self.formats
        ]

    def attach(self, run: Run) -> None:
        """Says whose artefact it is; checks the settings.

        Raises:
            UserError: With all that contradict each other.
        """
        self.run = run
        problems = []
        if not self.formats or len(set(self.formats)) < len(self.formats):
            problems.append(f"{_NAME}.formats: give one or more of onnx, onnx-int8, onnx-int4, gguf, each once")
        if self.embeddings and not set(self.formats) & {*_WITH_EMBEDDINGS}:
            problems.append(f"{_NAME}.embeddings: only {' and '.join(_WITH_EMBEDDINGS)} have it; remove it")
        for key in ("group", "prefill"):
            if getattr(self, key) and "onnx-int4" not in self.formats:
                problems.append(f"{_NAME}.{key}: onnx-int4 is not among the formats; remove it, or add onnx-int4")
        if self.gguf_type and "gguf" not in self.formats:
            problems.append(f"{_NAME}.gguf_type: gguf is not among the formats; remove it, or add gguf")
        problems += _by_settings([problem for each in self.targets for problem in each.option_problems()], _NAME)
        if problems:
            raise UserError(problems)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks for what cannot be exported, before anything is trained."""
        assert isinstance(pl_module, Method)
        check_exports(trainer, pl_module, self.targets, _NAME)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exports, verifies, prints."""
        assert isinstance(pl_module, Method)
        if not trainer.is_global_zero:
            return
        problems = []
        for target in self.targets:
            try:
                about = export_sibling(trainer, pl_module, self.run, target, _NAME)
            except UserError as error:
                problems += error.problems
            else:
                print(exported_line(self.run.sibling(target.form), about), flush=True)
        if problems:
            raise UserError(problems)


def check_exports(trainer: Trainer, method: Method, targets: Sequence[Target], name: str) -> None:
    """Refuses what the artefact that a run will leave cannot be exported as.

    Args:
        trainer: The run's trainer.
        method: What trains it; its model is built.
        targets: What is to be made.
        name: The callback's key, for messages.

    Raises:
        UserError: With every reason.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    config = _artefact_config(method)
    if problems := [problem for target in targets for problem in target.problems(config, data.tokenizer)]:
        raise UserError(_by_settings(problems, name))


def export_sibling(trainer: Trainer, method: Method, run: Run, target: Target, name: str) -> dict[str, Any]:
    """Exports a run's artefact into the folder beside it.

    Args:
        trainer: The run's trainer.
        method: What has trained it.
        run: The run.
        target: What to make of it.
        name: The callback's key, for messages.

    Returns:
        What its `export.json` says.

    Raises:
        UserError: It is not good enough; nothing is written.
    """
    folder = run.sibling(target.form)
    restore_folder(folder)
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    before = ledger.read(str(run.model))[-1]["quality"]["after"]  # of the same folder and text
    trusted = method.trust_remote_code
    try:
        return export(str(run.model), target, folder, data, before=before, trust_remote_code=trusted)
    except UserError as error:
        raise UserError(_by_settings(error.problems, name)) from error


def _artefact_config(method: Method) -> PretrainedConfig:
    """The configuration of what a method will save: in full precision, unless it makes integers."""
    config = cast(PretrainedConfig, copy.deepcopy(method.model.config))
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    if method.makes:
        rounds = any(operation.get("activations") for operation in method.operations)
        about = {"stored": method.makes, **({"activations": "int8"} if rounds else {})}
        config.update({"lightgpt2": {**getattr(config, "lightgpt2", {}), **about}})
    return config


def _by_settings(problems: Sequence[str], name: str) -> list[str]:
    """Messages about the command's options as messages about a callback's settings."""
    keys = {"format": "formats", "gguf-type": "gguf_type"}  # others are named alike
    found = []
    for problem in problems:
        text = re.sub(r"^--format (\S+):", r"--format: \1:", problem)
        text = re.sub(r"^--([\w-]+):", lambda match: f"{name}.{keys.get(match[1], match[1])}:", text)
        found.append(re.sub(r"--(format|gguf-type)\b", lambda match: keys[match[1]], text))
    return found
