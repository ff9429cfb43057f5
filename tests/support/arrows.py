"""Reads which file of the package imports which, and says where that breaks the design."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
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
ROOT_FILES = {"__init__", "__main__", "errors"}
_ENTRY_POINTS = {"__init__", "__main__"}


def modules(root: Path) -> dict[str, Path]:
    """The package's files by dotted name; a package's `__init__.py` has the package's own name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = [PACKAGE, *path.relative_to(root).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The package's modules that a file imports, wherever in the file, and in whatever form."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [above, node.module]))
            targets = [full if (full := f"{base}.{alias.name}") in known else base for alias in node.names]
        else:
            continue
        yield from (target for target in targets if target in known and target != name)


def folder_of(name: str) -> str:
    """The folder right under the package, or the stem of a file that lies there."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def violations(root: Path) -> list[str]:
    """One line for each import or file that breaks the design, and for one circle of files."""
    known = modules(root)
    found = [
        f"{path.name}: no such file belongs at the root" for path in root.glob("*.py") if path.stem not in ROOT_FILES
    ]
    graph = {name: set(imports(name, path, known)) for name, path in known.items()}
    graph[PACKAGE] = set()  # what it offers is imported when it is asked for
    for name, targets in graph.items():
        mine = folder_of(name)
        for target in sorted(targets):
            theirs = folder_of(target)
            allowed = mine == theirs or mine in _ENTRY_POINTS or theirs in ("errors", "__init__")
            if not allowed and theirs not in ARROWS.get(mine, set()):
                found.append(f"{name} imports {target}: {mine} may not import {theirs}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = min(
            [*error.args[1][rotation:-1], *error.args[1][:rotation]] for rotation in range(len(error.args[1]) - 1)
        )
        found.append(f"circle: {' -> '.join([*circle, circle[0]])}")
    return found
