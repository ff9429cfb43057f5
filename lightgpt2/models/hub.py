"""The hub where there is no network: one try of a few seconds, then the local cache alone."""

import os
import sys
import threading
from contextlib import suppress
from functools import cache
from typing import Any

import httpx2
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory

_SECONDS = 3.0


@cache
def try_once() -> None:
    """Let the hub's libraries look at whether it can be reached before their first request, instead of trying for a minute."""
    set_client_factory(_client)


def _client() -> httpx2.Client:
    client = default_client_factory()
    client.event_hooks = {**client.event_hooks, "request": [_look, *client.event_hooks["request"]]}
    return client


def _look(request: Any) -> None:
    """Go offline if the hub does not answer, as HF_HUB_OFFLINE=1 does; the libraries' own hook, which is next, says so."""
    if not constants.is_offline_mode() and not _answers():
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the processes that this one starts
        if "datasets" in sys.modules:  # which has looked already
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True


@cache
def _answers() -> bool:
    """True if the hub answers, whatever it says."""
    found = []

    def ask() -> None:
        with suppress(httpx2.HTTPError, OSError):
            found.append(httpx2.head(constants.ENDPOINT, timeout=_SECONDS))

    thread = threading.Thread(target=ask, daemon=True)  # the search for its address has no time limit
    thread.start()
    thread.join(_SECONDS)
    return bool(found)
