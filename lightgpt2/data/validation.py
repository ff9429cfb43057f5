"""The text that a finished model is held against: that of its training, or any other."""

import inspect
from typing import Any

from lightgpt2.data.corpora import Corpus
from lightgpt2.data.language_modeling import LanguageModelingData
from lightgpt2.errors import UserError
from lightgpt2.models import ledger
from lightgpt2.models.loading import load_config, load_tokenizer

_KEPT = ("source", "text_field", "separator", "valid_fraction", "test_fraction", "sequence_length", "stride")
_LENGTH = 512  # of windows, unless the ledger says or the model has fewer positions


def validation_data(model: str, source: str | None, trust_remote_code: bool = False) -> LanguageModelingData:
    """The corpus of a model's last training, or another, tokenized by its tokenizer and ready to score with.

    Args:
        model: Hub id, folder or GGUF file.
        source: As `LanguageModelingData.source`; None: as the model's ledger says, else the default.
        trust_remote_code: Whether code in the model's folder may run.

    Raises:
        UserError: The model or the text cannot be loaded.
    """
    positions = load_config(model, "MODEL", trust_remote_code).max_position_embeddings
    settings: dict[str, Any] = {"sequence_length": min(_LENGTH, positions)}
    if source is None:
        settings |= _trained_on(model)
    else:
        settings["source"] = source
    settings["sequence_length"] = min(settings["sequence_length"], positions)
    if (settings.get("stride") or 0) >= settings["sequence_length"]:
        del settings["stride"]
    load_tokenizer(model, "MODEL", trust_remote_code)
    data = LanguageModelingData(**settings, tokenizer=model)
    try:
        data.prepare_data()
        data.setup("validate")
    except UserError as error:
        reasons = [problem.partition(": ")[2] for problem in error.problems]
        if source is None:
            said = "; ".join(reasons)
            raise UserError(
                f"--data: the text that {model} was trained on is of no use here ({said}); give another"
            ) from error
        raise UserError([f"--data: {reason}" for reason in reasons]) from error
    return data


def _trained_on(model: str) -> dict[str, Any]:
    """What the ledger says about the data of the last stage that had some."""
    known = set(inspect.signature(LanguageModelingData.__init__).parameters)
    for entry in reversed(ledger.read(model)):
        found = (entry.get("config") or {}).get("data") or {}
        settings = found.get("init_args", {})
        if settings.get("source") and set(settings) <= known:
            return {key: settings[key] for key in _KEPT if settings.get(key) is not None}
    return {"source": Corpus.source}
