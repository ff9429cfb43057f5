"""CTranslate2's generator."""

import json
import time

import ctranslate2
import numpy as np

from benchmarks.engines.base import Engine, Ids, Logits


class CTranslate2Engine(Engine):
    """A converted folder; the option `compute` is CTranslate2's compute type.

    Its cache is its own: there is no call for one more token, so that tokens are timed by its callback inside one generation.
    """

    def load(self, capacity: int) -> None:
        """Reads the folder."""
        self._tokens: list[str] = json.loads((self.folder / "vocabulary.json").read_text(encoding="utf-8"))
        self._generator = ctranslate2.Generator(
            str(self.folder), device="cpu", compute_type=self.options["compute"], intra_threads=self.threads
        )

    def start(self, prompt: Ids) -> int:
        """The first token alone."""
        return self.decode(prompt, 0)[0][0]

    def step(self, token: int) -> int:
        """Not offered."""
        raise NotImplementedError("CTranslate2 generates whole texts")

    def decode(self, prompt: Ids, count: int) -> tuple[list[int], list[float]]:
        """As the base class says."""
        clock: list[float] = []

        def note(_: ctranslate2.GenerationStepResult) -> bool:
            clock.append(time.perf_counter())
            return False

        (result,) = self._generator.generate_batch(
            [[self._tokens[token] for token in prompt]],
            max_length=count + 1,
            min_length=count + 1,
            include_prompt_in_result=False,
            callback=note,
        )
        return result.sequences_ids[0], (np.diff(clock) * 1e3).tolist()

    def forward(self, ids: Ids) -> Logits:
        """One pass without a cache."""
        self._batch = self._generator.forward_batch(ids.tolist())
        return np.asarray(self._batch)

    def release(self) -> None:
        """Drops the last logits."""
        self._batch = None

    def describe(self) -> str:
        """Version, and the type that it computes in."""
        return f"CTranslate2 {ctranslate2.__version__}, computes in {self._generator.compute_type}"
