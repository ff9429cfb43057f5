"""The forms of OpenAI's answers: of completions and of chats, whole and in chunks."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightgpt2.serve.generation import Piece, Score, Usage

_Choice = Callable[[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class Form:
    """How an endpoint writes its answers.

    Args:
        prompt: The field that has the prompts.
        prefix: What its ids begin with.
        name: Its `object`; of a chunk, `chunk`.
        chunk: See `name`.
        whole: The choice of a whole text, with the probabilities of its tokens.
        part: The choice of a piece.
        first: The choice before the first piece; None: there is none.
        scores: The probabilities of tokens, of which the first begins at a place in the text.
    """

    prompt: str
    prefix: str
    name: str
    chunk: str
    whole: Callable[[str], dict[str, Any]]
    part: Callable[[str], dict[str, Any]]
    first: dict[str, Any] | None
    scores: Callable[[Sequence[Score], int], dict[str, Any]]


def _text_scores(scores: Sequence[Score], place: int) -> dict[str, Any]:
    places = [place]
    for each in scores:
        places.append(places[-1] + len(each.text))
    return {
        "tokens": [each.text for each in scores],
        "token_logprobs": [each.logprob for each in scores],
        "top_logprobs": [{each.text: each.logprob} | dict(each.top) for each in scores] if _any_top(scores) else None,
        "text_offset": places[:-1],
    }


def _any_top(scores: Sequence[Score]) -> bool:
    return any(each.top for each in scores)


def _chat_scores(scores: Sequence[Score], place: int) -> dict[str, Any]:
    def token(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": [*text.encode()]}

    return {"content": [token(each.text, each.logprob) | {"top_logprobs": [token(*one) for one in each.top]}
                        for each in scores], "refusal": None}  # fmt: skip


COMPLETION = Form(
    "prompt",
    "cmpl",
    "text_completion",
    "text_completion",
    lambda text: {"text": text},
    lambda text: {"text": text},
    None,
    _text_scores,
)
CHAT = Form(
    "messages",
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    lambda text: {"delta": {"content": text} if text else {}},
    {"delta": {"role": "assistant", "content": ""}},
    _chat_scores,
)


class Answer:
    """One answer: it takes what a generation says, and writes it in a form.

    Args:
        form: The form.
        model: The model's name.
        texts: How many texts there are.
        scored: Whether the tokens' probabilities are asked for.
    """

    def __init__(self, form: Form, model: str, texts: int, scored: bool) -> None:
        self._form, self._scored = form, scored
        self._head = {"id": f"{form.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._texts, self._reasons = [""] * texts, [""] * texts
        self._scores: list[list[Score]] = [[] for _ in range(texts)]
        self._begun = set[int]()
        self.usage = Usage(0, 0)

    def take(self, said: Piece | Usage) -> None:
        """Add what was said to the answer."""
        if isinstance(said, Usage):
            self.usage = said
            return
        self._texts[said.index] += said.text
        self._scores[said.index] += said.scores
        self._reasons[said.index] = said.reason or ""

    def whole(self) -> dict[str, Any]:
        """The answer, once all is taken."""
        rows = enumerate(zip(self._texts, self._scores, self._reasons, strict=True))
        choices = [
            self._choice(index, self._form.whole(text), reason, _within(scores, text), 0)
            for index, (text, scores, reason) in rows
        ]
        return {**self._head, "object": self._form.name, "choices": choices, "usage": self._counts()}

    def chunks(self, said: Piece) -> list[dict[str, Any]]:
        """The chunks for a piece; it must not have been taken yet."""
        before, chunks = len(self._texts[said.index]), []
        if self._form.first and said.index not in self._begun:
            chunks.append(self._choice(said.index, self._form.first, None, [], 0))
            self._begun.add(said.index)
        # What comes with the end is of a stop text.
        scores = said.scores if said.text else []
        if said.text or said.reason:
            chunks.append(self._choice(said.index, self._form.part(said.text), said.reason, scores, before))
        return [self._chunk([choice]) for choice in chunks]

    def last(self) -> dict[str, Any]:
        """The chunk with the usage."""
        return {**self._chunk([]), "usage": self._counts()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": self._form.chunk, "choices": choices}

    def _choice(
        self, index: int, said: dict[str, Any], reason: str | None, scores: Sequence[Score], place: int
    ) -> dict[str, Any]:
        told = self._form.scores(scores, place) if self._scored and (scores or reason is not None) else None
        return {"index": index, **said, "logprobs": told, "finish_reason": reason}

    def _counts(self) -> dict[str, int]:
        read, made = self.usage.prompt, self.usage.completion
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def _within(scores: Sequence[Score], text: str) -> list[Score]:
    """The tokens that begin inside a text: not those of a stop text."""
    kept, place = list[Score](), 0
    for each in scores:
        if place < len(text):
            kept.append(each)
        place += len(each.text)
    return kept
