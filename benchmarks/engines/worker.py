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
import psutil

from lightgpt2.measure.child import serve
from lightgpt2.measure.memory import now_mb, peak_mb, reset_peak
from lightgpt2.runtime.engines import Ints

_REPEATS, _SECONDS = 8, 1.0
_DISTURBED, _PAUSE = 0.05, 1.0


def libraries_mb() -> float:
    """Resident pages of the interpreter's and the libraries' files, in 10^6 bytes: code is read in as it is first run."""
    files, interpreter = psutil.Process().memory_maps(), os.path.realpath("/proc/self/exe")
    return sum(file.rss for file in files if ".so" in Path(file.path).suffixes or file.path == interpreter) / 1e6


class Worker:
    """One engine and what can be asked of it.

    Its settings: `threads`; `vocabulary`, of which random tokens are; `batches` and `length` of forward passes; `prompt` and
    `new_tokens` where it decodes; `tries`; `seconds` of passes in a round, whose 10th percentile counts, in the place of the
    median of a few.
    """

    def load(self, engine: str, files: Path, options: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        """Loads with `module:function` and decodes once.

        Returns the text about the engine, the memory above that of the interpreter with its libraries, and the logits of one
        sequence, to be compared.
        """
        module, name = engine.split(":")
        load = getattr(importlib.import_module(f"benchmarks.engines.{module}"), name)
        self._settings = settings
        reset_peak()  # forgets that of the imports
        start = now_mb() - libraries_mb()
        self._engine, about = load(files, settings["threads"], **options)
        if "new_tokens" in settings:
            self._decode()
        peak = peak_mb() - libraries_mb() - start
        logits = np.array(self._logits(self._random(1, settings["length"])))
        return {"about": about, "peak_mb": peak, "logits": logits}

    def round(self) -> dict[str, tuple[float, float]]:
        """Milliseconds of a new token and of each forward pass; and how far other processes disturbed each."""
        settings, result = self._settings, {}
        if "new_tokens" in settings:
            result["decode"] = undisturbed(self._decode, settings["tries"])
        for batch in settings["batches"]:
            ids = self._random(batch, settings["length"])
            self._logits(ids)  # the others have used the caches since the last round
            result[f"forward {batch}x{settings['length']}"] = undisturbed(partial(self._pass, ids), settings["tries"])
        return result

    def _random(self, *shape: int) -> Ints:
        """The same tokens in every process."""
        return np.random.default_rng(shape[-1]).integers(self._settings["vocabulary"], size=shape)

    def _logits(self, ids: Ints) -> Any:
        return self._engine.logits(ids, np.ones_like(ids))

    def _decode(self) -> float:
        return statistics.median(
            greedy(self._engine, self._random(1, self._settings["prompt"]), self._settings["new_tokens"])
        )

    def _pass(self, ids: Ints) -> float:
        times: list[float] = []
        seconds = self._settings.get("seconds")
        while len(times) < 3 or (sum(times) < (seconds or _SECONDS) and (seconds or len(times) < _REPEATS)):
            started = time.perf_counter()
            self._logits(ids)
            times.append(time.perf_counter() - started)
        return float(np.percentile(times, 10 if seconds else 50)) * 1e3


def greedy(engine: Any, prompt: Ints, count: int) -> list[float]:
    """Milliseconds of each of `count` tokens after the first: the pass over one token and the choice of the next."""
    if hasattr(engine, "greedy"):
        return engine.greedy(prompt, count)
    token, times = engine.prefill(prompt, np.ones_like(prompt), count).argmax(axis=1), []
    for _ in range(count):
        started = time.perf_counter()
        token = engine.decode(token).argmax(axis=1)
        times.append((time.perf_counter() - started) * 1e3)
    return times


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
    spent = psutil.cpu_times()
    return spent.user + spent.nice + spent.system + spent.irq + spent.softirq + spent.steal


if __name__ == "__main__":
    _worker = Worker()
    serve({"load": _worker.load, "round": _worker.round})
