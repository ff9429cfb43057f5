"""Documents to tokens, in this process or in several; imports nothing that takes long, since every process does it."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lightgpt2.data.documents import Conversation, Document, is_answer
from lightgpt2.models.chat import ChatTemplate


@dataclass(frozen=True)
class Encoded:
    """The tokens of a document."""

    tokens: NDArray[Any]  # [n], the separator and what closes it included; empty if the text has none
    answers: NDArray[np.bool_] | None  # whether each token is learnt [n]; None: all are
    closed: int  # how many tokens at the end are learnt and not scored
    size: int  # UTF-8 bytes of the text, of a conversation those of its answers


@dataclass(frozen=True)
class Encoder:
    """How documents become tokens.

    A text stands between the separator and the end-of-text token, if that is another one. A conversation is what its chat
    template makes of it, up to the end of its last answer; without a template a prompt and its completion are one text.
    """

    tokenizer: str  # the JSON of a `tokenizers.Tokenizer`
    separator: int
    end: int | None  # the end-of-text token
    dtype: str
    template: ChatTemplate | None

    def __call__(self, documents: Sequence[Document]) -> list[Encoded]:
        """Encodes documents.

        Raises:
            ValueError: The template is missing, refuses a conversation, or its answers cannot be told apart in it.
        """
        backend = _loaded(self.tokenizer)
        laid_out = [self._lay_out(document) for document in documents]
        plain = [text for text, spans in laid_out if spans is None]
        placed = [text for text, spans in laid_out if spans is not None]
        quick = iter(backend.encode_batch_fast(plain, add_special_tokens=False))
        with_places = iter(backend.encode_batch(placed, add_special_tokens=False))
        return [
            self._text(next(quick).ids, document)
            if spans is None
            else self._conversation(next(with_places), spans, document, text)
            for document, (text, spans) in zip(documents, laid_out, strict=True)
        ]

    def _lay_out(self, document: Document) -> tuple[str, list[tuple[int, int]] | None]:
        """A document as one text; of a conversation also where in it what is learnt stands."""
        if isinstance(document, str):
            return document, None
        if self.template is not None:
            text, spans = self.template.answers(document.messages)
            turns = [turn for turn in document.messages if turn["role"] == "assistant"]
            spans = [span for span, turn in zip(spans, turns, strict=True) if is_answer(turn)]
            return text[: spans[-1][1]], spans
        if not document.is_pair:
            raise ValueError("the tokenizer has no chat template, and a conversation needs one")
        prompt, answer = (turn["content"] for turn in document.messages)
        return prompt + answer, [(len(prompt), len(prompt) + len(answer))]

    def _text(self, ids: list[int], document: Document) -> Encoded:
        closing = [] if self.end in (None, self.separator) else [self.end]
        tokens = [self.separator, *ids, *closing] if ids else []
        return Encoded(np.array(tokens, self.dtype), None, len(closing), len(str(document).encode()))

    def _conversation(
        self, encoding: Any, spans: list[tuple[int, int]], document: Conversation, text: str
    ) -> Encoded:
        learnt = np.zeros(len(encoding.ids), dtype=bool)
        for number, (begin, end) in enumerate(encoding.offsets):
            # A token that begins before an answer is not of it, however far it reaches.
            learnt[number] = any(first <= begin < last and end > begin for first, last in spans)
        size = sum(len(text[first:last].encode()) for first, last in spans)
        tokens = np.array(encoding.ids, self.dtype)
        if self.template is not None or not len(tokens):
            return Encoded(tokens, learnt, 1, size)
        closing = [self.separator if self.end is None else self.end]
        tokens = np.concatenate([[self.separator], tokens, closing]).astype(self.dtype)
        return Encoded(tokens, np.concatenate([[False], learnt, [True]]), 1, size)


@cache
def _loaded(tokenizer: str) -> Tokenizer:
    loaded = Tokenizer.from_str(tokenizer)
    loaded.no_padding()
    loaded.no_truncation()
    return loaded


def in_processes[A, B](function: Callable[[A], B], items: Iterable[A], processes: int) -> Iterator[tuple[A, B]]:
    """Each item with what a function makes of it, in order, computed in as many processes; 1: in this one."""
    if processes == 1:
        yield from ((item, function(item)) for item in items)
        return
    waiting: deque[tuple[A, Future[B]]] = deque()
    context = multiprocessing.get_context("spawn")  # a fork would copy locks of this process's threads
    with ProcessPoolExecutor(processes, context, _begin) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) > 2 * processes:
                    yield (waiting[0][0], waiting.popleft()[1].result())
            while waiting:
                yield (waiting[0][0], waiting.popleft()[1].result())
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Leaves Ctrl-C to the first process, whose end ends this one."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    first = multiprocessing.parent_process()
    assert first is not None

    def wait() -> None:
        first.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
