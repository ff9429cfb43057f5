"""Model cards of what is no decoder: the kind of task, its metrics, code that loads the model, and every licence."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from lightgpt2.models.ledger import Entry, Ledger, Parent
from lightgpt2.report.card import model_card
from tests.report.chains import score
from tests.support.models import write_classifier, write_seq2seq


@pytest.mark.parametrize(
    ("metric", "kind", "auto"),
    [
        ("accuracy", "text-classification", "AutoModelForSequenceClassification"),
        ("rouge_lsum", "summarization", "AutoModelForSeq2SeqLM"),
    ],
)
def test_cards_of_classifiers_and_summarizers(tmp_path: Path, metric: str, kind: str, auto: str) -> None:
    folder, base = tmp_path / "model", tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    if metric == "accuracy":
        write_classifier(folder)
    else:
        write_seq2seq(folder, "bart")
    data = {"source": "owner/reviews", "sha256": "6710af", "licence": "CC0-1.0"}
    ledger = Ledger()
    for stage, about in (("first", data | {"source": "/secret/reviews.csv", "licence": None}), ("small", data)):
        quality = {"after": score(0.9, metric)}
        entry = Entry(stage, "FineTune", {}, Parent.of(str(base)), [], about, 0, 3, 1.0, quality)
        ledger = ledger.extended(entry)
    ledger.write(folder)
    text = model_card(folder, "me/small")
    about = ModelCard(text).data
    assert (about.pipeline_tag, about.license, about.datasets) == (kind, "mit", ["owner/reviews"])
    assert [(each.metric_type, each.metric_value) for each in about.eval_results or []] == [(metric, 0.9)]
    assert "The licence of base: mit." in text
    assert "Data of first: reviews.csv, sha256 6710af; its licence is not recorded." in text
    assert "Data of small: owner/reviews, sha256 6710af; its licence is CC0-1.0." in text
    assert str(tmp_path) not in text
    code = text.split("```python\n")[1].split("```")[0].replace("me/small", str(folder))
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert f"{auto}.from_pretrained" in code
    assert scope["model"].config.model_type in ("bert", "bart")
