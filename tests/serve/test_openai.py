"""OpenAI's endpoints: what the model says, in the forms that their client reads."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from starlette.testclient import TestClient
from tokenizers import Tokenizer

from lightgpt2.models.chat import ChatTemplate
from lightgpt2.runtime.language_model import LanguageModel
from lightgpt2.serve.service import Service
from tests.support.chats import SPECIAL, TEMPLATES
from tests.support.serving import markov, running

PROMPT = "The assert statement"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def served(tokenizer: Tokenizer) -> Iterator[tuple[openai.OpenAI, LanguageModel]]:
    """The official client of a server, and the same model beside it."""
    template = ChatTemplate(TEMPLATES["ChatML"][0], SPECIAL)
    with running(markov(tokenizer, template=template), key="secret") as (url, _):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0), markov(tokenizer, template=template)


def test_the_official_client_gets_what_the_model_says(served: tuple[openai.OpenAI, LanguageModel]) -> None:
    client, model = served
    (about,) = client.models.list()
    assert about.id == client.models.retrieve("tiny").id == "tiny"
    settings: Any = {"max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "seed": 5}
    wanted = model.generate(PROMPT, max_new_tokens=9, temperature=0.7, top_p=0.9, seed=5, top_k=0)
    whole = client.completions.create(model="tiny", prompt=PROMPT, **settings)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (wanted, "length")
    assert whole.usage
    read = len(model.tokenizer.encode(PROMPT).ids)
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (read, 9, read + 9)
    chunks = [*client.completions.create(
        model="tiny", prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **settings
    )]  # fmt: skip
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == wanted
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert len(chunks) > 3, "it comes in pieces"
    assert chunks[-1].usage == whole.usage


def test_the_official_client_chats(served: tuple[openai.OpenAI, LanguageModel]) -> None:
    client, model = served
    wanted = model.chat(HELLO, max_new_tokens=8, temperature=0)
    whole = client.chat.completions.create(
        model="tiny", messages=HELLO, max_completion_tokens=8, temperature=0, top_p=1
    )
    assert (whole.choices[0].message.role, whole.choices[0].message.content) == ("assistant", wanted)
    chunks = [*client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=8, temperature=0, stream=True)]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(served: tuple[openai.OpenAI, LanguageModel]) -> None:
    client, model = served
    text = model.generate(PROMPT, max_new_tokens=12, temperature=0)
    stop = text[6:8]
    cut = text.partition(stop)[0]
    whole = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, temperature=0, stop=stop, logprobs=0)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (cut, "stop")
    told = whole.choices[0].logprobs
    assert told
    assert told.tokens
    assert "".join(told.tokens).startswith(cut)
    chunks = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=12, temperature=0, stop=[stop], stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == cut


def test_errors_are_those_of_the_official_client(served: tuple[openai.OpenAI, LanguageModel]) -> None:
    client, _ = served
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="x")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="temperature: must be at least 0") as wrong:
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt="word " * 300, stream=True)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_the_same_seed_gives_the_same_texts_and_each_of_n_is_another(client: TestClient, model: LanguageModel) -> None:
    asked = {"prompt": [PROMPT, "x"], "n": 3, "seed": 4, "max_tokens": 6}
    first, second = (client.post("/v1/completions", json=asked).json() for _ in range(2))
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in second["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [*range(6)]
    assert len({*texts[:3]}) == 3
    assert first["usage"]["completion_tokens"] == 36
    random = {client.post("/v1/completions", json={"prompt": "x"}).json()["choices"][0]["text"] for _ in range(3)}
    assert len(random) == 3, "without a seed each answer is another"


@pytest.mark.parametrize("stream", [False, True])
def test_probabilities_are_those_of_the_model(client: TestClient, service: Service, stream: bool) -> None:
    """Before penalties, the temperature and the nucleus; in the forms of both endpoints."""
    asked = {
        "repetition_penalty": 1.5,
        "prompt": PROMPT,
        "max_tokens": 5,
        "temperature": 0.3,
        "top_p": 0.5,
        "seed": 1,
        "logprobs": 2,
        "stream": stream,
    }
    found = client.post("/v1/completions", json=asked)
    parts = [each["choices"][0]["logprobs"] for each in (events(found.text) if stream else [found.json()])]
    told: dict[str, list[Any]] = {key: [x for part in parts if part for x in part[key] or []] for key in parts[0]}
    table = service.model.engine.table.astype(np.float64)
    ids = [service.model.tokenizer.encode(PROMPT).ids[-1]]
    for logprob, top in zip(told["token_logprobs"], told["top_logprobs"], strict=True):
        row = table[ids[-1]] - np.log(np.exp(table[ids[-1]]).sum())
        ids.append(int(np.abs(row - logprob).argmin()))
        assert math.isclose(row[ids[-1]], logprob, abs_tol=1e-5)
        best = np.sort(row)[::-1][:2]
        assert all(any(math.isclose(value, each, abs_tol=1e-5) for value in top.values()) for each in best)
    assert len(ids) == 6
    chat = {"messages": HELLO, "max_tokens": 3, "logprobs": True, "top_logprobs": 1, "seed": 1}
    content = client.post("/v1/chat/completions", json=chat).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 3
    assert all(
        len(each["top_logprobs"]) == 1 and each["logprob"] <= each["top_logprobs"][0]["logprob"] for each in content
    )


def events(text: str) -> list[dict[str, Any]]:
    """The values of server-sent events, of which the last one is `[DONE]`."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_what_changes_no_answer_is_ignored(client: TestClient) -> None:
    harmless = {"user": "me", "logit_bias": {}, "frequency_penalty": 0, "presence_penalty": 0.0, "best_of": 1, "echo": False,
                "suffix": None, "stream_options": None, "store": True}  # fmt: skip
    plain, same = (client.post("/v1/completions", json={"prompt": "x", "seed": 1, **more}) for more in ({}, harmless))
    assert same.status_code == 200
    assert same.json()["choices"] == plain.json()["choices"]


def test_a_text_of_a_user_is_completed(client: TestClient) -> None:
    found = client.post("/complete", json={"text": "The assert sta", "words": 2, "session": "a"}).json()
    assert found["text"] == "".join(found["words"])
    assert 0 <= found["probability"] <= 1
    assert found["model"] == "tiny"
    assert found["ms"] >= 0
