"""The options of a verb, read from the signature of its function; their help, from its docstring."""

import argparse
import inspect
from collections.abc import Callable
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

import docstring_parser

from lightgpt2.cli.checking import typed
from lightgpt2.cli.schema import union
from lightgpt2.errors import Problem, UserError, refuse


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def parse(function: Callable[..., None], args: list[str]) -> dict[str, Any]:
    """The arguments of a verb's function from its command line.

    A parameter is positional unless it is keyword-only. A list takes several values, or none if it has a default; a bool is a
    flag.

    Raises:
        UserError: With every mistake.
    """
    about = docstring_parser.parse(function.__doc__ or "")
    texts = {each.arg_name: " ".join((each.description or "").split()) for each in about.params}
    parser = _Parser(prog=f"lightgpt2 {function.__name__}", description=about.description, allow_abbrev=False)
    problems: list[Problem] = []
    for parameter in inspect.signature(function).parameters.values():
        _add_option(parser, parameter, texts[parameter.name], problems)
    given = vars(parser.parse_args(args))
    refuse(problems)
    return given


def _add_option(parser: _Parser, parameter: inspect.Parameter, text: str, problems: list[Problem]) -> None:
    """Add a parameter to a parser, which collects what is wrong with the values instead of stopping at the first."""
    default, kind = parameter.default, parameter.annotation
    positional = parameter.kind is not parameter.KEYWORD_ONLY
    name = parameter.name if positional else f"--{parameter.name.replace('_', '-')}"
    if kind is bool:
        parser.add_argument(name, action="store_true", help=text)
        return
    if NoneType in get_args(kind):
        kind = union(each for each in get_args(kind) if each is not NoneType)
    several = get_origin(kind) is list
    if several:
        (kind,) = get_args(kind)

    def value(given: str) -> Any:
        try:
            return typed(name, given, kind, f"see {parser.prog} --help")
        except UserError as error:
            problems.extend(error.problems)

    if default not in (parameter.empty, None, []):
        text += f" (default: {' '.join(map(str, default if several else [default]))})"
    many = "+" if default is parameter.empty or not positional else "*"
    options: dict[str, Any] = {"type": value, "help": text, "nargs": many if several else None}
    options["metavar"] = "|".join(get_args(kind)) if get_origin(kind) is Literal else parameter.name.upper()
    if not positional:
        options |= {"required": True} if default is parameter.empty else {"default": default}
    elif default is not parameter.empty:
        options["default"] = default
    parser.add_argument(name, **options)
