"""CTranslate2's generator."""

import json
import time
from pathlib import Path

import ctranslate2
import numpy as np

from lightgpt2.runtime.engines import Floats, Ints


class CTranslate2:
    """A converted folder. It has no call for one more token: tokens are timed by its callback inside one generation."""

    def __init__(self, folder: Path, threads: int, compute: str) -> None:
        self._tokens: list[str] = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        self.generator = ctranslate2.Generator(str(folder), "cpu", compute_type=compute, intra_threads=threads)

    def greedy(self, prompt: Ints, count: int) -> list[float]:
        """See `benchmarks.engines.worker.greedy`."""
        clock: list[float] = []

        def note(_: ctranslate2.GenerationStepResult) -> bool:
            clock.append(time.perf_counter())
            return False

        forced = {"max_length": count + 1, "min_length": count + 1, "include_prompt_in_result": False}
        self.generator.generate_batch([[self._tokens[token] for token in prompt[0]]], callback=note, **forced)
        return (np.diff(clock) * 1e3).tolist()

    def logits(self, ids: Ints, mask: Ints) -> Floats:
        return np.asarray(self.generator.forward_batch(ids.tolist()))


def decoder(folder: Path, threads: int, compute: str) -> tuple[CTranslate2, str]:
    """A converted folder, in one of CTranslate2's compute types."""
    model = CTranslate2(folder, threads, compute)
    return model, f"CTranslate2 {ctranslate2.__version__}, computes in {model.generator.compute_type}"
