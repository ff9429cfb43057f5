"""The server's process: its socket, its signals, and connections that come to nothing."""

import asyncio
import contextlib
import errno
import ipaddress
import json
import socket
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from lightgpt2 import signals
from lightgpt2.errors import Problem, UserError
from lightgpt2.serve.refusals import Refusal
from lightgpt2.serve.worker import Worker

_SLOW = 10.0  # seconds that a request's head, or room for more of an answer, may take to come
_CONNECTIONS = 500


class _Connection(H11Protocol):
    """A connection that is closed when its client is too slow to send a request's head, or to take an answer."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > _CONNECTIONS:
            self._refuse(Refusal(429, "too many connections; try again later", headers={"Retry-After": "5"}))
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._timer is None:
            self._start_timer()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Refusal(400, "the request is no valid HTTP, or its head is too long", code="invalid_http"))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer what is no request that the application could, and close."""
        body = json.dumps(refusal.body).encode()
        headers = {
            **refusal.headers,
            "Content-Type": "application/json",
            "Content-Length": len(body),
            "Connection": "close",
        }
        lines = [f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(_SLOW, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """A server that ends what is computed when it is asked to stop.

    Args:
        app: The application.
        worker: What computes.
    """

    def __init__(self, app: ASGIApp, worker: Worker) -> None:
        options: dict[str, Any] = {"http": _Connection, "ws": "none", "loop": "asyncio", "lifespan": "off"}
        options |= {"log_config": None, "log_level": "critical", "access_log": False, "server_header": False}
        super().__init__(uvicorn.Config(app, proxy_headers=False, timeout_graceful_shutdown=5, **options))
        self._worker = worker

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at Ctrl-C, SIGTERM and SIGHUP, and end the process as one that has done its work."""
        handlers = signals.on_request(self.handle_exit)
        try:
            yield
        finally:
            signals.restore(handlers)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.close()
        await super().shutdown(sockets)


def bound(host: str, port: int) -> socket.socket:
    """A socket with an address, which nobody can connect to yet.

    Raises:
        UserError: There is no such host, or the port is not free.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError([Problem("--host", f"{host} is no address ({error})", "give 127.0.0.1, or another")]) from None
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
    except OSError as error:
        found.close()
        raise _not_free(error, host, port) from None
    return found


def _not_free(error: OSError, host: str, port: int) -> UserError:
    if error.errno == errno.EADDRINUSE:
        fix = f"stop it, or give another one: --port {port + 1 if port < 65535 else port - 1}"
        return UserError([Problem("--port", f"another process listens on {host}, port {port}", fix)])
    if error.errno == errno.EACCES:
        return UserError([Problem("--port", f"port {port} is for the system", "give one from 1024 on")])
    return UserError([Problem("--host", f"{host} is no address of this machine ({error.strerror})", "give 127.0.0.1")])


def listen(found: socket.socket) -> None:
    """Let clients connect; they wait until the server answers."""
    try:
        found.listen(1024)
    except OSError as error:  # of two servers that started together
        raise _not_free(error, *found.getsockname()[:2]) from None


def is_loopback(found: socket.socket) -> bool:
    """True if only this machine can connect."""
    return ipaddress.ip_address(found.getsockname()[0].partition("%")[0]).is_loopback
