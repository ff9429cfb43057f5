"""An environment with a few installed distributions and what they need, and nothing else."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def closure(names: list[str]) -> set[str]:
    """Distributions and all that they require, extras left out."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop().lower().replace("_", "-")
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:  # of another platform's
            continue
        if name not in found:
            found.add(name)
            wanted = [Requirement(text) for text in requires]
            todo += [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def link_environment(folder: Path, names: list[str]) -> Path:
    """A folder with links to the installed files of some distributions and of all that they require."""
    folder.mkdir()
    for name in closure(names):
        installed = distribution(name)
        for first in {Path(file).parts[0] for file in installed.files or []}:
            target = Path(str(installed.locate_file(first)))
            link = folder / first
            if first not in ("..", "__pycache__") and target.exists() and not link.exists():
                link.symlink_to(target)
    return folder


def run_isolated(environment: Path, script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs a script that can import the standard library and that environment only."""
    start = f"import sys; sys.path.append({str(environment)!r})\n"
    command = [sys.executable, "-I", "-S", "-c", start + script, *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)
