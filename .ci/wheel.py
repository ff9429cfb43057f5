"""Puts into the wheel what the checkout knows: the commit, and a software bill of materials.

The bill has what a user's machine runs, from `constraints.txt`, as CycloneDX 1.6.
"""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)(?P<rest>(?:.*\n(?=[ ]))*.*)", re.MULTILINE)
_VIA = re.compile(r"^ +#(?: via)? +([A-Za-z0-9._-]+)", re.MULTILINE)


class Wheel(BuildHookInterface[Any]):
    """Writes the files when a wheel is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        constraints, metadata = Path(self.root, "constraints.txt").read_text(), self.metadata.core
        bill = materials(constraints, metadata.name, self.metadata.version, metadata.dependencies)
        path = Path(self._folder.name, f"{metadata.name}.cdx.json")
        path.write_text(json.dumps(bill, indent=2) + "\n")
        build_data["sbom_files"] = [str(path)]
        sys.path.insert(0, self.root)
        from lightgpt2.cli.version import checked_out  # which needs no other package

        if version != "editable" and (found := checked_out(Path(self.root))):  # a checkout is asked when it runs
            noted = Path(self._folder.name, "commit.txt")
            noted.write_text(f"{found}\n")
            build_data["force_include"][str(noted)] = f"{metadata.name}/commit.txt"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._folder.cleanup()


def materials(constraints: str, name: str, version: str, dependencies: list[str]) -> dict[str, Any]:
    """The bill of a package: of all that is pinned, what its dependencies need, and which needs which."""
    pinned = {_plain(each["name"]): each for each in _ENTRY.finditer(constraints)}
    asked = {_plain(re.split(r"[^A-Za-z0-9._-]", each)[0]) for each in dependencies}
    needs: dict[str, set[str]] = {name: asked}
    for each, entry in pinned.items():
        for parent in map(_plain, _VIA.findall(entry["rest"])):
            if parent != name:  # whose extras are for its development
                needs.setdefault(parent, set()).add(each)
    used, waiting = set[str](), [name]
    while waiting:
        found = needs.get(waiting.pop(), set()) - used
        used |= found
        waiting += found

    def component(each: str, number: str, kind: str = "library") -> dict[str, str]:
        purl = f"pkg:pypi/{each}@{number}"
        return {"type": kind, "bom-ref": each, "name": each, "version": number, "purl": purl}

    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component(name, version, "application")},
        "components": [component(each, pinned[each]["version"]) for each in sorted(used)],
        "dependencies": [{"ref": each, "dependsOn": sorted(needs.get(each, ()))} for each in (name, *sorted(used))],
    }


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
