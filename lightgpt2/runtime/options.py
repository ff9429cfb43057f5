"""Settings of a generation: what is asked, else what the model's folder says, else a default."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightgpt2.errors import Problem, UserError
from lightgpt2.runtime.text import is_unicode

# The settings that a folder's `generation_config.json` may have, by its names.
_OF_FOLDERS = {name: name for name in ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty")}
_OF_FOLDERS["no_repeat_ngram_size"] = "no_repeat_ngram"


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
        seed: Seed of the sampling, with a prompt's index.
        stop: Texts that end a text, and are no part of it; for `resolve` one text will do.
        ends: End-of-text tokens; always the folder's.
    """

    max_new_tokens: int = 256  # as transformers' pipeline for text
    batch_size: int = 8
    temperature: float = 0.0
    top_k: int = 50  # as transformers', when it samples
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()


def resolve(options: Mapping[str, Any], folder: Mapping[str, Any]) -> Settings:
    """The settings that some options give, with what is open (missing or None) from the folder's generation configuration.

    Raises:
        UserError: One line for each value that is out of range.
    """
    asked = {name: value for name, value in options.items() if value is not None}
    theirs = {name: folder[key] for key, name in _OF_FOLDERS.items() if folder.get(key) is not None}
    values: dict[str, Any] = {"temperature": 1.0, **theirs, **asked}
    if not asked.get("temperature", folder.get("do_sample")):
        values["temperature"] = 0.0
    stop, ends = values.pop("stop", ()), folder.get("eos_token_id")
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    settings = Settings(**values, stop=stop, ends=frozenset([ends] if isinstance(ends, int) else ends or ()))
    allowed = {
        "max_new_tokens": ("at least 1", settings.max_new_tokens >= 1),
        "batch_size": ("at least 1", settings.batch_size >= 1),
        "temperature": ("at least 0 (0: the most likely token)", 0 <= settings.temperature < float("inf")),
        "top_k": ("at least 0 (0: no limit)", settings.top_k >= 0),
        "top_p": ("above 0 and at most 1", 0 < settings.top_p <= 1),
        "repetition_penalty": ("above 0 (1: none)", 0 < settings.repetition_penalty < float("inf")),
        "no_repeat_ngram": ("at least 0 (0: no limit)", settings.no_repeat_ngram >= 0),
        "seed": ("at least 0", settings.seed >= 0),
    }
    wrong = [(name, words) for name, (words, fits) in allowed.items() if not fits]
    problems = [Problem(name, f"must be {words}, got {getattr(settings, name)}") for name, words in wrong]
    if "" in stop:
        problems.append(Problem("stop", "must not be empty, which is everywhere", "give a text, or leave it out"))
    broken = [text for text in stop if not is_unicode(text)]
    problems += [Problem("stop", f"must be valid Unicode, got {text!a}", "correct it") for text in broken]
    if settings.temperature == 0:
        what = "must be left out at temperature 0, which takes the most likely token"
        unused = [name for name in ("top_k", "top_p") if name in asked]
        problems += [Problem(name, what, "give a temperature above 0, or remove it") for name in unused]
    if problems:
        raise UserError(problems)
    return settings
