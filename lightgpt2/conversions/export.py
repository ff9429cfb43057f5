"""`lightgpt2 export`: a model as a folder that stands alone, verified before it is there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightgpt2.conversions.convert import Converter
from lightgpt2.conversions.exported import Exported
from lightgpt2.conversions.gguf.writer import Gguf
from lightgpt2.conversions.onnx.conversion import Onnx
from lightgpt2.conversions.target import Target
from lightgpt2.data.base import TaskData
from lightgpt2.errors import UserError
from lightgpt2.models.loading import load_config
from lightgpt2.models.sources import verify
from lightgpt2.models.tokenizers import load_tokenizer
from lightgpt2.runtime.folder import is_exported
from lightgpt2.tasks import task_of


def conversion_of(target: Target) -> Exported:
    """The conversion that writes a format."""
    return Gguf(target) if target.form == "gguf" else Onnx(target)


def check_model(source: str, target: Target, trust_remote_code: bool = False) -> None:
    """Raise a `UserError` if a model cannot be loaded or does not fit the format, before text and weights are read."""
    try:
        if is_exported(source):
            raise UserError(f"MODEL: {source} is an exported folder already; give the model that it was made from")
        verify(source, "MODEL")
        config = load_config(source, "MODEL", trust_remote_code)
        data: Any = SimpleNamespace(tokenizer=load_tokenizer(source, "MODEL", trust_remote_code, separates=False))
    except UserError as error:
        raise UserError([*target.as_options(target.problems()), *error.problems]) from error
    if problems := conversion_of(target).problems(config, data):
        raise UserError(target.as_options(problems))


def export(
    source: str,
    target: Target,
    output: Path,
    data: TaskData,
    *,
    documents: int | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Write a model that `check_model` has passed in another format, and verify what was written.

    Args:
        source: Hub id, folder or GGUF file.
        target: The format.
        output: Folder to write, atomically.
        data: The data, with the model's tokenizer: its training split calibrates, its validation split verifies.
        documents: How many documents of the validation split are scored, the first ones; None for all.
        trust_remote_code: Whether code in the model's folder may run.

    Returns:
        What `export.json` says.

    Raises:
        UserError: What was written is not good enough; then nothing is left of it.
    """
    conversion = conversion_of(target)
    conversion.trust_remote_code = trust_remote_code
    config = load_config(source, "MODEL", trust_remote_code)
    task = task_of(config)
    task.bind(data)
    try:
        return Converter(data, task, "Export", documents=documents).convert(conversion, source, output).about
    except UserError as error:
        raise UserError(target.as_options(error.problems)) from error
