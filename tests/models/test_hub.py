"""Without a network the hub is tried once, and not for long."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lightgpt2.models import hub
from tests.support.cli import ROOT

# A model, a tokenizer and a dataset that no cache holds; the seconds that it takes to say so.
SCRIPT = """
import time
from lightgpt2.data.corpora import Corpus
from lightgpt2.errors import UserError
from lightgpt2.models import loading, tokenizers
import datasets
started = time.monotonic()
for load in (lambda: loading.load_config("nobody/nothing", "model"), lambda: tokenizers.load_tokenizer("nobody/other", "model"),
             lambda: Corpus("nobody/nothing")._hub()):
    try:
        load()
    except UserError as error:
        print(str(error).replace(chr(10), "*"))
print(time.monotonic() - started)
"""


@pytest.fixture
def silent() -> Iterator[str]:
    """A host that takes what it is sent, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("reaches", ["nobody", "silence"])
def test_what_is_not_in_the_cache_is_one_message_within_five_seconds(reaches: str, silent: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": silent if reaches == "silence" else "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    model, tokenizer, data, seconds = done.stdout.splitlines()
    for message, name in ((model, "nothing"), (tokenizer, "other"), (data, "nothing")):
        assert f"'nobody/{name}' could not be loaded from the hub or its local cache" in message
        assert "*" not in message
    assert "Retry" not in done.stderr
    assert float(seconds) < 5


def test_a_hub_that_answers_is_used(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(hub.httpx2, "head", lambda url, timeout: asked.append(url))
    assert hub._answers.__wrapped__()
    assert asked == [hub.constants.ENDPOINT]


def test_a_hub_that_does_not_answer_is_waited_for_a_few_seconds(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "ENDPOINT", silent)
    monkeypatch.setattr(hub, "_SECONDS", 0.2)
    started = time.monotonic()
    assert not hub._answers.__wrapped__()
    assert time.monotonic() - started < 2
