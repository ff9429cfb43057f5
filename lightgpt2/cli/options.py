"""The options of a verb, read from the signature of its function; their help, from its docstring."""

import argparse
import inspect
from collections.abc import Callable
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

import docstring_parser

from lightgpt2.cli.checking import typed
from lightgpt2.cli.schema import union
from lightgpt2.errors import UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def parse(function: Callable[..., None], args: list[str]) -> dict[str, Any]:
    """The arguments of a verb's function from its command line.

    A parameter without default is positional, unless it is keyword-only; a list takes several values; a bool is a flag.

    Args:
        function: The function.
        args: The command line after the verb.

    Raises:
        UserError: With every mistake.
    """
    about = docstring_parser.parse(function.__doc__ or "")
    texts = {each.arg_name: " ".join((each.description or "").split()) for each in about.params}
    parser = _Parser(prog=f"lightgpt2 {function.__name__}", description=about.description, allow_abbrev=False)
    parameters = inspect.signature(function).parameters.values()
    for each in parameters:
        parser.add_argument(_name(each), **_options(each, texts[each.name]))
    given, problems = vars(parser.parse_args(args)), []
    for each in parameters:
        kind, several = _kind(each)
        value = given[each.name]
        if value is each.default or isinstance(value, bool):
            continue
        found = []
        for text in value if several else [value]:
            try:
                found.append(typed(_name(each), text, kind, f"see {parser.prog} --help"))
            except UserError as error:
                problems += error.problems
        given[each.name] = found if several else next(iter(found), None)
    if problems:
        raise UserError(problems)
    return given


def _options(parameter: inspect.Parameter, text: str) -> dict[str, Any]:
    """How argparse takes a parameter."""
    (kind, several), default = _kind(parameter), parameter.default
    if kind is bool:
        return {"action": "store_true", "help": text}
    if default not in (parameter.empty, None, []):
        text += f" (default: {' '.join(map(str, default if several else [default]))})"
    metavar = "|".join(get_args(kind)) if get_origin(kind) is Literal else parameter.name.upper()
    options = {"help": text, "metavar": metavar, "nargs": "+" if several else None}
    if default is not parameter.empty:
        return {**options, "default": default}
    return {**options, "required": True} if _name(parameter).startswith("-") else options


def _name(parameter: inspect.Parameter) -> str:
    positional = parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY
    return parameter.name if positional else f"--{parameter.name.replace('_', '-')}"


def _kind(parameter: inspect.Parameter) -> tuple[Any, bool]:
    """The type of one value of a parameter, and whether it takes several."""
    kind = parameter.annotation
    if NoneType in get_args(kind):
        kind = union(each for each in get_args(kind) if each is not NoneType)
    return (get_args(kind)[0], True) if get_origin(kind) is list else (kind, False)
