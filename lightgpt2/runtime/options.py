"""Settings of a generation: what is asked, then what the model's folder says, then the defaults of transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightgpt2.errors import Problem, UserError
from lightgpt2.runtime.sampling import Sampling

_NEW_TOKENS = 256  # as transformers' pipeline for text
_TOP_K = 50  # as transformers', when it samples


@dataclass(frozen=True)
class Options:
    """Settings of a generation. None: as the folder's `generation_config.json` says, else the default that is named.

    Args:
        max_new_tokens: The most tokens that are added; 256.
        temperature: See `Sampling`; 0, or 1 where the folder says `do_sample`.
        top_k: See `Sampling`; 50.
        top_p: See `Sampling`; 1.
        repetition_penalty: See `Sampling`; 1.
        no_repeat_ngram: See `Sampling`; 0.
        stop: Texts that end a text, and are no part of it.
        seed: Seed of the sampling.
        batch_size: How many prompts are continued at a time.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram: int | None = None
    stop: str | Sequence[str] = ()
    seed: int = 0
    batch_size: int = 8


@dataclass(frozen=True)
class Resolved:
    """Settings that are all known."""

    sampling: Sampling
    max_new_tokens: int
    stop: tuple[str, ...]
    ends: frozenset[int]  # end-of-text tokens
    batch_size: int


def resolve(options: Options, folder: dict[str, Any]) -> Resolved:
    """Fill in what is open from the folder's generation configuration, where None is as good as missing.

    Raises:
        UserError: One line for each value that is out of range.
    """

    def known(name: str, default: Any, theirs: str = "") -> Any:
        return next(v for v in (getattr(options, name), folder.get(theirs or name), default) if v is not None)

    samples = options.temperature if options.temperature is not None else bool(folder.get("do_sample"))
    defaults = {"top_k": _TOP_K, "top_p": 1.0, "repetition_penalty": 1.0}
    values: dict[str, Any] = {name: known(name, default) for name, default in defaults.items()}
    values["temperature"] = known("temperature", 1.0) if samples else 0.0
    values["no_repeat_ngram"] = known("no_repeat_ngram", 0, "no_repeat_ngram_size")
    new_tokens = known("max_new_tokens", _NEW_TOKENS)
    stop = (options.stop,) if isinstance(options.stop, str) else tuple(options.stop)
    counts = {"max_new_tokens": new_tokens, "batch_size": options.batch_size}
    problems = [Problem(name, f"must be at least 1, got {value}") for name, value in counts.items() if value < 1]
    if "" in stop:
        problems.append(Problem("stop", "must not be empty, which is everywhere", "give a text, or leave it out"))
    unused = [name for name in ("top_k", "top_p") if values["temperature"] == 0 and getattr(options, name) is not None]
    what = "must be left out at temperature 0, which takes the most likely token"
    problems += [Problem(name, what, "give a temperature above 0, or remove it") for name in unused]
    try:
        sampling = Sampling(**values, seed=options.seed)
    except UserError as error:
        raise UserError([*problems, *error.problems]) from error
    if problems:
        raise UserError(problems)
    ends = folder.get("eos_token_id")
    ends = [ends] if isinstance(ends, int) else ends or ()
    return Resolved(sampling, new_tokens, stop, frozenset(ends), options.batch_size)
