"""A model that is served: its name, its worker, and who has asked for what."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Protocol

from starlette.requests import Request

from lightgpt2.errors import cut
from lightgpt2.runtime.completion import Cancelled
from lightgpt2.serve.engine import Watched
from lightgpt2.serve.generation import Usage
from lightgpt2.serve.guard import body_of
from lightgpt2.serve.metrics import Metrics
from lightgpt2.serve.refusals import Gone, Refusal
from lightgpt2.serve.settings import Settings
from lightgpt2.serve.worker import Job, Worker


class Completes(Protocol):
    """What a server needs of a `runtime.completion.Completer`."""

    def complete(self, text: str, *, words: int, stop: Callable[[], bool]) -> Any:
        """Complete a text; see `Completer`."""


class Service:
    """A model with the thread that owns it.

    Args:
        name: The model's name for clients.
        model: What `lightgpt2.load` returns; its engine is replaced by a `Watched` one.
        settings: The limits.
        completer: What completes texts with this model; None if nothing does.
    """

    def __init__(self, name: str, model: Any, settings: Settings, completer: Completes | None = None) -> None:
        self.name, self.model, self.settings, self.completer = name, model, settings, completer
        self._sessions = dict[str, Job]()
        self.metrics, self.worker = Metrics(), Worker(settings.waiting)
        model.engine = Watched(model.engine)

    async def body(self, request: Request) -> bytes:
        """The body of a request; see `body_of`."""
        return await body_of(request, self.settings)

    def check_model(self, name: str | None) -> None:
        """Raise a `Refusal` if a client asks for another model."""
        if name not in (None, self.name):
            what = f"the model {cut(str(name))!r} does not exist here; ask for {self.name!r}"
            raise Refusal(404, what, "model", "model_not_found")

    async def results(
        self, request: Request, work: Callable[[Job], None], session: str = ""
    ) -> AsyncGenerator[Any, None]:
        """What a job says, as long as its client is there. A job of a session ends the one before it."""
        owner = f"{request.client.host if request.client else ''} {session}"
        job = Job(owner, work, self.settings.seconds)
        if session:
            if (older := self._sessions.get(owner)) is not None:
                self.worker.cancel(older, "replaced")
            self._sessions[owner] = job
        gone = asyncio.create_task(self._cancel_when_gone(request, job))
        try:
            async with aclosing(self.worker.results(job)) as said:
                async for each in said:
                    yield each
        except Cancelled:
            raise Gone from None
        finally:
            gone.cancel()
            if self._sessions.get(owner) is job:
                del self._sessions[owner]

    async def _cancel_when_gone(self, request: Request, job: Job) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.worker.cancel(job)

    def count(self, usage: Usage) -> None:
        """Add tokens to the metrics."""
        self.metrics.add("lightgpt2_tokens_total", usage.prompt, kind="prompt")
        self.metrics.add("lightgpt2_tokens_total", usage.completion, kind="completion")
