"""The sampler beside transformers' own processors, and what it samples beside the probabilities."""

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lightgpt2.runtime.options import Settings
from lightgpt2.runtime.sampling import Sampler, distribution, forbid_ngrams, penalize

V = 1000


@pytest.mark.parametrize("scale", [0.5, 4.0])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "penalty", "ngram"),
    [
        (0.7, 0, 1.0, 1.0, 0), (1.0, 50, 1.0, 1.0, 0), (1.0, 1, 1.0, 1.0, 0), (1.0, V, 1.0, 1.0, 0), (1.0, 0, 0.9, 1.0, 0),
        (1.0, 0, 0.999, 1.0, 0), (1.0, 0, 1e-9, 1.0, 0), (1.3, 40, 0.8, 1.2, 3), (0.9, 0, 0.95, 0.8, 1), (1.0, 0, 1.0, 1.5, 2),
    ],
)  # fmt: skip
def test_probabilities_are_those_of_transformers(
    scale: float, temperature: float, top_k: int, top_p: float, penalty: float, ngram: int
) -> None:
    random = np.random.default_rng(0)
    history = random.integers(0, 12, 60)
    chosen = {
        RepetitionPenaltyLogitsProcessor(penalty): penalty != 1,
        NoRepeatNGramLogitsProcessor(ngram or 1): ngram > 0,
        TemperatureLogitsWarper(temperature): True,
        TopKLogitsWarper(top_k or V): top_k > 0,
        TopPLogitsWarper(top_p): top_p < 1,
    }
    processors = LogitsProcessorList(processor for processor, used in chosen.items() if used)
    for _ in range(10):
        logits = (random.standard_normal(V) * scale).astype(np.float32)
        scores = processors(torch.from_numpy(history)[None], torch.from_numpy(logits.copy())[None].double())
        wanted = scores.softmax(dim=-1)[0].numpy()
        if penalty != 1:
            penalize(logits, history, penalty)
        if ngram:
            forbid_ngrams(logits, history, ngram)
        ids, weights = distribution(logits, temperature, top_k, top_p)
        found = np.zeros(V)
        found[ids] = weights
        np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=1e-5)
        assert set(np.flatnonzero(found)) == set(np.flatnonzero(wanted))


def test_equal_tokens_at_the_border() -> None:
    ids, _ = distribution(np.array([1.0, 3.0, 2.0, 2.0, 2.0, 0.0], np.float32), 1.0, top_k=2)
    assert ids.tolist() == [1, 2, 3, 4], "as likely as the last of the top"
    ids, weights = distribution(np.zeros(V, np.float32), 1.0, top_p=0.3001)
    assert len(set(ids.tolist())) == 301
    np.testing.assert_allclose(weights, 1 / 301)


def test_samples_follow_the_probabilities() -> None:
    wanted, count = np.array([0.5, 0.0, 0.3, 0.2]), 4000
    with np.errstate(divide="ignore"):
        logits = np.log(wanted).astype(np.float32)
    sampler = Sampler(Settings(temperature=1.0), [[0]] * count, range(count), 1)
    shares = np.bincount(sampler(np.tile(logits, (count, 1))), minlength=4) / count
    assert shares[1] == 0
    np.testing.assert_allclose(shares, wanted, atol=0.03)  # 4 standard deviations


def test_samples_depend_on_seed_and_index_alone() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 20, V)).astype(np.float32)

    def samples(rows: list[int], seed: int) -> np.ndarray:
        sampler = Sampler(Settings(temperature=1.0, top_k=0, seed=seed), [[0]] * len(rows), rows, 20)
        return np.stack([sampler(logits[rows, step]) for step in range(20)], axis=1)

    together = samples([0, 1, 2], seed=7)
    for row in range(3):
        assert (samples([row], seed=7)[0] == together[row]).all()
    assert (samples([0, 1, 2], seed=8) != together).any(axis=1).all()
    logits[1] = logits[0]
    first, second = samples([0, 1], seed=7)
    assert (first != second).any(), "equal prompts are continued differently"


def test_the_most_likely_token_and_what_is_held_back() -> None:
    logits = np.zeros((2, 5), np.float32)
    logits[:, 1], logits[:, 2] = 3.0, 2.0
    assert Sampler(Settings(), [[0], [0]], [0, 1], 1)(logits.copy()).tolist() == [1, 1]
    punished = Sampler(Settings(repetition_penalty=2.0), [[0, 1], [0]], [0, 1], 3)
    assert punished(logits.copy()).tolist() == [2, 1]
    assert punished(logits.copy()).tolist() == [1, 2], "new tokens count as those of the prompt do"
    once = Sampler(Settings(no_repeat_ngram=1), [[1], [2, 2, 2]], [0, 1], 3)
    assert once(logits.copy()).tolist() == [2, 1]
    pair = Sampler(Settings(no_repeat_ngram=2), [[1, 1, 2, 1], [1]], [0, 1], 3)
    assert pair(logits.copy()).tolist() == [0, 1]
    random = np.random.default_rng(0).standard_normal((1, V)).astype(np.float32)
    assert Sampler(Settings(temperature=1e-30), [[0]], [0], 1)(random) == random.argmax()
