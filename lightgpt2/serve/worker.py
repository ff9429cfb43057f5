"""The thread that owns the model, and the requests that wait for it.

One request is computed at a time. Texts of different clients are not batched: a batch of an engine begins and ends as one, so
whoever comes later would wait for the slowest; and an INT8 model rounds its inputs with one scale for a whole batch, so an
answer would depend on who else asks. What a single request asks for (`n`, several prompts) is computed together.
"""

import asyncio
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, Literal

from lightgpt2.errors import UserError
from lightgpt2.runtime.completion import Cancelled
from lightgpt2.serve.refusals import Refusal, mistake, refusal_of

Why = Literal["gone", "replaced", "crowded", "closing", "late"]
_ENDED = {
    "replaced": (409, "a later request of the same session took its place"),
    "closing": (503, "the server is shutting down"),
    "late": (503, "the request took longer than the server allows"),
}


class Job:
    """A request's work, and what it has said so far.

    Args:
        owner: Whom it is for: owners take turns.
        work: The work. It is called with the job by the worker's thread.
        seconds: How long it may take, with the time that it waits.

    Attributes:
        why: Why it is to end early; None if it is not.
    """

    def __init__(self, owner: str, work: Callable[["Job"], None], seconds: float) -> None:
        self.owner, self.work, self.seconds = owner, work, seconds
        self.why: Why | None = None
        self.said = asyncio.Queue[Any]()
        self._deadline = time.monotonic() + seconds
        self._loop = asyncio.get_running_loop()

    def stop(self) -> bool:
        """True once it is to end: the work asks this between two forward passes."""
        if self.why is None and time.monotonic() > self._deadline:
            self.why = "late"
        return self.why is not None

    def end(self, why: Why) -> None:
        """Let it end early."""
        if self.why is None:
            self.why = why

    def say(self, what: Any) -> None:
        """Hand something to the event loop; an exception is raised there, and None is the end."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self.said.put_nowait, what)


class Worker:
    """Runs jobs in a thread, in turns of their owners.

    Args:
        most: How many jobs may wait. When one more comes, the owner with the most of them loses its newest.
    """

    def __init__(self, most: int) -> None:
        self._most, self._closing = most, False
        self._waiting = OrderedDict[str, deque[Job]]()
        self._changed = threading.Condition()
        self._running: Job | None = None
        self._seconds = 1.0  # of a job, on average
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    async def results(self, job: Job) -> AsyncGenerator[Any, None]:
        """What a job says. It waits for its turn first; it is cancelled where nobody reads on."""
        self._add(job)
        timer = asyncio.get_running_loop().call_later(job.seconds, self._expire, job)
        try:
            while (what := await job.said.get()) is not None:
                if isinstance(what, BaseException):
                    raise what
                yield what
        finally:
            timer.cancel()
            self.cancel(job)

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        with self._changed:
            return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        """1 while a job is computed."""
        return int(self._running is not None)

    def _add(self, job: Job) -> None:
        with self._changed:
            if self._closing:
                raise Refusal(*_ENDED["closing"])
            self._waiting.setdefault(job.owner, deque()).append(job)
            if self.waiting > self._most:
                # Of owners with as many: the last one.
                longest = max(reversed(self._waiting), key=lambda owner: len(self._waiting[owner]))
                self._drop(self._waiting[longest][-1], "crowded")
            self._changed.notify()

    def cancel(self, job: Job, why: Why = "gone") -> None:
        """End a job early, wherever it is."""
        with self._changed:
            self._drop(job, why)

    def close(self) -> None:
        """End all jobs and the thread."""
        with self._changed:
            self._closing = True
            for job in [job for jobs in self._waiting.values() for job in jobs]:
                self._drop(job, "closing")
            if self._running:
                self._running.end("closing")
                self._running.say(Refusal(*_ENDED["closing"]))  # its client need not wait for the forward pass
            self._changed.notify()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread, which is between two forward passes."""
        self._thread.join(seconds)

    def _expire(self, job: Job) -> None:
        with self._changed:
            if job is not self._running:  # which sees itself that it is late
                self._drop(job, "crowded")

    def _drop(self, job: Job, why: Why) -> None:
        job.end(why)
        jobs = self._waiting.get(job.owner, deque())
        if job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._waiting[job.owner]
            self._finish(job)

    def _finish(self, job: Job, error: BaseException | None = None) -> None:
        if job.why == "crowded":
            seconds = math.ceil(self._seconds * (self.waiting + 1))
            error = Refusal(429, "too many requests wait; try again later", headers={"Retry-After": str(seconds)})
        elif job.why in _ENDED and (error is not None or job is not self._running):
            error = Refusal(*_ENDED[job.why])
        elif job is not self._running:
            error = Cancelled()
        job.say(error)

    def _next(self) -> Job | None:
        """The next job; None when there are to be no more."""
        with self._changed:
            self._running = None
            while not self._closing:
                if self._waiting:
                    owner, jobs = self._waiting.popitem(last=False)
                    job = jobs.popleft()
                    if jobs:  # behind the others
                        self._waiting[owner] = jobs
                    self._running = job
                    return job
                self._changed.wait()
        return None

    def _run(self) -> None:
        while job := self._next():
            start, error = time.monotonic(), None
            try:
                job.work(job)
            except Exception as found:
                error = _answer_to(found)
            self._seconds += (time.monotonic() - start - self._seconds) / 8
            self._finish(job, error)


def _answer_to(error: Exception) -> Exception:
    """What is answered to an error."""
    if isinstance(error, Refusal | Cancelled):
        return error
    if isinstance(error, UserError):
        return refusal_of(error)
    return mistake(error)
