"""The fields of a request's JSON: those that are known, of the right type, and no others that would change the answer."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from lightgpt2.errors import cut
from lightgpt2.serve.refusals import Refusal

Field = tuple[str, Callable[[Any], bool]]  # what a value must be, in words; whether it is


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, str) or (_are_texts(value) and len(value) == 2)


def between(least: int, most: int) -> Field:
    """An integer in a range."""
    return f"an integer from {least} to {most}", lambda value: _is_integer(value) and least <= value <= most


TEXT: Field = "text", lambda value: isinstance(value, str)
NUMBER: Field = "a number", lambda value: _is_integer(value) or isinstance(value, float)
INTEGER: Field = "an integer", _is_integer
FLAG: Field = "true or false", lambda value: isinstance(value, bool)
OBJECT: Field = "an object", lambda value: isinstance(value, dict)
LIST: Field = "a list", lambda value: isinstance(value, list)
TEXTS: Field = (
    "text, or a list of 1 to 16 texts",
    lambda value: isinstance(value, str) or (_are_texts(value) and len(value) <= 16),
)
STOPS: Field = "text, or a list of at most 16 texts", lambda value: value == [] or TEXTS[1](value)
PAIRS: Field = (
    "text, or a list of texts and of pairs of texts",
    lambda value: isinstance(value, str) or (isinstance(value, list) and bool(value) and all(map(_is_pair, value))),
)
SESSION: Field = "text of at most 100 characters", lambda value: isinstance(value, str) and len(value) <= 100

# What clients send that changes no answer.
_HARMLESS = {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
             "safety_identifier"}  # fmt: skip
# What is not done, with the values that ask for nothing.
_NOT_DONE: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "best_of": (1,), "echo": (False,),
    "suffix": ("",), "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "modalities": (["text"],), "response_format": ({"type": "text"},),
}  # fmt: skip


def read_fields(body: bytes, known: Mapping[str, Field], needed: str) -> dict[str, Any]:
    """The fields of a JSON object that are not null.

    Raises:
        Refusal: It is no JSON object, `needed` is missing, or a field is unknown or of another type.
    """
    values = _object(body)
    if needed not in values:
        raise Refusal(400, f"{needed}: is missing; give {known[needed][0]}", needed, "missing_field")
    for name, value in values.items():
        if name in known:
            words, fits = known[name]
            if not fits(value):
                raise Refusal(400, f"{name}: must be {words}, got {cut(json.dumps(value))}", name, "invalid_value")
        elif name not in _HARMLESS and not any(value == each for each in _NOT_DONE.get(name, ())):
            what = "is not done here" if name in _NOT_DONE else "is unknown here"
            raise Refusal(
                400, f"{cut(name)}: {what}, and would change the answer; remove it", cut(name), "unknown_field"
            )
    return {name: value for name, value in values.items() if name in known}


def _object(body: bytes) -> dict[str, Any]:
    """A JSON object, without what is null in it."""
    try:
        values = json.loads(body, parse_constant=_no_number)
        json.dumps(values, ensure_ascii=False).encode()  # half of a surrogate pair cannot be answered
    except (ValueError, RecursionError) as error:
        what = "nested too deep" if isinstance(error, RecursionError) else cut(str(error).split(":")[0])
        raise Refusal(400, f"the body must be valid JSON in UTF-8 ({what})", code="invalid_json") from None
    if not isinstance(values, dict):
        raise Refusal(400, "the body must be a JSON object", code="invalid_json")
    return {name: value for name, value in values.items() if value is not None}


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
