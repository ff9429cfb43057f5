"""A generation as a job: it says its text in pieces, then what it has read and written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lightgpt2.errors import UserError
from lightgpt2.runtime.completion import Cancelled
from lightgpt2.runtime.engines import Floats
from lightgpt2.serve.refusals import refusal_of
from lightgpt2.serve.worker import Job


@dataclass(frozen=True)
class Score:
    """A token that was chosen.

    Attributes:
        text: Its text.
        logprob: The logarithm of its probability, as the model gives it: before temperature, penalties and limits.
        top: The most likely tokens in its place, with theirs.
    """

    text: str
    logprob: float
    top: list[tuple[str, float]]


@dataclass(frozen=True)
class Piece:
    """A new piece of a text.

    Attributes:
        index: The prompt's index.
        text: The piece.
        scores: Its tokens, if they are asked for.
        reason: Why the text ends here; None: it goes on.
    """

    index: int
    text: str
    scores: list[Score] = field(default_factory=list)
    reason: Literal["stop", "length"] | None = None


@dataclass(frozen=True)
class Usage:
    """How many tokens were read and written."""

    prompt: int
    completion: int


class Generation:
    """The work of a job that generates.

    Args:
        model: A `LanguageModel` or `TextToText` whose engine is a `Watched` one.
        prompts: The prompts.
        options: As for its `texts`.
        top: How many of the most likely tokens are told for each one; None: no probabilities at all.
        field: The field that has the prompts, for errors.
    """

    def __init__(
        self, model: Any, prompts: Sequence[Any], options: Mapping[str, Any], top: int | None, field: str
    ) -> None:
        self._field, self._model, self._prompts, self._options, self._top = field, model, prompts, options, top
        self._open = {*range(len(prompts))}  # whose texts are not at their end
        self._scores: dict[int, list[Score]] = {index: [] for index in self._open}
        self._last: dict[int, int] = {}
        self._count = 0

    def __call__(self, job: Job) -> None:
        """Generate; a text that takes longer than the job may ends where it is, as one that has all its tokens does."""
        engine = self._model.engine

        def on_text(index: int, text: str) -> None:
            job.say(Piece(index, text, self._taken(index)))

        try:
            with engine.asking(job.stop):
                for done in self._model.texts(self._prompts, self._options, on_text, on_token=self._on_token):
                    self._open.remove(done.index)
                    job.say(Piece(done.index, "", self._taken(done.index), done.finish_reason))
                    if done.index not in self._last:  # of beams
                        self._count += len(self._model.tokenizer.encode(done.text, add_special_tokens=False).ids)
        except UserError as error:
            raise refusal_of(error, self._field) from None
        except Cancelled:
            if job.why != "late":
                raise
            for index in sorted(self._open):
                job.say(Piece(index, "", self._taken(index), "length"))
        job.say(Usage(engine.read, self._count))

    def _on_token(self, index: int, token: int, logits: Floats) -> None:
        self._count += 1
        if self._top is not None and (text := self._text(index, token)):  # not for an end of text
            shifted = logits.astype(np.float64) - logits.max()
            shifted -= np.log(np.exp(shifted).sum())
            places = np.argsort(-shifted, kind="stable")[: self._top]
            top = [(self._text(index, place), float(shifted[place])) for place in places.tolist()]
            self._scores[index].append(Score(text, float(shifted[token]), top))
        self._last[index] = token

    def _text(self, index: int, token: int) -> str:
        """A token's text behind the one before it, as some decoders drop a space at the start."""
        before, decode = [self._last[index]] if index in self._last else [], self._model.tokenizer.decode
        text: str = decode([*before, token])
        return text[len(decode(before)) if before else 0 :]

    def _taken(self, index: int) -> list[Score]:
        scores, self._scores[index] = self._scores[index], []
        return scores
