"""The text that a finished model is validated with: that of its training, or any other."""

import inspect
import itertools
from typing import Any

from lightgpt2.data.corpora import Corpus
from lightgpt2.data.documents import plain_text
from lightgpt2.data.language_modeling import LanguageModelingData
from lightgpt2.errors import UserError
from lightgpt2.models.families import CAUSAL_LM
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.loading import load_config, load_tokenizer

_KEPT = (
    "source", "text_field", "separator", "streaming", "token_budget", "near_duplicates", "loss_on",
    "valid_fraction", "test_fraction", "sequence_length", "stride",
)  # fmt: skip
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
    positions = load_config(model, "MODEL", trust_remote_code, CAUSAL_LM).max_position_embeddings
    settings: dict[str, Any] = {"sequence_length": _LENGTH}
    settings |= _trained_on(model) if source is None else {"source": source}
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
            said = f"the text that {model} was trained on is of no use here ({'; '.join(reasons)}); give another"
            reasons = [said]
        raise UserError([f"--data: {reason}" for reason in reasons]) from error
    return data


def _trained_on(model: str) -> dict[str, Any]:
    """The settings of the data of the last stage that had some, from the ledger."""
    known = set(inspect.signature(LanguageModelingData.__init__).parameters)
    for entry in reversed(Ledger.read(model)):
        found = (entry.get("config") or {}).get("data") or {}
        settings = found.get("init_args", {})
        if settings.get("source") and set(settings) <= known:
            return {key: settings[key] for key in _KEPT if settings.get(key) is not None}
    return {"source": Corpus.source}


def validation_texts(source: str | None, count: int) -> tuple[list[str], str]:
    """The first `count` documents of a corpus, to compare encoders on, and its name.

    Raises:
        UserError: There is no such corpus, or no text in it.
    """
    corpus = Corpus(source or Corpus.source)
    try:
        texts = [plain_text(document) for _, document in itertools.islice(corpus.documents(), count)]
    except UserError as error:
        raise UserError([f"--data: {problem.partition(': ')[2]}" for problem in error.problems]) from error
    if not texts:
        raise UserError(f"--data: {corpus.source} holds no text; give a corpus with some")
    return texts, corpus.source
