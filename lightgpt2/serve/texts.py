"""`/complete`, for the page, and `/v1/classify`."""

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lightgpt2.serve.fields import PAIRS, SESSION, TEXT, between, read_fields
from lightgpt2.serve.generation import Usage
from lightgpt2.serve.service import Service
from lightgpt2.serve.worker import Job

_OF_COMPLETE = {"text": TEXT, "words": between(0, 20), "session": SESSION}
_OF_CLASSIFY = {"input": PAIRS, "model": TEXT}


async def complete(request: Request) -> Response:
    """Answer `POST /complete`: what most likely follows a text that may end inside a word."""
    start, service = time.perf_counter(), request.app.state.service
    values = read_fields(await service.body(request), _OF_COMPLETE, "text")

    def work(job: Job) -> None:
        job.say(service.completer.complete(values["text"], words=values.get("words", 3), stop=job.stop))

    (found,) = [each async for each in service.results(request, work, values.get("session", ""))]
    answer = {"text": found.text, "words": found.words, "probability": found.probability, "model": service.name}
    return JSONResponse({**answer, "ms": round(1000 * (time.perf_counter() - start), 1)})


async def classify(request: Request) -> Response:
    """Answer `POST /v1/classify`: the class of each text, or of each pair of texts."""
    service: Service = request.app.state.service
    values = read_fields(await service.body(request), _OF_CLASSIFY, "input")
    service.check_model(values.get("model"))
    given = [values["input"]] if isinstance(values["input"], str) else values["input"]
    texts = [each if isinstance(each, str) else tuple(each) for each in given]

    def work(job: Job) -> None:
        engine = service.model.engine
        with engine.asking(job.stop):
            rows: list[dict[str, Any]] = service.model.classify(texts)
        job.say([{"index": index, **row} for index, row in enumerate(rows)])
        job.say(Usage(engine.read, 0))

    rows, usage = [each async for each in service.results(request, work)]
    service.count(usage)
    counts = {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt}
    return JSONResponse({"object": "list", "model": service.name, "data": rows, "usage": counts})
