"""CTranslate2's generator."""

import json
import time

import ctranslate2
import numpy as np

from benchmarks.engines.base import Engine, Ids, Logits


class CTranslate2Engine(Engine):
    """A converted folder; the option `compute` is CTranslate2's compute type.

    There is no call for one more token, so that tokens are timed by its callback inside one generation.
    """

    def load(self, capacity: int) -> None:
        self._tokens: list[str] = json.loads((self.folder / "vocabulary.json").read_text(encoding="utf-8"))
        self._generator = ctranslate2.Generator(
            str(self.folder), device="cpu", compute_type=self.options["compute"], intra_threads=self.threads
        )

    def greedy(self, prompt: Ids, count: int) -> list[float]:
        clock: list[float] = []

        def note(_: ctranslate2.GenerationStepResult) -> bool:
            clock.append(time.perf_counter())
            return False

        self._generator.generate_batch(
            [[self._tokens[token] for token in prompt]], max_length=count + 1, min_length=count + 1,
            include_prompt_in_result=False, callback=note,
        )  # fmt: skip
        found: list[float] = (np.diff(clock) * 1e3).tolist()
        return found

    def logits(self, ids: Ids) -> Logits:
        self._batch = self._generator.forward_batch(ids.tolist())
        return np.asarray(self._batch)

    def release(self) -> None:
        self._batch = None

    def describe(self) -> str:
        return f"CTranslate2 {ctranslate2.__version__}, computes in {self._generator.compute_type}"
