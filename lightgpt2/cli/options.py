"""The options of a verb, read from the signature of its function; their help, from its docstring."""

import argparse
import inspect
from collections.abc import Callable
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import docstring_parser
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from lightgpt2.cli.checking import describe, fits
from lightgpt2.errors import Problem, UserError


def parse(function: Callable[..., None], args: list[str]) -> Namespace:
    """The arguments of a verb's function from its command line.

    A parameter without default is positional, unless it is keyword-only; a list takes several values; a bool is a flag.

    Args:
        function: The function.
        args: The command line after the verb.

    Raises:
        UserError: With every mistake.
    """
    page = f"see lightgpt2 {function.__name__} --help"
    try:
        return _parser(function, typed=True).parse_args(args)
    except ArgumentError as error:
        try:
            given = _parser(function, typed=False).parse_args(args)
        except ArgumentError as wrong:
            raise UserError(f"{str(wrong.message).removeprefix('argument ').strip()}; {page}") from wrong
        problems = []
        for parameter in inspect.signature(function).parameters.values():
            kind, _ = _kind(parameter)
            values = given[parameter.name]
            for value in values if isinstance(values, list) else [values]:
                if value is not parameter.default and not fits(value, kind):
                    problems.append(
                        Problem(
                            _name(parameter), f"must be {describe(kind).removesuffix(' or null')}, got {value!r}", page
                        )
                    )
        raise UserError(problems or f"{error.message}; {page}") from error


def _parser(function: Callable[..., None], typed: bool) -> ArgumentParser:
    """The parser of a verb; untyped, every value is text."""
    about = docstring_parser.parse(function.__doc__ or "")
    texts = {each.arg_name: " ".join((each.description or "").split()) for each in about.params}
    parser = ArgumentParser(prog=f"lightgpt2 {function.__name__}", description=about.description, exit_on_error=False)
    parser.formatter_class = argparse.HelpFormatter  # jsonargparse's own repeats types and defaults in Python's words
    for parameter in inspect.signature(function).parameters.values():
        kind, several = _kind(parameter)
        name, default = _name(parameter), parameter.default
        options: dict[str, Any] = {"help": texts[parameter.name]}
        if parameter.annotation is bool:
            parser.add_argument(name, action="store_true", **options)
            continue
        if default not in (inspect.Parameter.empty, None, []):
            options["help"] += f" (default: {' '.join(map(str, default if several else [default]))})"
        if default is inspect.Parameter.empty and name.startswith("-"):
            options["required"] = True
        if default is not inspect.Parameter.empty:
            options["default"] = default
        literal = next((each for each in (kind, *get_args(kind)) if get_origin(each) is Literal), None)
        options["metavar"] = "|".join(get_args(literal)) if literal else parameter.name.upper()
        if several:
            options["nargs"] = "+"
        parser.add_argument(name, **options, **({"type": kind} if typed else {}))
    return parser


def _name(parameter: inspect.Parameter) -> str:
    positional = parameter.default is inspect.Parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY
    return parameter.name if positional else f"--{parameter.name.replace('_', '-')}"


def _kind(parameter: inspect.Parameter) -> tuple[Any, bool]:
    """The type of one value of a parameter, and whether it takes several."""
    kinds = [each for each in get_args(parameter.annotation) if each is not NoneType]
    if get_origin(parameter.annotation) is list:
        return kinds[0], True
    if len(kinds) == 1 and NoneType in get_args(parameter.annotation) and get_origin(kinds[0]) is list:
        return get_args(kinds[0])[0], True
    return parameter.annotation, False
