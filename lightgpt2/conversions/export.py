"""`lightgpt2 export`: a model as a folder that stands alone, verified before it is there."""

from pathlib import Path
from typing import Any

from lightgpt2.conversions.convert import Converter
from lightgpt2.conversions.target import Target
from lightgpt2.errors import UserError
from lightgpt2.models.loading import load_config
from lightgpt2.tasks.language_modeling import LanguageModeling


def export(
    source: str,
    target: Target,
    output: Path,
    data: Any,
    *,
    documents: int | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Write a language model in another format, atomically, and verify what was written.

    Args:
        source: Hub id, folder or GGUF file.
        target: The format.
        output: Folder to write.
        data: The data module, with the model's tokenizer: its training split calibrates, its validation split verifies.
        documents: How many documents of the validation split are scored, the first ones; None for all.
        trust_remote_code: Whether code in the model's folder may run.

    Returns:
        What `export.json` says.

    Raises:
        UserError: The model does not fit the format, or what was written is not good enough; then nothing is left of it.
    """
    if problems := target.problems(load_config(source, "MODEL", trust_remote_code), data.tokenizer):
        raise UserError(problems)
    conversion, converter = target.conversion, Converter(data, LanguageModeling(), "Export", documents=documents)
    conversion.trust_remote_code = trust_remote_code
    try:
        return converter.convert(conversion, source, output).about
    except UserError as error:
        raise UserError(target.as_options(error.problems)) from error
