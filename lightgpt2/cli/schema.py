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
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

_IMPORTED = ("typing", "jsonargparse.typing", "collections.abc", "pathlib", "datetime")  # take no time


TRUSTED = ("lightgpt2", "lightning", "torch")  # packages whose code a configuration may name in `check --safe`


class UnknownError(Exception):
    """The source does not say."""


class Section(type):
    """A class that is not imported, as the type of a setting; itself a type, for annotations such as `Section | None`.

    Attributes:
        path: Its class path.
        data: True for a dataclass, which has no subclasses to choose from.
    """

    path: str
    data: bool

    def __new__(cls, path: str, data: bool = False) -> "Section":
        return super().__new__(cls, path, (), {"path": path, "data": data})

    def __init__(cls, path: str, data: bool = False) -> None:
        super().__init__(path)


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
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            found[node.target.id] = node.value
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
        name: Setting(_types(kind, module), value is None, ast.unparse(value) if value else "", texts.get(name, ""))
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


def _types(annotation: ast.expr | None, module: str) -> tuple[Any, ...]:
    """The alternatives of an annotation; none where one of them is not to be had without importing what takes time."""
    try:
        kind = _evaluated(annotation or ast.Constant(""), _Names(module))
    except Exception:  # whatever Python says of names that are not imported
        return ()
    types = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return () if any(isinstance(each, str) or (_holds_section(each) and not item(each)) for each in types) else types


def item(kind: Any) -> Section | None:
    """The class whose objects a type lists; None for any other type."""
    inside = get_args(kind)
    return inside[0] if get_origin(kind) in (list, Iterable) and isinstance(inside[0], Section) else None


def _evaluated(node: ast.expr, names: "_Names") -> Any:
    """The value of an expression in a source; other people's code is read and never run."""
    runs = any(isinstance(each, ast.Call) for each in ast.walk(node))
    if runs and names.module.partition(".")[0] not in TRUSTED:
        raise UnknownError
    return eval(compile(ast.Expression(node), names.module, "eval"), {}, names)


def _holds_section(kind: Any) -> bool:
    return any(isinstance(each, Section) or _holds_section(each) for each in get_args(kind))


class _Names(dict[str, Any]):
    """What the names in a module's annotations stand for, as they are asked for."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __missing__(self, name: str) -> Any:
        found = names_in(self.module).get(name)
        match found:
            case None if hasattr(builtins, name):
                return getattr(builtins, name)
            case (source, original) if source in _IMPORTED:
                return getattr(importlib.import_module(source), original)
            case (source, original):
                return _Names(source)[original]
            case ast.ClassDef():
                return Section(f"{self.module}.{name}", _is_dataclass(found))
            case ast.expr():
                return _evaluated(found, self)
        raise UnknownError
