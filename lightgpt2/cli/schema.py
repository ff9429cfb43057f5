"""The settings of a class, read from its source: what a configuration may say is known without importing torch."""

import ast
import builtins
import functools
import importlib
import operator
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, Optional, Union

_IMPORTED = ("typing", "jsonargparse.typing", "collections.abc", "pathlib", "datetime")  # take no time


class UnknownError(Exception):
    """The source does not say."""


class Section(NamedTuple):
    """A class as the type of a setting; `data` is True for a dataclass, which has no subclasses to choose from."""

    path: str
    data: bool = False


class Setting(NamedTuple):
    """A setting of a class: the types that its value may have (empty: the source does not say), its default as written."""

    types: tuple[Any, ...] = ()
    required: bool = False
    default: str = ""
    help: str = ""


@functools.cache
def settings_of(path: str) -> dict[str, Setting] | None:
    """The settings of a class by name; None if its source does not say."""
    with suppress(UnknownError):
        return _settings(*_class(path))
    return None


@functools.cache
def names_in(module: str) -> dict[str, Any]:
    """What a module defines or imports: a node of its source by name, or (module, name) of an import."""
    found: dict[str, Any] = {}
    nodes = [*_source(module).body]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and not node.level:
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.If | ast.Try):
            nodes += [*node.body, *node.orelse]
    return found


def union(types: Iterable[Any]) -> Any:
    """The type of values that have one of the types."""
    return functools.reduce(operator.or_, types)


def _source(module: str) -> ast.Module:
    for folder in sys.path:  # importlib would import the package that a module lies in
        base = Path(folder, *module.split("."))
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                return ast.parse(path.read_text(encoding="utf-8"))
    raise UnknownError


def _class(path: str) -> tuple[str, ast.ClassDef]:
    """The module and source of a class, imports followed."""
    module, _, name = path.rpartition(".")
    node = names_in(module).get(name) if module else None
    if isinstance(node, tuple):
        return _class(".".join(node))
    if not isinstance(node, ast.ClassDef):
        raise UnknownError
    return module, node


def _settings(module: str, node: ast.ClassDef) -> dict[str, Setting]:
    init = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
    given: list[tuple[str, ast.expr | None, ast.expr | None]] = []
    if init:
        places = [*init.args.posonlyargs, *init.args.args]
        defaults = [*[None] * (len(places) - len(init.args.defaults)), *init.args.defaults, *init.args.kw_defaults]
        pairs = zip([*places, *init.args.kwonlyargs], defaults, strict=True)
        given = [(each.arg, each.annotation, default) for each, default in pairs][1:]
    elif _is_dataclass(node):
        given = [(ast.unparse(a.target), a.annotation, a.value) for a in node.body if isinstance(a, ast.AnnAssign)]
    inherited: dict[str, Setting] = {}
    if init is None or init.args.kwarg:  # what the bases take, but what the class gives them itself
        own = _given_itself(init) if init else ()
        for base in reversed(node.bases):
            found = _settings(*_class(_path(base, module)))
            inherited |= {name: setting for name, setting in found.items() if name not in own}
    texts = _texts(node, *([init] if init else []))
    return inherited | {
        name: Setting(_known(kind, module), value is None, ast.unparse(value) if value else "", texts.get(name, ""))
        for name, kind, value in given
    }


def _given_itself(init: ast.FunctionDef) -> tuple[str | None, ...]:
    """The arguments that a class gives its base by name, where it passes further keywords on.

    Raises:
        UnknownError: They are used for something else.
    """
    calls = [c for c in ast.walk(init) if isinstance(c, ast.Call) and any(k.arg is None for k in c.keywords)]
    if [ast.unparse(each.func) for each in calls] != ["super().__init__"]:
        raise UnknownError
    return tuple(each.arg for each in calls[0].keywords)


def _path(base: ast.expr, module: str) -> str:
    """The class path of a base class."""
    found = names_in(module).get(base.id) if isinstance(base, ast.Name) else None
    if found is None:
        raise UnknownError
    return ".".join(found) if isinstance(found, tuple) else f"{module}.{ast.unparse(base)}"


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(ast.unparse(each).startswith("dataclass") for each in node.decorator_list)


def _texts(*nodes: ast.ClassDef | ast.FunctionDef) -> dict[str, str]:
    import docstring_parser

    parameters = [each for node in nodes for each in docstring_parser.parse(ast.get_docstring(node) or "").params]
    return {each.arg_name: " ".join((each.description or "").split()) for each in parameters}


def _known(node: ast.expr | None, module: str) -> tuple[Any, ...]:
    with suppress(UnknownError):
        return _types(node, module)
    return ()


def _types(node: ast.expr | None, module: str) -> tuple[Any, ...]:
    """The alternatives of an annotation: types, and sections.

    Raises:
        UnknownError: One of them is not to be had without importing what takes time.
    """
    match node:
        case ast.Constant(value=None):
            return (NoneType,)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return (*_types(left, module), *_types(right, module))
        case ast.Name(id=name):
            return _named(name, module)
        case ast.Subscript(value=outer, slice=inner):
            (kind,) = _types(outer, module)
            if kind is Literal:
                with suppress(ValueError):  # of names that are defined elsewhere
                    return (Literal[ast.literal_eval(inner)],)
                raise UnknownError
            inside = [_types(each, module) for each in (inner.elts if isinstance(inner, ast.Tuple) else [inner])]
            if kind in (Union, Optional):
                return (*(each for types in inside for each in types), *([NoneType] if kind is Optional else []))
            if not any(isinstance(each, Section) for types in inside for each in types):
                return (kind[tuple(union(types) for types in inside)],)
    raise UnknownError


def _named(name: str, module: str) -> tuple[Any, ...]:
    found = names_in(module).get(name)
    match found:
        case None if hasattr(builtins, name):
            return (getattr(builtins, name),)
        case (source, original) if source in _IMPORTED:
            return (getattr(importlib.import_module(source), original),)
        case (source, original):
            return _named(original, source)
        case ast.ClassDef():
            return (Section(f"{module}.{name}", _is_dataclass(found)),)
        case ast.expr():
            return _types(found, module)
    raise UnknownError
