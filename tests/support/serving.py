"""Stand-ins for a model that is served, and servers of them in this process."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lightgpt2.runtime.completion import Cancelled, Completion
from lightgpt2.runtime.language_model import LanguageModel
from lightgpt2.serve.app import make_app
from lightgpt2.serve.server import Server, bound, listen
from lightgpt2.serve.service import Service
from lightgpt2.serve.settings import Settings


class Markov:
    """An engine whose next token depends on the last one alone, by a table of random logits; token 0 is unlikely.

    Attributes:
        steps: How many forward passes there were.
        seconds: How long each takes.
    """

    context = 128

    def __init__(self, vocabulary: int = 300, seconds: float = 0.0) -> None:
        self.vocabulary, self.seconds, self.steps = vocabulary, seconds, 0
        self.table = np.random.default_rng(0).normal(0, 3, (vocabulary, vocabulary)).astype(np.float32)
        self.table[:, 0] = -20

    def prefill(self, ids: Any, mask: Any, new_tokens: int) -> Any:
        return self.decode(ids[:, -1])

    def decode(self, tokens: Any) -> Any:
        self.steps += 1
        time.sleep(self.seconds)
        return self.table[tokens]

    def resume(self, ids: Any, kept: int) -> Any:
        return self.decode(ids[-1])

    def logits(self, ids: Any, mask: Any) -> Any:
        return self.table[ids]


class Parrot:
    """A completer that goes on with the words of one line.

    Args:
        text: The line.
        seconds: How long it takes for what was typed.
        heeds: Whether it ends when it is asked to stop.
    """

    def __init__(self, text: str, seconds: Callable[[str], float] = lambda text: 0.0, heeds: bool = True) -> None:
        self.text, self.seconds, self.heeds, self.asked = text, seconds, heeds, list[str]()

    def complete(self, text: str, *, words: int, stop: Callable[[], bool]) -> Completion:
        self.asked.append(text)
        text = text.rpartition("\n")[2]
        until = time.monotonic() + self.seconds(text)
        while time.monotonic() < until:
            if self.heeds and stop():
                raise Cancelled
            time.sleep(0.002)
        if not self.text.startswith(text):
            return Completion("", (), 1.0)
        rest = self.text[len(text) :]
        first, *others = rest.split(" ")
        parts = (first, *(f" {word}" for word in others[:words]))
        return Completion("".join(parts), parts, 0.25)


def markov(tokenizer: Tokenizer, seconds: float = 0.0, template: Any = None) -> LanguageModel:
    """A model of a `Markov` engine."""
    return LanguageModel(Markov(tokenizer.get_vocab_size(), seconds), tokenizer, {"eos_token_id": 0}, template)


class _InThread(Server):
    capture_signals = contextlib.nullcontext  # type: ignore[assignment] - which a thread cannot


@contextlib.contextmanager
def running(model: Any, completer: Any = None, **settings: Any) -> Iterator[tuple[str, Service]]:
    """A server on a port of its own: its address, and its service."""
    service = Service("tiny", model, Settings(**settings), completer)
    with bound("127.0.0.1", 0) as socket:
        listen(socket)
        server = _InThread(make_app(service), service.worker)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([socket])))
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}", service
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
