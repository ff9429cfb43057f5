"""Classifiers, summarizers and character models are served too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import lightgpt2
from lightgpt2.runtime.completion import Completer
from lightgpt2.runtime.language_model import LanguageModel
from lightgpt2.serve.app import make_app
from lightgpt2.serve.service import Service
from lightgpt2.serve.settings import Settings
from tests.serve.conftest import URL
from tests.support.models import write_classifier, write_letters, write_seq2seq


def client_of(model: Any, completer: Completer | None = None) -> Iterator[TestClient]:
    service = Service("tiny", model, Settings(), completer)
    yield TestClient(make_app(service), base_url=URL)
    service.worker.close()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lightgpt2.load(write_classifier(tmp_path_factory.mktemp("classifier")))


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lightgpt2.load(write_seq2seq(tmp_path_factory.mktemp("writer"), "bart"))


def test_texts_are_classified(classifier: Any) -> None:
    for client in client_of(classifier):
        texts: list[Any] = ["a text", ["a text", "and another"]]
        found = client.post("/v1/classify", json={"input": texts, "model": "tiny"}).json()
        wanted = classifier.classify(["a text", ("a text", "and another")])
        assert found["data"] == [{"index": index, **row} for index, row in enumerate(wanted)]
        assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] > 8
        assert client.post("/v1/classify", json={"input": "a text"}).json()["data"][0]["index"] == 0
        for wrong in ([], [1], [["a", "b", "c"]], "", {"text": "x"}):
            error = client.post("/v1/classify", json={"input": wrong})
            assert (error.status_code, error.json()["error"]["type"]) == (400, "invalid_request_error")
        assert client.post("/v1/completions", json={"prompt": "x"}).status_code == 404
        assert client.get("/").status_code == 404, "there is no page without completions"


@pytest.mark.parametrize("options", [{}, {"num_beams": 2, "length_penalty": 0.5}])
def test_texts_are_summarized(writer: Any, options: dict[str, Any]) -> None:
    for client in client_of(writer):
        asked: dict[str, Any] = {
            "prompt": "The assert statement inserts assertions.",
            "max_tokens": 7,
            "seed": 0,
            **options,
        }
        found = client.post("/v1/completions", json=asked).json()
        wanted = writer.generate(asked["prompt"], max_new_tokens=7, **options)
        assert found["choices"][0]["text"] == wanted
        assert found["usage"]["prompt_tokens"] == len(writer.tokenizer.encode(asked["prompt"]).ids)
        assert found["usage"]["completion_tokens"] > 0
        wrong = client.post("/v1/completions", json=asked | {"num_beams": 2, "logprobs": 1})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "logprobs")
        messages = {"messages": [{"role": "user", "content": "x"}]}
        assert client.post("/v1/chat/completions", json=messages).status_code == 404


def test_a_character_model_is_served_alone_and_for_partial_words(model: LanguageModel, tmp_path: Path) -> None:
    letters: Any = lightgpt2.load(write_letters(tmp_path))
    asked: dict[str, Any] = {"text": "The assert sta", "words": 2}
    prompt = {"prompt": "The assert sta", "max_tokens": 9, "temperature": 0}
    found = []
    for served, partial in ((letters, None), (model, letters), (model, None)):
        completer = Completer(served, partial)
        done = completer.complete(**asked)
        for client in client_of(served, completer):
            answer = client.post("/complete", json=asked).json()
            assert (tuple(answer["words"]), answer["probability"]) == (done.words, done.probability)
            text = client.post("/v1/completions", json=prompt).json()["choices"][0]["text"]
            assert text == served.generate(prompt["prompt"], max_new_tokens=9, temperature=0.0)
        found.append((done.words[0], done.probability))
    assert found[1][0] == found[0][0], "the partial word is the character model's"
    assert len({probability for _, probability in found}) == 3
