"""The settings of a class, read from its source: what a configuration may say is known without importing torch."""

import ast
import builtins
import functools
import importlib
import importlib.util
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Optional, Union

_IMPORTED = ("typing", "jsonargparse.typing", "collections.abc", "pathlib", "datetime")  # take no time


class UnknownError(Exception):
    """The source does not say."""


@dataclass(frozen=True)
class Section:
    """A class as the type of a setting: the setting is a group of settings.

    Attributes:
        path: Its class path.
        data: True if it is a dataclass, which has no subclasses to choose from.
    """

    path: str
    data: bool = False


@dataclass(frozen=True)
class Setting:
    """A setting of a class.

    Attributes:
        types: Types of which its value must have one; empty where the source does not say.
        required: True if it has no default.
        default: The default as the source has it.
        help: What its class's docstring says of it.
    """

    types: tuple[Any, ...] = ()
    required: bool = False
    default: str = ""
    help: str = ""


@functools.cache
def settings_of(path: str) -> dict[str, Setting] | None:
    """The settings of a class by name; None where its source does not say.

    Args:
        path: The class path.
    """
    try:
        return _settings(*_class(path))
    except UnknownError:
        return None


@functools.cache
def names_in(module: str) -> dict[str, Any]:
    """What a module defines or imports: a node of its source by name, or (module, name) of an import."""
    found: dict[str, Any] = {}
    for node in _statements(_source(module).body):
        if isinstance(node, ast.ImportFrom) and not node.level:
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
    return found


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])


def _source(module: str) -> ast.Module:
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # of a package inside another it would import that one
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UnknownError
    inside = [Path(root, *rest) for root in spec.submodule_search_locations or ()]
    paths = [path for base in inside for path in (base / "__init__.py", base.with_suffix(".py"))]
    if not rest and spec.origin:
        paths.append(Path(spec.origin))
    for path in paths:
        if path.is_file() and path.suffix == ".py":
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


def _settings(module: str, node: ast.ClassDef) -> dict[str, Setting] | None:
    init = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
    given: list[tuple[str, ast.expr | None, ast.expr | None]] = []
    if init:
        places = [*init.args.posonlyargs, *init.args.args]
        defaults = [*[None] * (len(places) - len(init.args.defaults)), *init.args.defaults, *init.args.kw_defaults]
        parameters = [*places, *init.args.kwonlyargs]
        given = [(a.arg, a.annotation, default) for a, default in zip(parameters, defaults, strict=True)][1:]
    elif _is_dataclass(node):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        given = [(ast.unparse(each.target), each.annotation, each.value) for each in fields]
    inherited: dict[str, Setting] = {}
    if init and init.args.kwarg:
        calls = [
            each for each in ast.walk(init) if isinstance(each, ast.Call) and any(k.arg is None for k in each.keywords)
        ]
        if [ast.unparse(each.func) for each in calls] != ["super().__init__"]:
            return None
    if init is None or init.args.kwarg:  # what the bases take; the class may give some of it itself
        for base in reversed(node.bases):
            settings = _base(module, base)
            if settings is None:
                return None
            inherited |= {k: replace(v, required=v.required and init is None) for k, v in settings.items()}
    texts = _texts(node)
    return inherited | {
        name: Setting(_known(kind, module), value is None, ast.unparse(value) if value else "", texts.get(name, ""))
        for name, kind, value in given
    }


def union(types: Iterable[Any]) -> Any:
    """The type of values that have one of the types."""
    return functools.reduce(operator.or_, types)


def _base(module: str, base: ast.expr) -> dict[str, Setting] | None:
    """The settings of a base class."""
    names = names_in(module)
    if isinstance(base, ast.Name) and base.id in names:
        return settings_of(".".join(names[base.id]) if isinstance(names[base.id], tuple) else f"{module}.{base.id}")
    return None


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(ast.unparse(each).startswith("dataclass") for each in node.decorator_list)


def _texts(node: ast.ClassDef) -> dict[str, str]:
    import docstring_parser

    nodes = [node, *(each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__")]
    documents = [
        docstring_parser.parse(ast.get_docstring(each) or "")
        for each in nodes
        if isinstance(each, ast.ClassDef | ast.FunctionDef)
    ]
    return {p.arg_name: " ".join((p.description or "").split()) for each in documents for p in each.params}


def _known(node: ast.expr | None, module: str) -> tuple[Any, ...]:
    try:
        return _types(node, module)
    except UnknownError:
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
                return (Literal[ast.literal_eval(inner)],)
            inside = [_types(each, module) for each in (inner.elts if isinstance(inner, ast.Tuple) else [inner])]
            if kind in (Union, Optional):
                return (*(each for types in inside for each in types), *([NoneType] if kind is Optional else []))
            if any(isinstance(each, Section) for types in inside for each in types):
                raise UnknownError
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
