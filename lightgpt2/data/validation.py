"""The text that a finished model is validated with: that of its training, or any other."""

import inspect
import itertools
from typing import Any, NamedTuple

from lightgpt2.data.base import Connection, TaskData
from lightgpt2.data.classification import ClassificationData
from lightgpt2.data.corpora import Corpus
from lightgpt2.data.documents import plain_text
from lightgpt2.data.language_modeling import LanguageModelingData
from lightgpt2.data.text_to_text import TextToTextData
from lightgpt2.errors import UserError
from lightgpt2.models.families import CAUSAL_LM, CLASSIFICATION, SEQ2SEQ, check_family, family_of, predicts
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.loading import load_config
from lightgpt2.models.tokenizers import load_tokenizer


class _Kind(NamedTuple):
    """The data of a task."""

    data: type[TaskData]
    length: str  # the setting for the length of an input in tokens
    tokens: int  # its value, unless the ledger says or the model has fewer positions
    source: str | None  # its source where the ledger names none
    texts: str  # what a source holds, in words
    kept: tuple[str, ...]  # the settings that decide what is scored
    read: tuple[str, ...] = ()  # those of them that belong to the model, and not to its source


_KINDS = {
    CAUSAL_LM: _Kind(LanguageModelingData, "sequence_length", 512, Corpus.source, "text", (
        "source", "text_field", "separator", "streaming", "token_budget", "near_duplicates", "loss_on",
        "valid_fraction", "test_fraction", "sequence_length", "stride",
    )),
    CLASSIFICATION: _Kind(ClassificationData, "max_length", 128, None, "labelled texts", (
        "source", "text_field", "pair_field", "label_field", "class_names", "valid_fraction", "test_fraction", "max_length",
    )),
    SEQ2SEQ: _Kind(TextToTextData, "max_source_length", 512, None, "texts with targets", (
        "source", "source_field", "target_field", "prefix", "max_source_length", "max_target_length", "valid_fraction",
        "test_fraction",
    ), ("prefix", "max_source_length", "max_target_length")),
}  # fmt: skip


def validation_data(model: str, source: str | None, trust_remote_code: bool = False) -> Any:
    """The data of a model's last training, or other data, tokenized by its tokenizer and ready to score with.

    Args:
        model: Hub id, folder or GGUF file.
        source: As `source` of the data module; None: as the model's ledger says, else the default of language models.
        trust_remote_code: Whether code in the model's folder may run.

    Raises:
        UserError: The model or the data cannot be loaded, or no data is known.
    """
    config = load_config(model, "MODEL", trust_remote_code)
    check_family(config, "MODEL", predicts(config.architectures))
    kind = _KINDS[predicts(config.architectures)]
    settings = _trained_on(model, kind)
    if source:
        settings = {"source": source, **{key: settings[key] for key in kind.read if key in settings}}
    if not settings:
        raise UserError(f"--data: the ledger of {model} names no {kind.texts}; give some, as data.source")
    positions = family_of(config).positions(config)
    settings[kind.length] = min(filter(None, (settings.get(kind.length, kind.tokens), positions)))
    if (settings.get("stride") or 0) >= settings[kind.length]:
        del settings["stride"]
    load_tokenizer(model, "MODEL", trust_remote_code, separates=kind.data is LanguageModelingData)
    data = kind.data(**settings)
    data.connect(Connection(model, "MODEL", trust_remote_code, config=config))
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


def is_labelled(model: str, source: str | None) -> bool:
    """True for a classifier with labelled texts: those of `source`, or of its training."""
    auto_class = predicts(load_config(model, "MODEL").architectures)
    return auto_class == CLASSIFICATION and bool(source or _trained_on(model, _KINDS[auto_class]))


def _trained_on(model: str, kind: _Kind) -> dict[str, Any]:
    """The settings of the data of the last stage that had some, from the ledger; empty if there are none."""
    known = {*inspect.signature(kind.data.__init__).parameters}
    for entry in reversed(Ledger.read(model)):
        found = (entry.get("config") or {}).get("data") or {}
        settings = found.get("init_args", {})
        named = found.get("class_path", "").rpartition(".")[2]
        if named in ("", kind.data.__name__) and settings.get("source") and {*settings} <= known:
            return {key: settings[key] for key in kind.kept if settings.get(key) is not None}
    return {"source": kind.source} if kind.source else {}


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
