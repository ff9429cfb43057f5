"""The application: its paths, and what each of them answers."""

import base64
import hashlib
import re
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lightgpt2.runtime.language_model import LanguageModel
from lightgpt2.runtime.text_classifier import TextClassifier
from lightgpt2.serve.guard import Guard, refused, safely
from lightgpt2.serve.openai import chats, completions
from lightgpt2.serve.refusals import Refusal
from lightgpt2.serve.service import Service
from lightgpt2.serve.texts import classify, complete

_Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(service: Service) -> ASGIApp:
    """The application that serves a model."""
    posts: dict[str, _Endpoint] = {}
    if isinstance(service.model, TextClassifier):
        posts["/v1/classify"] = classify
    else:
        posts["/v1/completions"] = completions
    if isinstance(service.model, LanguageModel) and service.model.has_template:
        posts["/v1/chat/completions"] = chats
    if service.completer is not None:
        posts["/complete"] = complete
    gets: dict[str, _Endpoint] = {"/health": _health, "/metrics": _metrics, "/v1/models": _models}
    if service.completer is not None:
        gets["/"] = _page(service)
    routes = [Route(path, safely(endpoint), methods=["POST"]) for path, endpoint in posts.items()]
    routes += [Route(path, safely(endpoint), methods=["GET"]) for path, endpoint in gets.items()]
    routes.append(Route("/v1/models/{name:path}", safely(_model), methods=["GET"]))

    async def wrong(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return refused(
                Refusal(404, f"there is no such path with this model; there are {', '.join([*gets, *posts])}")
            )
        allowed = (error.headers or {}).get("Allow", "")
        return refused(
            Refusal(error.status_code, f"the method is not allowed here; use {allowed}", headers=error.headers)
        )

    app = Starlette(routes=routes, exception_handlers={HTTPException: wrong})
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.started = int(time.time())
    return Guard(app, service.settings, service.metrics, {*posts, *gets})


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    waits, runs = service.worker.waiting, service.worker.running
    text = service.metrics.text({"lightgpt2_waiting_requests": waits, "lightgpt2_running_requests": runs})
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def _about(request: Request) -> dict[str, str | int]:
    name, started = request.app.state.service.name, request.app.state.started
    return {"id": name, "object": "model", "created": started, "owned_by": "lightgpt2"}


async def _models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_about(request)]})


async def _model(request: Request) -> Response:
    request.app.state.service.check_model(request.path_params["name"])
    return JSONResponse(_about(request))


def _page(service: Service) -> _Endpoint:
    """The page, with a policy that lets nothing run in it but its own script."""
    text = files("lightgpt2.serve").joinpath("page.html").read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    policy = f"default-src 'none'; connect-src 'self'; script-src {hashes('script')}; style-src {hashes('style')}; "
    policy += "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

    async def page(_: Request) -> Response:
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    return page
