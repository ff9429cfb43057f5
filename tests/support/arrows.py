"""Reads which file of the package imports which, and says where that breaks the design."""

import ast
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

PACKAGE = "lightgpt2"

# The folders that a folder may import from. Every pair that is not here is forbidden.
ARROWS: dict[str, set[str]] = {
    "functional": set(),
    "models": {"functional"},
    "runtime": {"models"},
    "tasks": {"models", "functional"},
    "data": {"tasks", "models", "functional"},
    "teachers": {"data", "tasks", "models", "functional"},
    "starts": {"teachers", "data", "tasks", "models", "functional"},
    "objectives": {"teachers", "data", "tasks", "models", "functional"},
    "adaptations": {"teachers", "data", "tasks", "models", "functional"},
    "methods": {"objectives", "adaptations", "starts", "teachers", "data", "tasks", "models", "functional"},
    "conversions": {"runtime", "data", "tasks", "models", "functional"},
    "measure": {"runtime", "tasks", "models", "functional"},
    "report": {"models"},
    "runs": {"report", "data", "models"},
    "serve": {"runtime", "models"},
}
ARROWS["callbacks"] = {*ARROWS} - {"serve"}
ARROWS["cli"] = {*ARROWS}
ROOT_FILES = {"__init__", "__main__", "errors", "signals"}
_ENTRY_POINTS = {"__init__", "__main__"}


def modules(root: Path) -> dict[str, Path]:
    """The package's files by dotted name; a package's `__init__.py` has the package's own name."""
    names = {path: ".".join([PACKAGE, *path.relative_to(root).with_suffix("").parts]) for path in root.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in sorted(names.items())}


def imports(name: str, path: Path, known: Mapping[str, Path]) -> set[str]:
    """The package's modules that a file imports, wherever in the file, and in whatever form."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            members = [f"{base}.{alias.name}" for alias in node.names]
            found += [member if member in known else base for member in members]
    return {target for target in found if target in known and target != name}


def folder_of(name: str) -> str:
    """The folder right under the package, or the stem of a file that lies there."""
    return name.split(".")[1] if "." in name else "__init__"


def violations(root: Path) -> list[str]:
    """One line for each import or file that breaks the design, and for one circle of files."""
    known = modules(root)
    graph = {name: imports(name, path, known) for name, path in known.items()}
    graph[PACKAGE] = set()  # what it offers is imported when it is asked for
    found = [f"{p.name}: no such file belongs at the root" for p in root.glob("*.py") if p.stem not in ROOT_FILES]
    for name, target in ((one, other) for one in graph for other in sorted(graph[one])):
        mine, theirs = folder_of(name), folder_of(target)
        allowed = {mine, *ROOT_FILES - {"__main__"}, *ARROWS.get(mine, ())}
        if mine not in _ENTRY_POINTS and theirs not in allowed:
            found.append(f"{name} imports {target}: {mine} may not import {theirs}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"circle: {' -> '.join(error.args[1])}")
    return found
