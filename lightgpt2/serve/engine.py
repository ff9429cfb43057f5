"""An engine that is asked between its forward passes whether to go on."""

from collections.abc import Callable, Mapping
from typing import Any

from lightgpt2.runtime.completion import Cancelled


class Watched:
    """Any engine, encoder-decoder or classifier of `runtime.engines`, which it passes calls on to.

    Attributes:
        stop: True once what is computed is no longer wanted: the next forward pass raises `Cancelled`.
        read: How many tokens of prompts it has read.
    """

    def __init__(self, engine: Any) -> None:
        self._engine, self.read = engine, 0
        self.stop: Callable[[], bool] = lambda: False

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
        if self.stop():
            raise Cancelled
