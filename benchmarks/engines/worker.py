"""A process that holds one engine and measures it when it is asked to."""

import importlib
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines.base import Engine, Ids
from lightgpt2.measure.child import serve
from lightgpt2.measure.memory import now_mb, peak_mb, reset_peak

_REPEATS, _SECONDS = 8, 1.0
_DISTURBED, _PAUSE = 0.05, 1.0


def libraries_mb() -> float:
    """Resident pages of the interpreter's and the libraries' files, in 10^6 bytes: code is read in as it is first run."""
    total, library = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):  # a mapping: addresses, permissions, offset, device, inode and, of a file, its path
            path = rest[4] if len(rest) > 4 else ""
            library = ".so" in Path(path).suffixes or path == os.path.realpath("/proc/self/exe")
        elif key == "Rss:" and library:
            total += int(rest[0])
    return total * 1024 / 1e6


class Worker:
    """One engine and what can be asked of it.

    Its settings: `threads`; `vocabulary`, of which random tokens are; `batches` and `length` of forward passes; `prompt` and
    `new_tokens` where it decodes; `tries`; `seconds` of passes in a round, whose 10th percentile counts, in the place of the
    median of a few.
    """

    def load(
        self, engine: str, folder: str, options: dict[str, str], settings: dict[str, Any], logits: str
    ) -> dict[str, Any]:
        """Loads `module:Class`, decodes once, and leaves the logits of one sequence in a file for the parent to compare.

        Returns the engine's description, and the memory above that of the interpreter with its libraries.
        """
        module, name = engine.split(":")
        kind: type[Engine] = getattr(importlib.import_module(f"benchmarks.engines.{module}"), name)
        self._engine, self._settings = kind(Path(folder), settings["threads"], options), settings
        count = settings.get("new_tokens", 0)
        self._engine.prepare()
        reset_peak()  # forgets that of the imports
        start = now_mb() - libraries_mb()
        self._engine.load(settings.get("prompt", 0) + count + 1)
        if count:
            self._decode(count)
        peak = peak_mb() - libraries_mb() - start
        np.save(logits, self._engine.logits(self._random(1, settings["length"])))
        return {"about": self._engine.describe(), "peak_mb": peak}

    def round(self) -> dict[str, tuple[float, float]]:
        """Milliseconds of a new token and of each forward pass; and how far other processes disturbed each."""
        settings, result = self._settings, {}
        if count := settings.get("new_tokens", 0):
            result["decode"] = undisturbed(partial(self._decode, count), settings["tries"])
        for batch in settings["batches"]:
            ids = self._random(batch, settings["length"])
            self._engine.logits(ids)  # the others have used the caches since the last round
            result[f"forward {batch}x{settings['length']}"] = undisturbed(partial(self._pass, ids), settings["tries"])
            self._engine.release()
        return result

    def _random(self, *shape: int) -> Ids:
        """The same tokens in every process."""
        return np.random.default_rng(shape[-1]).integers(self._settings["vocabulary"], size=shape)

    def _decode(self, count: int) -> float:
        return statistics.median(self._engine.greedy(self._random(self._settings["prompt"]), count))

    def _pass(self, ids: Ids) -> float:
        times: list[float] = []
        seconds = self._settings.get("seconds")
        while len(times) < 3 or (sum(times) < (seconds or _SECONDS) and (seconds or len(times) < _REPEATS)):
            started = time.perf_counter()
            self._engine.logits(ids)
            times.append(time.perf_counter() - started)
        return float(np.percentile(times, 10 if seconds else 50)) * 1e3


def undisturbed(measure: Callable[[], float], limit: int) -> tuple[float, float]:
    """A measurement, repeated while other processes take part of the processors; the one that they disturbed least.

    Two threads that wait for each other at every layer are several times slower when a third process wants a core: what was
    measured then says nothing of the engine.

    Returns what was measured, and the processors that others (the hypervisor's other guests too) kept busy meanwhile.
    """
    tries: list[tuple[float, float]] = []
    while len(tries) < limit:
        if tries:
            time.sleep(_PAUSE)
        busy, own, started = busy_seconds(), time.process_time(), time.perf_counter()
        value = measure()
        others = busy_seconds() - busy - (time.process_time() - own)
        tries.append((max(0.0, others) / (time.perf_counter() - started), value))
        if tries[-1][0] <= _DISTURBED:
            break
    disturbance, value = min(tries)
    return value, disturbance


def busy_seconds() -> float:
    """What all processors have worked since the system started, for whomever; in steps of 0.01 s."""
    numbers = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    user, nice, system, _idle, _wait, irq, soft, steal = numbers
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    _worker = Worker()
    serve({"load": _worker.load, "round": _worker.round})
