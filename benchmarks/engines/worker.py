"""A process that holds one engine and measures it when told to."""

import contextlib
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks.engines.base import Engine, Ids

ENGINES = {
    "transformers": "benchmarks.engines.pytorch:TransformersEngine",
    "llama.cpp": "benchmarks.engines.llamacpp:LlamaCppEngine",
    "ctranslate2": "benchmarks.engines.ct2:CTranslate2Engine",
    "openvino": "benchmarks.engines.openvino_engine:OpenVinoEngine",
    "onnx": "benchmarks.engines.onnx:OnnxEngine",
}
_REPEATS, _SECONDS = 8, 1.0
_DISTURBED, _PAUSE = 0.05, 1.0


def resident_mb(field: str) -> float:
    """`VmRSS` (now) or `VmHWM` (the highest so far) of this process, in 10^6 bytes."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return next(int(line[1]) * 1024 / 1e6 for line in lines if line[0] == f"{field}:")


def libraries_mb() -> float:
    """Resident pages of the interpreter's and the libraries' files, in 10^6 bytes: code is read in as it is first run."""
    total, library = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):  # a mapping: addresses, permissions, offset, device, inode and, of a file, its path
            library = len(rest) > 4 and (
                ".so" in Path(rest[4]).suffixes or rest[4] == os.path.realpath("/proc/self/exe")
            )
        elif key == "Rss:" and library:
            total += int(rest[0])
    return total * 1024 / 1e6


def random_ids(vocabulary: int, *shape: int) -> Ids:
    """The same tokens in every process."""
    return np.random.default_rng(shape[-1]).integers(vocabulary, size=shape)


class Worker:
    """One engine and what can be asked of it.

    Args:
        engine: A key of `ENGINES`.
        folder: The engine's files.
        options: What the arm sets.
        settings: `threads`, `prompt`, `new_tokens`, `length`, `batches`, `tries`, `vocabulary`.
    """

    def __init__(self, engine: str, folder: str, options: dict[str, str], settings: dict[str, Any]) -> None:
        module, name = ENGINES[engine].split(":")
        kind: type[Engine] = getattr(importlib.import_module(module), name)
        self._engine = kind(Path(folder), settings["threads"], options)
        self._settings = settings
        self._prompt = random_ids(settings["vocabulary"], settings["prompt"])

    def load(self, logits: str) -> dict[str, Any]:
        """Loads, decodes once, and leaves the logits of one sequence in a file for the parent to compare.

        Args:
            logits: Where they go, `.npy`.

        Returns:
            The engine's description; its first tokens; memory above that of the interpreter with its libraries.
        """
        self._engine.prepare()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak of the imports
        start = resident_mb("VmRSS") - libraries_mb()
        self._engine.load(self._settings["prompt"] + self._settings["new_tokens"] + 1)
        tokens, _ = self._engine.decode(self._prompt, self._settings["new_tokens"])
        peak = resident_mb("VmHWM") - libraries_mb() - start
        ids = random_ids(self._settings["vocabulary"], 1, self._settings["length"])
        np.save(logits, self._engine.forward(ids))
        return {"about": self._engine.describe(), "tokens": tokens, "peak_mb": peak}

    def round(self) -> dict[str, tuple[float, float]]:
        """Milliseconds of a new token and of each forward pass, medians; and how far other processes disturbed each."""
        count, tries = self._settings["new_tokens"], self._settings["tries"]
        result = {"decode": undisturbed(lambda: statistics.median(self._engine.decode(self._prompt, count)[1]), tries)}
        for batch in self._settings["batches"]:
            ids = random_ids(self._settings["vocabulary"], batch, self._settings["length"])
            self._engine.forward(ids)  # the others have used the caches since the last round
            result[f"forward {batch}x{ids.shape[1]}"] = undisturbed(lambda ids=ids: self._forward(ids), tries)  # type: ignore[misc]
            self._engine.release()
        return result

    def _forward(self, ids: Ids) -> float:
        times: list[float] = []
        while not times or (len(times) < _REPEATS and sum(times) < _SECONDS):
            started = time.perf_counter()
            self._engine.forward(ids)
            times.append(time.perf_counter() - started)
        return statistics.median(times) * 1e3


def undisturbed(measure: Callable[[], float], limit: int) -> tuple[float, float]:
    """A measurement, repeated while other processes take part of the processors; the one that they disturbed least.

    Two threads that wait for each other at every layer are several times slower when a third process wants a core: what was
    measured then says nothing of the engine.

    Args:
        measure: What gives a figure.
        limit: How often it is tried at most.

    Returns:
        What was measured, and the processors that others (the hypervisor's other guests too) kept busy meanwhile.
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
    user, nice, system, _idle, _wait, irq, soft, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answers requests until there are no more: `load`, then `round` as often as wanted."""
    worker: Worker | None = None
    for line in requests:
        request = json.loads(line)
        reply: dict[str, Any]
        try:
            if request["do"] == "load":
                worker = Worker(*(request[key] for key in ("engine", "folder", "options", "settings")))
                reply = {"ok": worker.load(request["logits"])}
            else:
                assert worker is not None
                reply = {"ok": worker.round()}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def main() -> None:
    """Keeps the channel to itself: whatever else is printed goes to standard error."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin, channel)


if __name__ == "__main__":
    main()
