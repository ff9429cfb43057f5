"""The size on disk of what `pip install` brings, without extras and with each.

python -m benchmarks.sizes

What is not installed here is named and not counted.
"""

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def needed(asked: Iterable[str]) -> set[str]:
    """The packages that some requirements bring on this machine, each by its plain name."""
    found, waiting = set[tuple[str, str]](), [Requirement(each) for each in asked]
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        for extra in {"", *requirement.extras} - {extra for known, extra in found if known == name}:
            found.add((name, extra))
            further = map(Requirement, requires(name))
            waiting += [each for each in further if each.marker is None or each.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def requires(name: str) -> list[str]:
    try:
        return distribution(name).requires or []
    except PackageNotFoundError:
        return []


def megabytes(name: str) -> float | None:
    """The size of a package's files; None if it is not installed."""
    try:
        files = distribution(name).files or []
    except PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def main() -> None:
    """Print a row for each extra: the packages beside those of the row without one."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    base = needed(project["dependencies"])
    extras = {name: needed(asked) - base for name, asked in project["optional-dependencies"].items()}
    print("| extra | packages | MB | not installed here |\n| --- | --- | --- | --- |")
    for name, packages in {"none": base, **extras}.items():
        sizes = {each: megabytes(each) for each in packages}
        missing = sorted(each for each, size in sizes.items() if size is None)
        total = sum(size for size in sizes.values() if size is not None)
        print(f"| {name} | {len(packages)} | {total:,.0f} | {', '.join(missing)} |")


if __name__ == "__main__":
    main()
