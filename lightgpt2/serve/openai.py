"""`/v1/completions` and `/v1/chat/completions`: what a client asks for, as a generation, and its answer."""

import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from lightgpt2.errors import UserError
from lightgpt2.models.chat import message_problem
from lightgpt2.runtime.options import resolve
from lightgpt2.runtime.text_to_text import TextToText
from lightgpt2.serve.fields import FLAG, INTEGER, LIST, NUMBER, OBJECT, STOPS, TEXT, TEXTS, Field, between, read_fields
from lightgpt2.serve.forms import CHAT, COMPLETION, Answer, Form
from lightgpt2.serve.generation import Generation, Usage
from lightgpt2.serve.refusals import Refusal, mistake, refusal_of
from lightgpt2.serve.service import Service

_MOST = 16  # texts that one request may ask for
_EVENTS = {"X-Accel-Buffering": "no"}  # a proxy must not collect them

# Fields by the names of the runtime's options. OpenAI's own are the first five.
_OPTIONS = {
    "max_tokens": "max_new_tokens", "temperature": "temperature", "top_p": "top_p", "stop": "stop", "seed": "seed",
    "top_k": "top_k", "repetition_penalty": "repetition_penalty", "no_repeat_ngram": "no_repeat_ngram",
    "min_tokens": "min_new_tokens", "num_beams": "num_beams", "length_penalty": "length_penalty",
}  # fmt: skip
_FIELDS: Mapping[str, Field] = {
    "model": TEXT, "max_tokens": INTEGER, "temperature": NUMBER, "top_p": NUMBER, "stop": STOPS, "seed": INTEGER,
    "n": between(1, _MOST), "stream": FLAG, "stream_options": OBJECT, "top_k": INTEGER, "repetition_penalty": NUMBER,
    "no_repeat_ngram": INTEGER, "min_tokens": INTEGER, "num_beams": between(1, _MOST), "length_penalty": NUMBER,
}  # fmt: skip
_OF_COMPLETIONS = {**_FIELDS, "prompt": TEXTS, "logprobs": between(0, 20)}
_OF_CHATS = {
    **_FIELDS,
    "messages": LIST,
    "max_completion_tokens": INTEGER,
    "logprobs": FLAG,
    "top_logprobs": between(0, 20),
}


@dataclass(frozen=True)
class _Asked:
    """What a client asks for."""

    form: Form
    work: Generation
    texts: int
    scored: bool
    streams: bool
    with_usage: bool


async def completions(request: Request) -> Response:
    """Answer `POST /v1/completions`."""
    service: Service = request.app.state.service
    values = read_fields(await service.body(request), _OF_COMPLETIONS, "prompt")
    prompts = [values["prompt"]] if isinstance(values["prompt"], str) else values["prompt"]
    # OpenAI's default. A model that writes the text of a text is asked for all of it.
    default = {} if isinstance(service.model, TextToText) else {"max_tokens": 16}
    return await _answer(
        request, service, _asked(service, COMPLETION, default | values, prompts, values.get("logprobs"))
    )


async def chats(request: Request) -> Response:
    """Answer `POST /v1/chat/completions`."""
    service: Service = request.app.state.service
    values = read_fields(await service.body(request), _OF_CHATS, "messages")
    if "max_completion_tokens" in values:
        values["max_tokens"] = values["max_completion_tokens"]
    if wrong := message_problem(values["messages"], reply=True):
        raise Refusal(400, f"messages: {wrong}", "messages", "invalid_value")
    top = values.get("top_logprobs")
    if top is not None and not values.get("logprobs"):
        raise Refusal(400, "top_logprobs: needs logprobs; set it to true", "top_logprobs", "invalid_value")
    top = (top or 0) if values.get("logprobs") else None
    return await _answer(request, service, _asked(service, CHAT, values, [values["messages"]], top))


def _asked(service: Service, form: Form, values: Mapping[str, Any], prompts: list[Any], top: int | None) -> _Asked:
    """A request as a generation, checked as far as that needs no model."""
    service.check_model(values.get("model"))
    each = values.get("n", 1)
    if each * len(prompts) > _MOST:
        raise Refusal(400, f"n: at most {_MOST} texts in one request, got {each * len(prompts)}", "n", "invalid_value")
    options = {name: values[field] for field, name in _OPTIONS.items() if field in values}
    if isinstance(service.model, TextToText):
        settings = {"seed": secrets.randbits(32)} | options
        if top is not None and options.get("num_beams", 1) > 1:
            raise Refusal(400, "logprobs: beams have none; remove it, or num_beams", "logprobs", "invalid_value")
    else:
        settings = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": secrets.randbits(32)} | options
    if settings.get("temperature") == 0:  # where both change nothing
        settings = {name: value for name, value in settings.items() if name not in ("top_k", "top_p")}
    try:
        resolve(settings, {"do_sample": True})
    except UserError as error:
        raise refusal_of(error) from None
    texts = [prompt for prompt in prompts for _ in range(each)]
    work = Generation(service.model, texts, {**settings, "batch_size": _MOST}, top, form.prompt)
    with_usage = bool(values.get("stream_options", {}).get("include_usage"))
    return _Asked(form, work, len(texts), top is not None, values.get("stream", False), with_usage)


async def _answer(request: Request, service: Service, asked: _Asked) -> Response:
    """The answer, whole or in events. What can be refused is refused before the first of them."""
    answer = Answer(asked.form, service.name, asked.texts, asked.scored)
    said = service.results(request, asked.work)
    first = await anext(said)
    if asked.streams:
        events = _events(service, answer, first, said, asked.with_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers=_EVENTS)
    answer.take(first)
    async for each in said:
        answer.take(each)
    service.count(answer.usage)
    return JSONResponse(answer.whole())


async def _events(
    service: Service, answer: Answer, first: Any, said: AsyncGenerator[Any, None], with_usage: bool
) -> AsyncIterator[str]:
    """The answer as server-sent events; an error is one of them, too."""

    def event(value: dict[str, Any]) -> str:
        return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"

    each = first
    try:
        while True:
            for chunk in [] if isinstance(each, Usage) else answer.chunks(each):
                yield event(chunk)
            answer.take(each)
            try:
                each = await anext(said)
            except StopAsyncIteration:
                break
        if with_usage:
            yield event(answer.last())
        yield "data: [DONE]\n\n"
    except Refusal as refusal:
        yield event(refusal.body)
    except Exception as error:
        yield event(mistake(error).body)
    finally:
        service.count(answer.usage)
        await said.aclose()
