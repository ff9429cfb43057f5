"""The worker: owners take turns, what waits is bounded, and what is no longer wanted ends."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lightgpt2.runtime.completion import Cancelled
from lightgpt2.serve.refusals import Refusal
from lightgpt2.serve.worker import Job, Worker


class Gate:
    """Holds the worker until it is opened, and notes whose work was done after it."""

    def __init__(self) -> None:
        self.order, self._open = list[str](), threading.Event()

    def hold(self, job: Job) -> None:
        job.say("held")
        assert self._open.wait(5)

    def note(self, job: Job) -> None:
        self.order.append(job.owner)

    def open(self) -> None:
        self._open.set()


def run(most: int, test: Callable[[Worker, Gate, Callable[..., Any]], Awaitable[None]]) -> None:
    """Runs a test with a worker that is held, and a function to start jobs."""

    async def main() -> None:
        worker, gate = Worker(most), Gate()

        async def said(owner: str, work: Callable[[Job], None], seconds: float) -> list[Any]:
            return [each async for each in worker.results(Job(owner, work, seconds))]

        async def start(
            owner: str, work: Callable[[Job], None] | None = None, seconds: float = 5
        ) -> asyncio.Task[list[Any]]:
            task = asyncio.create_task(said(owner, work or gate.note, seconds))
            await asyncio.sleep(0)
            return task

        held = await start("holder", gate.hold)
        while not worker.running:
            await asyncio.sleep(0.001)
        try:
            await test(worker, gate, start)
        finally:
            gate.open()
            await asyncio.gather(held, return_exceptions=True)
            worker.close()
            worker.join(5)
            assert not worker._thread.is_alive()

    asyncio.run(main())


def test_owners_take_turns() -> None:
    async def test(worker: Worker, gate: Gate, start: Any) -> None:
        tasks = [await start(owner) for owner in ["a"] * 4 + ["b"] * 2 + ["c"]]
        assert worker.waiting == 7
        gate.open()
        await asyncio.gather(*tasks)
        assert gate.order == ["a", "b", "c", "a", "b", "a", "a"]

    run(10, test)


def test_who_has_the_most_waiting_loses_its_newest_when_there_are_too_many() -> None:
    async def test(worker: Worker, gate: Gate, start: Any) -> None:
        greedy = [await start("greedy") for _ in range(3)]
        modest = await start("modest")
        with pytest.raises(Refusal) as refused:
            await greedy[-1]
        assert (refused.value.status, int(refused.value.headers["Retry-After"]) >= 1) == (429, True)
        assert worker.waiting == 3
        gate.open()
        await asyncio.gather(*greedy[:2], modest)
        assert gate.order == ["greedy", "modest", "greedy"]

    run(3, test)


def test_of_owners_with_as_many_waiting_the_newcomer_is_refused() -> None:
    async def test(worker: Worker, gate: Gate, start: Any) -> None:
        first = [await start(owner) for owner in "abc"]
        with pytest.raises(Refusal, match="too many"):
            await (await start("d"))
        gate.open()
        await asyncio.gather(*first)
        assert gate.order == ["a", "b", "c"]

    run(3, test)


def test_what_waits_too_long_is_answered_while_others_run() -> None:
    async def test(worker: Worker, gate: Gate, start: Any) -> None:
        late = await start("late", seconds=0.05)
        with pytest.raises(Refusal, match="too many"):
            await late
        assert worker.waiting == 0
        assert worker.running
        assert gate.order == []

    run(3, test)


def test_who_stops_reading_cancels_its_work_where_it_waits_and_where_it_runs() -> None:
    ended = threading.Event()

    def endless(job: Job) -> None:
        job.say("begun")
        while not job.stop():
            ended.wait(0.002)
        ended.set()
        raise Cancelled

    async def test(worker: Worker, gate: Gate, start: Any) -> None:
        waiting = await start("a")
        waiting.cancel()
        running = await start("b", endless)
        await asyncio.gather(waiting, return_exceptions=True)
        assert worker.waiting == 1
        gate.open()
        await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert await asyncio.to_thread(ended.wait, 5)
        assert gate.order == []

    run(3, test)


def test_all_ends_when_it_is_closed() -> None:
    async def test(worker: Worker, gate: Gate, start: Any) -> None:
        waiting = await start("a")
        worker.close()
        for refused in (waiting, await start("b")):
            with pytest.raises(Refusal) as found:
                await refused
            assert found.value.status == 503

    run(3, test)
