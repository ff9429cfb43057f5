"""Settings of a generation: what is asked, else what the model's folder says, else a default."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lightgpt2.errors import Problem, refuse
from lightgpt2.models.vocabulary import is_unicode
from lightgpt2.runtime.processors import Processor, as_ids, first_processors, later_processors

# The settings that a folder's `generation_config.json` may have, by its names.
_OF_FOLDERS = {
    name: name
    for name in (
        "max_new_tokens", "max_length", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
        "repetition_penalty", "num_beams", "length_penalty", "early_stopping",
    )
} | {"no_repeat_ngram_size": "no_repeat_ngram"}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Settings of a generation.

    Args:
        max_new_tokens: The most tokens that are added.
        batch_size: How many prompts are continued at a time.
        temperature: Divisor of the logits; 0 takes the most likely token. 1 if it is open and the folder says `do_sample`.
        top_k: Sample from the k most likely tokens (0: no limit).
        top_p: Sample from the fewest most likely tokens that have this share of the probability (1: no limit).
        repetition_penalty: Divisor of positive logits, and factor of negative ones, of tokens that were there before, in the
            prompt too (1: none).
        no_repeat_ngram: Length of the sequences of tokens that may not come twice, the prompt included (0: no limit).
        num_beams: How many texts are begun side by side, of which the best is taken (1: no beam search).
        length_penalty: The power of its length by which a text's log probability is divided: above 0 favours long ones.
        early_stopping: True to stop at `num_beams` ends; False: when no better one is likely; "never": when none is possible.
        seed: Seed of the sampling, with a prompt's index.
        stop: Texts that end a text, and are no part of it; for `resolve` one text will do.
        ends: End-of-text tokens; always the folder's, as is what follows.
        stop_strings: Texts that end a text with the token that completes them, as in transformers.
        max_length: The most tokens of a prompt and what is added to it; None, or where `max_new_tokens` is given: no limit.
        min_p: Sample from tokens with this share of the most likely one's probability.
        typical_p: Sample from the tokens whose surprise is nearest to the entropy, with this share of the probability.
        epsilon_cutoff: Sample from tokens that are at least as likely as this.
        eta_cutoff: The same, or less where the entropy is high.
        first: Changes of the logits before the penalties for what was there before.
        later: Changes of the logits after them.
    """

    max_new_tokens: int = 256  # as transformers' pipeline for text
    batch_size: int = 8
    temperature: float = 0.0
    top_k: int = 50  # as transformers', when it samples
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    seed: int = 0
    stop: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    max_length: int | None = None
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    first: tuple[Processor, ...] = ()
    later: tuple[Processor, ...] = ()


def _texts(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def resolve(options: Mapping[str, Any], folder: Mapping[str, Any]) -> Settings:
    """The settings that some options give, with what is open (missing or None) from the folder's generation configuration.

    Options are the fields that have a default above `ends`, and `min_new_tokens`, the least tokens before a text may end.

    Raises:
        UserError: One line for each value that is out of range.
    """
    asked = {name: value for name, value in options.items() if value is not None}
    if (least := asked.pop("min_new_tokens", None)) is not None:
        folder = {**folder, "min_new_tokens": least}
    theirs = {name: folder[key] for key, name in _OF_FOLDERS.items() if folder.get(key) is not None}
    values: dict[str, Any] = {"temperature": 1.0, **theirs, **asked}
    if not asked.get("temperature", folder.get("do_sample")):
        values["temperature"] = 0.0
    if "max_new_tokens" in values:
        values["max_length"] = None
    stop, ends = _texts(values.pop("stop", ())), frozenset(as_ids(folder.get("eos_token_id")))
    rules: Any = {"first": tuple(first_processors(folder)), "later": tuple(later_processors(folder))}
    settings = Settings(**values, stop=stop, ends=ends, stop_strings=_texts(folder.get("stop_strings") or ()), **rules)
    refuse(_problems(settings, asked, least))
    return settings


def _problems(settings: Settings, asked: Collection[str], least: int | None) -> Iterator[Problem]:
    """What is out of range, and what of the options that are asked for has no effect."""
    allowed = {
        "max_new_tokens": ("at least 1", settings.max_new_tokens >= 1),
        "batch_size": ("at least 1", settings.batch_size >= 1),
        "temperature": ("at least 0 (0: the most likely token)", 0 <= settings.temperature < float("inf")),
        "top_k": ("at least 0 (0: no limit)", settings.top_k >= 0),
        "top_p": ("above 0 and at most 1", 0 < settings.top_p <= 1),
        "repetition_penalty": ("above 0 (1: none)", 0 < settings.repetition_penalty < float("inf")),
        "no_repeat_ngram": ("at least 0 (0: no limit)", settings.no_repeat_ngram >= 0),
        "num_beams": ("at least 1", settings.num_beams >= 1),
        "length_penalty": ("a finite number", math.isfinite(settings.length_penalty)),
        "early_stopping": ("true, false or never", settings.early_stopping in (True, False, "never")),
        "seed": ("at least 0", settings.seed >= 0),
        "min_p": ("at least 0 and at most 1", 0 <= settings.min_p <= 1),
        "typical_p": ("above 0 and at most 1", 0 < settings.typical_p <= 1),
        "epsilon_cutoff": ("at least 0 and below 1", 0 <= settings.epsilon_cutoff < 1),
        "eta_cutoff": ("at least 0 and below 1", 0 <= settings.eta_cutoff < 1),
    }
    for name, (words, fits) in allowed.items():
        if not fits:
            yield Problem(name, f"must be {words}, got {getattr(settings, name)}")
    for name in ("stop", "stop_strings"):
        if "" in getattr(settings, name):
            yield Problem(name, "must not be empty, which is everywhere", "give a text, or leave it out")
    for text in settings.stop:
        if not is_unicode(text):
            yield Problem("stop", f"must be valid Unicode, got {text!a}", "correct it")
    for name in ("top_k", "top_p"):
        if settings.temperature == 0 and name in asked:
            what = "must be left out at temperature 0, which takes the most likely token"
            yield Problem(name, what, "give a temperature above 0, or remove it")
    if least is not None and least < 0:
        yield Problem("min_new_tokens", f"must be at least 0, got {least}")
    elif least and settings.max_length is None and least > settings.max_new_tokens:
        what = f"must be at most max_new_tokens, {settings.max_new_tokens}, got {least}"
        yield Problem("min_new_tokens", what, "give fewer, or more max_new_tokens")
