"""What a person asks of a generation, what the model's folder says, and the defaults of transformers, in this order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightgpt2.errors import UserError
from lightgpt2.runtime.sampling import Sampling

_NEW_TOKENS = 256  # as transformers' pipeline for text
_TOP_K = 50  # as transformers', when it samples


@dataclass(frozen=True)
class Options:
    """Settings of a generation. None: what the folder's `generation_config.json` says, else the default that is named.

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
    """Settings with nothing left open."""

    sampling: Sampling
    max_new_tokens: int
    stop: tuple[str, ...]
    ends: frozenset[int]
    batch_size: int


def resolve(options: Options, folder: dict[str, Any]) -> Resolved:
    """Fills in what is open.

    Args:
        options: What is asked.
        folder: The values of the folder's generation configuration; None is as good as missing.

    Raises:
        UserError: One line for each value that cannot be.
    """
    samples = options.temperature if options.temperature is not None else bool(folder.get("do_sample"))
    temperature = _first(options.temperature, folder.get("temperature") if samples else 0.0, 1.0)
    new_tokens = _first(options.max_new_tokens, folder.get("max_new_tokens"), _NEW_TOKENS)
    stop = (options.stop,) if isinstance(options.stop, str) else tuple(options.stop)
    problems = _problems(options, temperature, new_tokens, stop)
    try:
        sampling = Sampling(
            temperature=temperature,
            top_k=_first(options.top_k, folder.get("top_k"), _TOP_K),
            top_p=_first(options.top_p, folder.get("top_p"), 1.0),
            repetition_penalty=_first(options.repetition_penalty, folder.get("repetition_penalty"), 1.0),
            no_repeat_ngram=_first(options.no_repeat_ngram, folder.get("no_repeat_ngram_size"), 0),
            seed=options.seed,
        )
    except UserError as error:
        raise UserError([*problems, *error.problems]) from error
    if problems:
        raise UserError(problems)
    ends = folder.get("eos_token_id")
    return Resolved(
        sampling, new_tokens, stop, frozenset([ends] if isinstance(ends, int) else ends or ()), options.batch_size
    )


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _problems(options: Options, temperature: float, new_tokens: int, stop: tuple[str, ...]) -> list[str]:
    problems = [
        f"{name}: {value} is not allowed; give a value of at least 1"
        for name, value in (("max_new_tokens", new_tokens), ("batch_size", options.batch_size))
        if value < 1
    ]
    if "" in stop:
        problems.append("stop: an empty text is everywhere; give one with a character, or none")
    if temperature == 0:
        problems += [
            f"{name}: the likeliest token is taken at temperature 0, whatever this is; give a temperature above 0, or remove it"
            for name in ("top_k", "top_p")
            if getattr(options, name) is not None
        ]
    return problems
