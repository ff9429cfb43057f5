"""Bad input and abuse: each is answered with a clear status and an error as OpenAI's clients read it, or ends quietly."""

import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from starlette.testclient import TestClient
from tokenizers import Tokenizer

from lightgpt2.serve import server
from lightgpt2.serve.app import make_app
from lightgpt2.serve.service import Service
from lightgpt2.serve.settings import Settings
from tests.serve.conftest import URL
from tests.support.serving import Parrot, markov, running

JSON = {"Content-Type": "application/json"}
SECRET = "nobody else may read this"


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code"),
    [
        ("completions", b"{", 400, None, "invalid_json"),
        ("completions", b"\xff\xfe", 400, None, "invalid_json"),
        ("completions", b"[" * 100_000, 400, None, "invalid_json"),
        ("completions", b'{"prompt": "x", "temperature": NaN}', 400, None, "invalid_json"),
        ("completions", b'{"prompt": "\\ud800"}', 400, None, "invalid_json"),
        ("completions", b"[]", 400, None, "invalid_json"),
        ("completions", b"", 400, None, "invalid_json"),
        ("completions", {}, 400, "prompt", "missing_field"),
        ("completions", {"prompt": None}, 400, "prompt", "missing_field"),
        ("completions", {"prompt": ""}, 400, "prompt", None),
        ("completions", {"prompt": [1, 2, 3]}, 400, "prompt", "invalid_value"),
        ("completions", {"prompt": ["x"] * 17}, 400, "prompt", "invalid_value"),
        ("completions", {"prompt": ["x"] * 9, "n": 2}, 400, "n", "invalid_value"),
        ("completions", {"prompt": "word " * 300}, 400, "prompt", "context_length_exceeded"),
        ("completions", {"prompt": "x", "model": "gpt-4"}, 404, "model", "model_not_found"),
        ("completions", {"prompt": "x", "temperature": -1}, 400, "temperature", None),
        ("completions", {"prompt": "x", "temperature": "hot"}, 400, "temperature", "invalid_value"),
        ("completions", {"prompt": "x", "temperature": True}, 400, "temperature", "invalid_value"),
        ("completions", b'{"prompt": "x", "temperature": 1e999}', 400, "temperature", None),
        ("completions", {"prompt": "x", "top_p": 0}, 400, "top_p", None),
        ("completions", {"prompt": "x", "max_tokens": 0}, 400, "max_tokens", None),
        ("completions", {"prompt": "x", "max_tokens": 1.5}, 400, "max_tokens", "invalid_value"),
        ("completions", {"prompt": "x", "stop": [""]}, 400, "stop", None),
        ("completions", {"prompt": "x", "stop": [1]}, 400, "stop", "invalid_value"),
        ("completions", {"prompt": "x", "seed": -1}, 400, "seed", None),
        ("completions", {"prompt": "x", "n": 99}, 400, "n", "invalid_value"),
        ("completions", {"prompt": "x", "logprobs": True}, 400, "logprobs", "invalid_value"),
        ("completions", {"prompt": "x", "stream": "yes"}, 400, "stream", "invalid_value"),
        ("completions", {"prompt": "x", "num_beams": 4}, 400, "num_beams", None),
        ("completions", {"prompt": "x", "logit_bias": {"5": 9}}, 400, "logit_bias", "unknown_field"),
        ("completions", {"prompt": "x", "presence_penalty": 1}, 400, "presence_penalty", "unknown_field"),
        ("completions", {"prompt": "x", "temprature": 1}, 400, "temprature", "unknown_field"),
        ("chat/completions", {"messages": []}, 400, "messages", "invalid_value"),
        ("chat/completions", {"messages": "hi"}, 400, "messages", "invalid_value"),
        ("chat/completions", {"messages": [{"role": "user"}]}, 400, "messages", "invalid_value"),
        ("chat/completions", {"messages": [{"role": "king", "content": "x"}]}, 400, "messages", "invalid_value"),
        ("chat/completions", {"messages": [{"role": "user", "content": "word " * 300}], "n": 2}, 400, "messages",
         "context_length_exceeded"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, 400, "tools", "unknown_field"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "top_logprobs": 1}, 400, "top_logprobs",
         "invalid_value"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_by_its_field(
    client: TestClient, path: str, body: Any, status: int, param: str | None, code: str | None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = client.post(f"/v1/{path}", content=content, headers=JSON)
    assert found.status_code == status
    error = found.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code)
    assert len(error["message"]) > 10
    assert "\n" not in error["message"]


def test_other_paths_and_methods_are_errors_in_json(client: TestClient) -> None:
    for path in ("/../../etc/passwd", "/page.html", "/static/x", "/v1", "/%2e%2e/app.py", "/complete/"):
        found = client.get(path)
        assert (found.status_code, found.json()["error"]["code"]) == (404, "not_found")
    wrong = client.get("/v1/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"], wrong.headers["allow"]) == (
        405,
        "method_not_allowed",
        "POST",
    )
    assert client.post("/v1/classify", json={"input": "x"}).status_code == 404, "it is no classifier"
    assert client.get("/v1/models/other").status_code == 404


def test_a_body_of_another_type_or_of_10_mb_is_refused(client: TestClient) -> None:
    assert client.post("/v1/completions", data={"prompt": "x"}).status_code == 415, "as forms of other sites send it"
    found = client.post("/v1/completions", json={"prompt": "x" * 10_000_000})
    assert (found.status_code, found.json()["error"]["code"]) == (413, "too_large")


def test_pages_of_other_origins_and_other_hosts_get_nothing(client: TestClient, service: Service) -> None:
    asked: Any = {"url": "/v1/completions", "json": {"prompt": "x"}}
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9"):
        found = client.post(**asked, headers={"Origin": origin})
        assert (found.status_code, found.json()["error"]["code"]) == (403, "origin")
        assert client.options(asked["url"], headers={"Origin": origin}).status_code == 403
    own = client.post(**asked, headers={"Origin": URL})
    assert own.status_code == 200
    assert not [name for name in own.headers if name.startswith("access-control")]
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        found = client.post(**asked, headers={"Host": host})  # a name that an attacker lets point here
        assert (found.status_code, found.json()["error"]["code"]) == (403, "host")
    assert client.post(**asked, headers={"Host": "[::1]:8000"}).status_code == 200
    friends = Service("tiny", service.model, Settings(origins=("https://friend.example",)))
    other, friend = TestClient(make_app(friends), base_url=URL), {"Origin": "https://friend.example"}
    assert other.post(**asked, headers=friend).headers["access-control-allow-origin"] == friend["Origin"]
    preflight = other.options(asked["url"], headers=friend | {"Access-Control-Request-Method": "POST"})
    assert (preflight.status_code, preflight.headers["access-control-allow-methods"]) == (204, "GET, POST")
    assert other.post(**asked, headers={"Origin": "https://friend.example.evil"}).status_code == 403
    friends.worker.close()


def test_a_key_protects_all_but_the_page_and_the_health(service: Service) -> None:
    keyed = Service("tiny", service.model, Settings(key="secret", hosts=None), service.completer)
    client = TestClient(make_app(keyed), base_url="http://anywhere")
    for path in ("/metrics", "/v1/models", "/nowhere"):
        found = client.get(path)
        assert (found.status_code, found.json()["error"]["type"]) == (401, "authentication_error")
    for wrong in ("Bearer", "Bearer secrets", "Basic secret", "Bearer sécret"):
        headers = {"Authorization": wrong.encode(), "Access-Control-Request-Method": "POST"}
        assert client.post("/complete", json={"text": "x"}, headers=headers).status_code == 401
    assert client.post("/complete", json={"text": "x"}, headers={"Authorization": "bearer secret"}).status_code == 200
    assert client.get("/health").status_code == client.get("/").status_code == 200
    keyed.worker.close()


def test_every_answer_is_stored_nowhere_and_the_page_runs_its_own_script_only(client: TestClient) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in page.text.split("<script>")[1].replace("http-equiv", "")
    assert {each.headers["cache-control"] for each in (page, client.get("/health"))} == {"no-store"}


def test_a_mistake_of_the_server_is_answered_and_nothing_of_the_text_is_printed(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError(SECRET)

    assert client.post("/v1/completions", json={"prompt": SECRET}).status_code == 200
    assert client.post("/v1/completions", json={"prompt": SECRET, "temperature": -1}).status_code == 400
    monkeypatch.setattr(service.model.engine._engine, "decode", broken)
    found = client.post("/v1/completions", json={"prompt": SECRET})
    assert (found.status_code, found.json()["error"]["type"]) == (500, "server_error")
    assert SECRET not in found.text
    said = "".join(capfd.readouterr())
    assert "KeyError in" in said
    assert SECRET not in said
    assert SECRET not in client.get("/metrics").text


# -- over real connections ---------------------------------------------------------------------------------------------


@pytest.fixture
def slow(tokenizer: Tokenizer) -> Iterator[tuple[str, Service]]:
    """A server whose model takes 20 ms for a token."""
    with running(
        markov(tokenizer, 0.02), Parrot("the quick brown fox", lambda text: 5.0 * (text == "the q")), body_seconds=0.3
    ) as found:
        yield found


def address_of(url: str) -> tuple[str, int]:
    return "127.0.0.1", int(url.rpartition(":")[2])


def request(values: dict[str, Any]) -> bytes:
    body = json.dumps(values)
    lines = ["POST /v1/completions HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {JSON['Content-Type']}"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", body]).encode()


def until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_the_work_ends_with_its_client(slow: tuple[str, Service], stream: bool) -> None:
    url, service = slow
    with socket.create_connection(address_of(url)) as client:
        client.sendall(request({"prompt": "x", "max_tokens": 100, "stream": stream}))
        until(lambda: service.model.engine.steps > 3)
        if stream:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
    until(lambda: not service.worker.running)
    assert service.model.engine.steps < 60
    assert httpx.get(f"{url}/health").status_code == 200


def test_a_client_that_goes_away_while_it_sends_is_no_mistake(
    slow: tuple[str, Service], capsys: pytest.CaptureFixture[str]
) -> None:
    url, service = slow
    with socket.create_connection(address_of(url)) as client:
        client.sendall(request({"prompt": "x"})[:-1])
        assert httpx.get(f"{url}/health").status_code == 200, "and the server has seen its head"
    until(lambda: 'path="/v1/completions",status="499"' in httpx.get(f"{url}/metrics").text)
    assert capsys.readouterr().err == ""
    assert service.model.engine.steps == 0


def test_a_client_that_is_slow_to_send_is_let_go(slow: tuple[str, Service], monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = slow
    monkeypatch.setattr(server, "_SLOW", 0.3)
    address = address_of(url)
    with socket.create_connection(address) as head, socket.create_connection(address) as body:
        head.sendall(b"GET /health HTTP/1.1\r\nHost: 127")
        body.sendall(request({"prompt": "x"})[:-1])
        head.settimeout(5)
        body.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert head.recv(100) == b""
        assert body.recv(100).startswith(b"HTTP/1.1 408")


def test_a_client_that_never_reads_holds_nobody_up(slow: tuple[str, Service]) -> None:
    url, _ = slow
    with socket.create_connection(address_of(url)) as client:
        client.sendall(request({"prompt": "x", "max_tokens": 20, "stream": True}))
        assert httpx.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 2}, timeout=5).status_code == 200


def test_200_connections_at_once_are_all_answered(tokenizer: Tokenizer) -> None:
    """With 200 or 429 and the time to wait; none is dropped, and what waits is bounded."""
    limits = httpx.Limits(max_connections=200)
    with (
        running(markov(tokenizer, 0.001), waiting=50) as (url, service),
        httpx.Client(limits=limits, verify=False, timeout=30) as client,
    ):

        def ask(_: int) -> tuple[int, Any]:
            found = client.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 3, "seed": 1})
            if found.status_code == 429:
                assert int(found.headers["retry-after"]) >= 1
                assert found.json()["error"]["type"] == "rate_limit_error"
            return found.status_code, found.json().get("choices")

        with ThreadPoolExecutor(200) as pool:
            found = [*pool.map(ask, range(200))]
        counts = Counter(status for status, _ in found)
        assert {*counts} == {200, 429}
        assert counts[200] >= 50
        assert len({json.dumps(choices) for status, choices in found if status == 200}) == 1
        assert service.worker.waiting == service.worker.running == 0


def test_more_connections_than_are_allowed_hear_so(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_CONNECTIONS", 3)
    with running(markov(tokenizer)) as (url, _), contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(address_of(url))) for _ in range(4)]
        held[-1].settimeout(5)
        head, _, body = held[-1].recv(1000).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429")
        assert json.loads(body)["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize("head", [b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000, b"\x16\x03\x01\x02"])
def test_what_is_no_http_is_an_error_too(slow: tuple[str, Service], head: bytes) -> None:
    with socket.create_connection(address_of(slow[0])) as client:
        client.settimeout(5)
        client.sendall(head + b"\r\n\r\n")
        said, _, body = client.recv(1000).partition(b"\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 400 Bad Request")
        assert json.loads(body)["error"]["code"] == "invalid_http"


def test_a_later_request_of_a_session_ends_the_one_before(slow: tuple[str, Service]) -> None:
    url, service = slow
    with ThreadPoolExecutor() as pool:

        def ask(text: str) -> Any:
            return httpx.post(f"{url}/complete", json={"text": text, "session": "me"}, timeout=10)

        first = pool.submit(ask, "the q")
        until(lambda: service.worker.running)
        second = pool.submit(ask, "the qu")
        assert first.result().status_code == 409
        assert second.result().json()["text"] == "ick brown fox"


def test_an_answer_ends_at_the_time_limit(tokenizer: Tokenizer) -> None:
    with running(markov(tokenizer, 0.02), seconds=0.3) as (url, _):
        found = httpx.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 100}, timeout=10).json()
    assert found["choices"][0]["finish_reason"] == "length"
    assert 0 < found["usage"]["completion_tokens"] < 30


def test_what_runs_ends_with_the_server(tokenizer: Tokenizer) -> None:
    with running(markov(tokenizer, 0.02)) as (url, service), ThreadPoolExecutor() as pool:
        answer = pool.submit(httpx.post, f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 100}, timeout=10)
        until(lambda: service.model.engine.steps > 3)
        threading.Timer(0.1, service.worker.close).start()
        assert answer.result().status_code == 503
        assert service.model.engine.steps < 60


def test_no_file_of_the_folder_is_served(client: TestClient) -> None:
    names = [path.name for path in Path(server.__file__).parent.iterdir()]
    assert "page.html" in names
    assert all(client.get(f"/{name}").status_code == 404 for name in names)
