"""What is wrong with an export shows: verification lets nothing pass that is not the model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from lightgpt2.conversions.export import export
from lightgpt2.conversions.onnx.conversion import Onnx
from lightgpt2.conversions.onnx.writer import Forms
from lightgpt2.conversions.target import Target
from lightgpt2.data.validation import validation_data
from lightgpt2.errors import UserError
from lightgpt2.models.loading import load_model
from lightgpt2.models.quality import value_of
from lightgpt2.runtime.engines import Floats, Ints
from lightgpt2.runtime.transformers_engine import TransformersEngine
from lightgpt2.tasks.exported import BOUNDS, agreement, first_documents, verify
from lightgpt2.tasks.language_modeling import LanguageModeling
from tests.support.models import write_corpus, write_model

TASK: Any = LanguageModeling()


class Off(TransformersEngine):
    """An engine whose logits are not those of its model: `step` times noise is added in each step, `read` times to a text's."""

    def __init__(self, model: PreTrainedModel, step: float = 0, read: float = 0) -> None:
        super().__init__(model)
        self._step, self._read, self._random = step, read, np.random.default_rng(0)

    def _off(self, logits: Floats, size: float) -> Floats:
        return logits + size * self._random.standard_normal(logits.shape).astype(np.float32)

    def prefill(self, ids: Ints, mask: Ints, new_tokens: int) -> Floats:
        return self._off(super().prefill(ids, mask, new_tokens), self._step)

    def decode(self, tokens: Ints) -> Floats:
        return self._off(super().decode(tokens), self._step)

    def logits(self, ids: Ints, mask: Ints) -> Floats:
        return self._off(super().logits(ids, mask), self._read)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned a little, and its text."""
    folder = tmp_path_factory.mktemp("verification")
    write_corpus(folder / "corpus", 60, 500)
    write_model(folder / "model", n_layer=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = validation_data("model", "corpus")
        model = load_model("model", "m").train()
        nn.init.normal_(model.get_input_embeddings().weight, std=0.02)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for ids in data.calibration(60) * 2:
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        model.save_pretrained("model")
    return folder


@pytest.fixture
def model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    monkeypatch.chdir(folder)
    return load_model("model", "m").eval()


def problems(engine: Any, model: PreTrainedModel, precision: str = "fp32") -> list[str]:
    found: list[str] = verify(TASK, engine, model, validation_data("model", "corpus"), 3, precision)["problems"]
    return found


def test_the_model_itself_passes(model: PreTrainedModel) -> None:
    data = validation_data("model", "corpus")
    found = verify(TASK, TransformersEngine(model), model, data, None, "fp32")
    assert found["problems"] == []
    for label, metrics in found["metrics"].items():
        assert TASK.quality(metrics) == found["quality"][label]
    scored = TASK.quality(TASK.evaluate(model, data, "valid", "model"))
    assert value_of(scored) == pytest.approx(value_of(found["quality"]["after"]), rel=1e-6), "as any model is scored"
    assert value_of(scored, "bits_per_byte") == pytest.approx(value_of(found["quality"]["after"], "bits_per_byte"))
    assert found["quality"]["ratio"] == pytest.approx(1, abs=1e-5)
    assert value_of(found["quality"]["before"]) < 150, "it has learned something"
    documents = scored["documents"]
    assert found["agreement"].pop("error") < 1e-5
    assert found["agreement"] == {"cache": 1, "source": 1, "tokens": documents * 48}


def test_noise_is_refused(model: PreTrainedModel) -> None:
    found = problems(Off(model, 0.3, 0.3), model)
    for words in ("its logits are up to", "greedy tokens"):
        assert any(words in problem for problem in found)
    assert any("its logits are up to" in problem for problem in problems(Off(model, 0.03, 0.03), model))
    assert "greedy tokens" in problems(Off(model, step=0.5), model)[0], "in the cache only"


def test_a_model_that_knows_less_is_refused(model: PreTrainedModel) -> None:
    for precision, noise in (("int8", 0.7), ("int4", 3.0)):
        problem, *_ = problems(Off(model, noise, noise), model, precision)
        assert problem.startswith("its perplexity is ")
        assert problem.endswith(f"at most {BOUNDS[precision]:.1%} is allowed")
        assert problems(Off(model, noise / 30, noise / 30), model, precision) == []
        assert any("perplexity" in problem for problem in problems(Off(model, read=float("nan")), model, precision))


def test_another_model_is_refused(model: PreTrainedModel) -> None:
    other = load_model("model", "m").eval()
    with torch.no_grad():
        other.base_model.h[1].mlp.c_proj.weight *= -1
    found = problems(TransformersEngine(other), model)
    assert any("its logits are up to " in problem for problem in found), "whatever is likeliest"


def test_tokens_are_compared_given_those_before(model: PreTrainedModel) -> None:
    class Once(TransformersEngine):
        """Wrong once, in the third step of the first prompt."""

        count = 0

        def decode(self, tokens: Ints) -> Floats:
            logits = super().decode(tokens)
            self.count += 1
            if self.count == 3:
                logits[0, logits[0].argmin()] = 1e9
            return logits

    found = agreement(Once(model), model, [[0, 5, 9], [0, 8, 7]])
    assert (found.cache, found.source, found.tokens) == (1 - 1 / 122, 1 - 1 / 122, 122)
    assert found.error < 1e-5


def test_some_documents_are_the_first(model: PreTrainedModel) -> None:
    data = validation_data("model", "corpus")
    everything = {int(document) for batch in data.scoring_loader("valid") for document in batch["document"]}
    assert len(everything) > 2
    for count, wanted in ((2, {0, 1}), (None, everything)):
        batches = first_documents(data.scoring_loader("valid"), count)
        assert {int(document) for batch in batches for document in batch["document"]} == wanted
    found = verify(TASK, TransformersEngine(model), model, data, 2, "fp32")
    assert found["quality"]["after"]["documents"] == 2


# -- inside an export --------------------------------------------------------------------------------------------------------


def refused(target: Target) -> list[str]:
    with pytest.raises(UserError) as error:
        export("model", target, Path("out"), validation_data("model", "corpus"))
    assert sorted(path.name for path in Path().iterdir()) == ["checkpoints", "corpus", "model"], "nothing is left"
    return error.value.problems


def test_an_export_that_is_off_is_not_written(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightgpt2.runtime.onnx_recurrent.onnx_decoder", lambda *_: Off(model, 0.2, 0.2))
    found = refused(Target("onnx"))
    assert all(problem.startswith("--format onnx: ") for problem in found)
    assert all(problem.endswith("; nothing was written") for problem in found)
    assert any("greedy tokens" in problem for problem in found)


def test_an_export_that_did_not_shrink_is_not_written(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Onnx, "forms", lambda *_: Forms())
    (problem,) = refused(Target("onnx-int8"))
    assert problem.startswith("--format onnx-int8: its weights take 0.1")
    assert "were expected at most" in problem
