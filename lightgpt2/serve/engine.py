"""An engine that is asked between its forward passes whether to go on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightgpt2.runtime.completion import Cancelled


class Watched:
    """Any engine, encoder-decoder or classifier of `runtime.engines`, which it passes calls on to.

    Attributes:
        read: How many tokens of prompts it has read since `asking`.
    """

    def __init__(self, engine: Any) -> None:
        self._engine, self.read = engine, 0
        self._stop: Callable[[], bool] | None = None

    @contextmanager
    def asking(self, stop: Callable[[], bool]) -> Iterator[None]:
        """Raise `Cancelled` at the next forward pass inside, once `stop` answers true."""
        self._stop, self.read = stop, 0
        try:
            yield
        finally:
            self._stop = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def prefill(self, ids: Any, mask: Any, *rest: Any) -> Any:
        self._ask()
        self.read += int(mask.sum())
        return self._engine.prefill(ids, mask, *rest)

    def decode(self, *args: Any) -> Any:
        self._ask()
        return self._engine.decode(*args)

    def logits(self, batch: Any, *rest: Any) -> Any:
        self._ask()
        if isinstance(batch, Mapping):  # of a classifier
            self.read += int(batch["attention_mask"].sum())
        return self._engine.logits(batch, *rest)

    def _ask(self) -> None:
        if self._stop and self._stop():
            raise Cancelled
