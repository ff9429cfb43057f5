"""A server under load: whether it makes errors, whether answers change, whether its memory grows.

    python -m benchmarks.serving MODEL [--text TEXT] [--keys 300] [--clients 64] [--seconds 60] [--threads 2]

`lightgpt2 serve MODEL` runs in a process of its own. First one person types five characters a second behind 1,000 to 1,500
characters of a text (by default the embedded one), and asks for what the page asks for. Then one client asks for a set of
answers, each with its own seed, and all clients ask for the same ones again, at once and in any order: whole, as a stream, and
completions of what is typed. Every tenth stream is left after its first piece. An answer must be the one of the single client,
or status 429. The memory is that of the server's process: the median of the second fifth of the time against that of the last.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median
from typing import Any

import httpx2 as httpx

from lightgpt2.measure.keystrokes import read_documents

ROOT = Path(__file__).parents[1]
KINDS = ("whole", "stream", "typed")
PACE, WAIT = 0.2, 0.1  # seconds between two keys, and those that the page waits after one


@dataclass
class Load:
    """What was seen: answers by status, those that were others, times of those with status 200, and memory in MB."""

    statuses: Counter[str] = field(default_factory=Counter)
    others: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    memory: list[float] = field(default_factory=list)


def questions(count: int) -> list[dict[str, Any]]:
    """Requests for completions, each with a text, its seed and the number of tokens."""
    texts = [" ".join(topics[name].split())[:120] for name in sorted(topics)][:count]
    return [{"prompt": text, "seed": seed, "max_tokens": 8 + seed % 9} for seed, text in enumerate(texts)]


async def ask(
    client: httpx.AsyncClient, kind: str, asked: dict[str, Any], session: str, leave: bool
) -> tuple[int, Any]:
    """The status of a request, and the text of its answer; None if it was left."""
    if kind == "typed":
        text = asked["prompt"][: 20 + asked["seed"] % 50]
        found = await client.post("/complete", json={"text": text, "session": session})
        return found.status_code, found.json().get("text")
    if kind == "whole":
        found = await client.post("/v1/completions", json=asked)
        return found.status_code, found.json()["choices"][0]["text"] if found.status_code == 200 else None
    pieces = []
    async with client.stream("POST", "/v1/completions", json={**asked, "stream": True}) as answer:
        async for line in answer.aiter_lines():
            if leave and line:
                return answer.status_code, None
            if answer.status_code == 200 and line.startswith("data: {"):
                pieces.append(json.loads(line[6:])["choices"][0]["text"])
    return answer.status_code, "".join(pieces)


class Typist:
    """A person who types a text at a steady pace, alone, into the page: it asks for what the page asks for.

    A character that the suggestion begins with keeps the rest and asks for nothing. After any other one, and a wait, the page
    asks for the rest of the word, or the next one; then for more words, which the next key that asks cancels.

    Attributes:
        seconds: What answers took, by what was asked for.
        kept: How many keys asked for nothing.
    """

    def __init__(self, client: httpx.AsyncClient, text: str) -> None:
        self.seconds: dict[str, list[float]] = {"word": [], "more": []}
        self.kept = 0
        self._client, self._text, self._at, self._ghost = client, text, 0, ""

    async def type(self, start: int, keys: int) -> None:
        """Type characters of the text from a place on. A key waits for the answer to the one before it."""
        more: asyncio.Task[None] | None = None
        due = time.monotonic()
        for at in range(start, start + keys):
            due = max(due + PACE, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            typed, self._at = self._text[at], at + 1
            self._ghost = self._ghost[1:] if self._ghost.startswith(typed) else ""
            if self._ghost:
                self.kept += 1
                continue
            if more:
                more.cancel()
            await asyncio.sleep(WAIT)
            inside = typed.isalnum() or typed in "_'"
            await self._ask("word", self._at, 0 if inside else 1)
            more = asyncio.create_task(self._ask("more", self._at, 3))
        if more:
            more.cancel()

    async def _ask(self, kind: str, at: int, words: int) -> None:
        start = max(0, (at - 1000) // 500 * 500)
        asked = {"text": self._text[start:at], "words": words, "session": "typist"}
        began = time.perf_counter()
        answer = await self._client.post("/complete", json=asked)
        assert answer.status_code == 200, answer.text
        self.seconds[kind].append(time.perf_counter() - began)
        typed, found = self._text[at : self._at], answer.json()["text"]
        if found.startswith(typed):
            self._ghost = found[len(typed) :]


async def type_alone(url: str, keys: int, documents: Sequence[str]) -> Typist:
    """Type, after some keys that are not counted, while nobody else asks."""
    text, warm = " ".join(" ".join(document.split()) for document in documents), 5
    async with httpx.AsyncClient(base_url=url, timeout=120, verify=False) as client:
        await Typist(client, text).type(1100, warm)
        typist = Typist(client, text)
        await typist.type(1100 + warm, keys)
    return typist


async def press(url: str, pid: int, clients: int, seconds: float) -> Load:
    """Let clients ask for the time given."""
    asked, load = questions(24), Load()
    async with httpx.AsyncClient(base_url=url, timeout=120, verify=False) as one:
        alone = {(kind, q["seed"]): (await ask(one, kind, q, "alone", False))[1] for kind in KINDS for q in asked}
    end = time.monotonic() + seconds

    async def person(number: int) -> None:
        chance = random.Random(number)
        async with httpx.AsyncClient(base_url=url, timeout=120, verify=False) as client:
            while time.monotonic() < end:
                kind, question, leave = chance.choice(KINDS), chance.choice(asked), chance.random() < 0.1
                start = time.monotonic()
                try:
                    status, text = await ask(client, kind, question, f"page {number}", leave)
                except httpx.HTTPError as error:
                    load.statuses[type(error).__name__] += 1
                    continue
                load.statuses[str(status)] += 1
                if status == 200 and text is not None:
                    load.seconds[kind].append(time.monotonic() - start)
                    load.others += text != alone[kind, question["seed"]]
                elif status == 429:
                    await asyncio.sleep(chance.random())

    async def watch() -> None:
        while time.monotonic() < end:
            load.memory.append(resident(pid))
            await asyncio.sleep(seconds / 200)

    await asyncio.gather(watch(), *map(person, range(clients)))
    return load


def resident(pid: int) -> float:
    """The resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def share(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def growth(memory: list[float]) -> tuple[float, float]:
    """The median memory in the second fifth of the time, and in the last one."""
    fifth = len(memory) // 5
    return median(memory[fifth : 2 * fifth]), median(memory[-fifth:])


def report(load: Load, typist: Typist, clients: int) -> str:
    """The figures, as tables."""
    lines = ["| request | answers | p50 ms | p95 ms |", "| --- | --- | --- | --- |"]
    word, more = typist.seconds["word"], typist.seconds["more"]
    rows = {"every key, alone": [0.0] * typist.kept + word, "the word, alone": word, "more words, alone": more}
    rows |= {f"{kind}, {clients} clients": times for kind, times in load.seconds.items()}
    for name, times in rows.items():
        if times:
            lines.append(f"| {name} | {len(times)} | {1000 * median(times):.0f} | {1000 * share(times, 0.95):.0f} |")
    counts = ", ".join(f"{count} of {status}" for status, count in sorted(load.statuses.items()))
    before, after = growth(load.memory)
    lines += [
        "",
        f"keys that asked for nothing: {typist.kept}",
        f"statuses: {counts}",
        f"answers that a single client does not get: {load.others}",
    ]
    return "\n".join(
        [*lines, f"memory: {before:.1f} MB, at the end {after:.1f} MB ({100 * (after / before - 1):+.1f} %)"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--keys", type=int, default=300)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    documents = read_documents(options.text, "--text") if options.text else [topics[name] for name in sorted(topics)]
    command = [
        sys.executable,
        "-m",
        "lightgpt2",
        "serve",
        options.model,
        "--port",
        "0",
        "--threads",
        str(options.threads),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        line = server.stdout.readline()
        url = next((word.rstrip("/;").removesuffix("/v1") for word in line.split() if "://" in word), "")
        try:
            typist = asyncio.run(type_alone(url, options.keys, documents))
            load = asyncio.run(press(url, server.pid, options.clients, options.seconds))
        finally:
            server.terminate()
    print(report(load, typist, options.clients))
    errors = {*load.statuses} - {"200", "429"}
    sys.exit(bool(errors or load.others or server.returncode))


if __name__ == "__main__":
    main()
