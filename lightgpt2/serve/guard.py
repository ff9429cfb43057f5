"""What is checked of every request before anything else, and the headers of every answer."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightgpt2.serve.metrics import Metrics
from lightgpt2.serve.refusals import Gone, Refusal, mistake
from lightgpt2.serve.settings import Settings

OPEN = ("/", "/health")  # which need no key: they say nothing about texts and the model
_DRAINED = 64  # times the largest body: so much of a longer one is read, so that its client gets the answer
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
_METHODS = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Allow-Headers": "Authorization, Content-Type"}


class Guard:
    """Wraps an application: refuses what does not come from whom it should, and counts.

    Args:
        app: The application.
        settings: Whom it answers.
        metrics: Where answers are counted.
        paths: The paths that are counted by name.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, paths: set[str]) -> None:
        self._app, self._settings, self._metrics, self._paths = app, settings, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        start, headers, path = time.monotonic(), Headers(scope=scope), scope["path"]
        origin = headers.get("origin", "")

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in (_HEADERS | self._cors(origin)).items():
                    added.setdefault(name, value)
                scope["lightgpt2.status"] = message["status"]
            await send(message)

        try:
            preflight = scope["method"] == "OPTIONS" and bool(self._cors(origin))
            self._check(headers, origin, path in OPEN or preflight)
            if preflight:
                await Response(status_code=204, headers=_METHODS)(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        except Refusal as refusal:
            await refused(refusal)(scope, receive, answer)
        finally:
            named = path if path in self._paths else "other"
            self._metrics.answered(named, scope.get("lightgpt2.status", 499), time.monotonic() - start)

    def _check(self, headers: Headers, origin: str, is_open: bool) -> None:
        host = _host(headers.get("host", ""))
        if self._settings.hosts is not None and host not in self._settings.hosts:
            raise Refusal(403, "the Host header names another host; ask for 127.0.0.1 or localhost", code="host")
        if origin and not self._cors(origin) and urlsplit(origin).netloc != headers.get("host"):
            raise Refusal(
                403, "pages of other origins may not ask; start the server with --allow-origin", code="origin"
            )
        if self._settings.key is None or is_open:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._settings.key.encode()):
            what = "the API key is missing or wrong; send it as Authorization: Bearer KEY"
            raise Refusal(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _cors(self, origin: str) -> dict[str, str]:
        """The headers that let a page of another origin read the answer."""
        if origin not in self._settings.origins:
            return {}
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def _host(header: str) -> str:
    """The host of a Host header, without its port."""
    name, colon, port = header.lower().rpartition(":")
    return name if colon and port.isdigit() else header.lower()


def refused(refusal: Refusal) -> JSONResponse:
    """The answer to a request that is refused."""
    return JSONResponse(refusal.body, refusal.status, headers=refusal.headers)


async def body_of(request: Request, settings: Settings) -> bytes:
    """The body of a request of JSON.

    Raises:
        Refusal: It is of another type, too large, or takes too long to come; or the client goes away meanwhile.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size <= settings.body:
                    body += part
                elif size > settings.body * _DRAINED:
                    break
    except TimeoutError:
        raise Refusal(408, "the body took too long to come", headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise Gone from None
    if size > settings.body:
        what = f"the body must have at most {settings.body:,} bytes"
        raise Refusal(413, what, headers={"Connection": "close"})
    if kind != "application/json":  # which no form of another site can send
        raise Refusal(415, "the body must be JSON; send Content-Type: application/json")
    return bytes(body)


def safely(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Any]]:
    """An endpoint whose refusals and mistakes are answered; of a mistake, the place is printed, and none of its text."""

    async def call(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Refusal as refusal:
            return refused(refusal)
        except Exception as error:
            return refused(mistake(error))

    return call
