"""ROUGE beside the package, sentences, Lead-3, the oracle, and what is copied."""

import json
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from lightgpt2.data import TextToTextData
from lightgpt2.data.base import Connection
from lightgpt2.data.tokenizer import train_text_to_text
from lightgpt2.tasks import Summarization, rouge, summarization
from tests.support.models import make_seq2seq

Articles = list[tuple[str, str]]


@pytest.fixture
def articles(real_data: Path) -> Articles:
    """The BBC's validation articles with their summaries."""
    lines = (real_data / "bbc" / "valid.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["text"], row["summary"]) for row in map(json.loads, lines)]


def package(summary: list[str], reference: list[str], stem: bool = False) -> dict[str, float]:
    """What rouge-score says of sentences."""
    found = RougeScorer([*rouge.NAMES], use_stemmer=stem).score("\n".join(reference), "\n".join(summary))
    return {name: score.fmeasure for name, score in found.items()}


@pytest.mark.slow
def test_scores_of_lead_3_and_of_the_oracle_are_the_package_s(articles: Articles) -> None:
    """And they are those that are reported: another way to cut sentences would show."""
    score, ours = rouge.scorer(), [*rouge.NAMES]
    lead, best = list[Mapping[str, float]](), list[Mapping[str, float]]()
    for text, reference in articles:
        whole = rouge.sentences(reference)
        for scored, summary in ((lead, rouge.lead(text)), (best, rouge.oracle(text, reference))):
            scored.append(score(summary, reference))
            theirs = package(summary.split("\n"), whole)
            assert [scored[-1][name] for name in ours] == pytest.approx([theirs[name] for name in ours], abs=5e-5)
    means = [{name: float(np.mean([each[name] for each in scored])) for name in ours} for scored in (lead, best)]
    figures = {"rouge1": 0.3755, "rouge2": 0.2987, "rougeL": 0.3133, "rougeLsum": 0.3680}
    assert means[0] == pytest.approx(figures, abs=5e-5)
    assert means[1]["rouge1"] > 0.99  # these summaries are sentences of their articles
    assert means[1]["rougeLsum"] > 0.99
    assert means[1]["rougeL"] < 0.7  # in another order


@pytest.mark.slow
def test_scores_of_what_a_model_writes_are_the_package_s(
    articles: Articles, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all articles, through data and task; the model has learnt to copy the beginning of what it reads."""
    train_text_to_text([text for text, _ in articles], 1000, tmp_path)
    model = make_seq2seq("bart", vocab_size=1000, max_position_embeddings=128)
    data = TextToTextData(str(real_data / "bbc"), max_source_length=128, max_target_length=24, test_fraction=0.0)
    data.connect(Connection(str(tmp_path), "model", config=model.config))
    data.prepare_data()
    data.setup("validate")
    task = Summarization()
    task.bind(data)
    monkeypatch.setattr(summarization, "generate", lambda _, ids, *others: ids[:, :100].tolist())
    found = [row for batch in data.scoring_loader("valid") for row in task.predicted(model, data.tokenizer, batch)]
    metrics = task.metrics(found)
    rows = sorted(found, key=lambda row: row["example"])
    assert [row["reference"].strip() for row in rows] == [reference.strip() for _, reference in articles]
    for row, *ours in zip(rows, *(metrics[name].numerators for name in rouge.NAMES), strict=True):
        theirs = package(rouge.sentences(row["summary"]), rouge.sentences(row["reference"]))
        assert ours == pytest.approx([theirs[name] for name in rouge.NAMES], abs=5e-5)
    assert metrics["rouge1"].value() > 0.2


def test_scores_by_stems_are_the_package_s(articles: Articles) -> None:
    score = rouge.scorer(stem=True)
    for text, reference in articles[::20]:
        theirs = package(rouge.lead(text).split("\n"), rouge.sentences(reference), stem=True)
        assert score(rouge.lead(text), reference) == pytest.approx(theirs, abs=5e-5)


def test_lost_and_exchanged_sentences_show_as_they_should(articles: Articles) -> None:
    score = rouge.scorer()
    for _, reference in articles[:20]:
        parts = rouge.sentences(reference)
        whole = score(reference, reference)
        assert all(value == pytest.approx(1.0) for value in whole.values())
        half = score("\n".join(parts[: len(parts) // 2]), reference)
        assert all(half[name] < 0.9 for name in rouge.NAMES)
        turned = score("\n".join(reversed(parts)), reference)
        assert turned["rouge1"] == pytest.approx(1.0)  # words alone
        assert turned["rougeLsum"] == pytest.approx(1.0)  # each sentence finds its own
        assert turned["rougeL"] < 0.9  # one order for all
        words = rouge.by_lines(reference).split()
        random.Random(0).shuffle(words)
        mixed = score(" ".join(words), reference)
        assert mixed["rouge1"] == pytest.approx(1.0, abs=0.05)
        assert mixed["rouge2"] < 0.3


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One is here. Two is there! Is it three?", ["One is here.", "Two is there!", "Is it three?"]),
        ("It ended.Then it began.", ["It ended.", "Then it began."]),  # as in the BBC's summaries
        ("Mr. Smith met Dr. Jones. They spoke.", ["Mr. Smith met Dr. Jones.", "They spoke."]),
        ("It rose 3.5 % to $1.2bn. J. K. Rowling wrote.", ["It rose 3.5 % to $1.2bn.", "J. K. Rowling wrote."]),
        ('He said: "Go." She went.', ['He said: "Go."', "She went."]),
        ("A headline\n\nA text. More\r\nof it", ["A headline", "A text.", "More", "of it"]),
        ("no capital. after it", ["no capital. after it"]),
        ("   \n ", []),
        ("", []),
    ],
)
def test_sentences(text: str, parts: list[str]) -> None:
    assert rouge.sentences(text) == parts


def test_no_character_is_lost(articles: Articles) -> None:
    for pair in articles:
        for text in pair:
            assert "".join("".join(rouge.sentences(text)).split()) == "".join(text.split())


def test_the_oracle_takes_the_best_sentences_and_no_others() -> None:
    text = "The cat sat. Dogs bark at night. It rained in Paris. Nothing else happened."
    assert rouge.oracle(text, "Dogs bark at night. It rained in Paris.") == "Dogs bark at night.\nIt rained in Paris."
    assert rouge.oracle(text, "completely different") == ""


def test_what_is_copied() -> None:
    source = "one two three four five six"
    assert rouge.copied("two three four", source) == 1.0
    assert rouge.copied("four three two", source) == 0.0
    assert rouge.copied("one two three five", source) == 0.5
    assert rouge.copied("one two", source) == 0.0  # there is no such sequence in it
    assert rouge.words("It's 3.5 %") == 4
