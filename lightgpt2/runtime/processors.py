"""What a folder's `generation_config.json` does to logits `[V]`, under transformers' names; and what of it is not done here."""

import math
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import numpy as np

from lightgpt2.runtime.engines import Floats, Ints

# Changes, in place, the logits of the next token: (logits, the tokens before it, how many of these are the prompt, how many may
# be new).
Processor = Callable[[Floats, Ints, int, int], None]

# Settings that change the text and are not done, with the value that changes nothing.
_NOT_DONE: dict[str, Any] = {
    "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "penalty_alpha": 0.0, "dola_layers": None,
    "diversity_penalty": 0.0, "constraints": None, "force_words_ids": None, "guidance_scale": 1.0, "token_healing": False,
    "watermarking_config": None, "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0, "top_h": None,
    "max_time": None, "prompt_lookup_num_tokens": None,
}  # fmt: skip


def not_done(folder: Mapping[str, Any], done: Container[str] = ()) -> list[str]:
    """The settings of a folder that transformers would follow, and that are passed over here, but those that are `done`."""
    asked = {name: folder.get(name) for name in _NOT_DONE if name not in done}
    return [name for name, value in asked.items() if value is not None and value != _NOT_DONE[name]]


def as_ids(value: Any) -> list[int]:
    """Token ids of a setting that is one, or a list, or null."""
    return [] if value is None else [value] if isinstance(value, int) else [int(id_) for id_ in value]


def first_processors(folder: Mapping[str, Any]) -> Iterator[Processor]:
    """Those that come before the penalties for what was there before."""
    if biases := folder.get("sequence_bias"):
        yield _biased([([*ids], float(bias)) for ids, bias in (biases.items() if isinstance(biases, dict) else biases)])


def later_processors(folder: Mapping[str, Any]) -> Iterator[Processor]:
    """Those that come after the penalties, in order."""
    ends = as_ids(folder.get("eos_token_id"))
    words = [[*ids] for ids in folder.get("bad_words_ids") or () if not (len(ids) == 1 and ids[0] in ends)]
    if [] in words:
        raise ValueError("bad_words_ids has a word without tokens")
    if words:
        yield _biased([(ids, -math.inf) for ids in words])
    new = folder.get("min_new_tokens")
    least, new = 0 if new is not None else folder.get("min_length") or 0, new or 0  # the second replaces the first
    if least or new:
        yield _forbidden(ends, lambda length, prompt: length < least or length - prompt < new)
    if (begin := folder.get("forced_bos_token_id")) is not None:
        yield _forced([begin], lambda length, prompt, room: length == 1)
    if forced := as_ids(folder.get("forced_eos_token_id")):
        yield _forced(forced, lambda length, prompt, room: length == prompt + room - 1)
    if decay := folder.get("exponential_decay_length_penalty"):
        yield _drawn_to(ends, *decay)
    if never := as_ids(folder.get("suppress_tokens")):
        yield _forbidden(never, lambda length, prompt: True)
    if at_first := as_ids(folder.get("begin_suppress_tokens")):
        late = int(begin is not None)  # behind the forced one
        yield _forbidden(at_first, lambda length, prompt: length == prompt + (late if prompt == 1 else 0))


def _known(ids: list[int], logits: Floats) -> list[int]:
    return [id_ for id_ in ids if 0 <= id_ < len(logits)]


def _biased(pairs: list[tuple[list[int], float]]) -> Processor:
    """Adds a bias to the last token of a sequence whose others were there just before."""

    def process(logits: Floats, history: Ints, prompt: int, room: int) -> None:
        for (*begun, last), bias in pairs:
            if len(begun) < len(history) and history[len(history) - len(begun) :].tolist() == begun:
                logits[_known([last], logits)] += bias

    return process


def _forbidden(ids: list[int], applies: Callable[[int, int], bool]) -> Processor:
    def process(logits: Floats, history: Ints, prompt: int, room: int) -> None:
        if applies(len(history), prompt):
            logits[_known(ids, logits)] = -np.inf

    return process


def _forced(ids: list[int], applies: Callable[[int, int, int], bool]) -> Processor:
    def process(logits: Floats, history: Ints, prompt: int, room: int) -> None:
        if applies(len(history), prompt, room):
            logits[:] = -np.inf
            logits[_known(ids, logits)] = 0

    return process


def _drawn_to(ends: list[int], start: int, factor: float) -> Processor:
    """Makes an end more likely with each token after `start` new ones."""

    def process(logits: Floats, history: Ints, prompt: int, room: int) -> None:
        late = len(history) - prompt - start
        if late > 0:
            known = _known(ends, logits)
            logits[known] += np.abs(logits[known]) * (factor**late - 1)

    return process
