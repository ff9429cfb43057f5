"""A folder that was exported: sealed with checksums, and opened only when they hold."""

import json
from pathlib import Path
from typing import Any

from lightgpt2.errors import UserError
from lightgpt2.models.files import sha256_file

FILE = "export.json"


def is_exported(source: str) -> bool:
    """Whether a path is a folder that `lightgpt2 export` wrote."""
    return (Path(source).expanduser() / FILE).is_file()


def seal(folder: Path, about: dict[str, Any]) -> None:
    """Writes `export.json`: what the folder is, and the SHA-256 of each of its files.

    Args:
        folder: A folder with everything else in it.
        about: What is to be said about it, plain values.
    """
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.name != FILE}
    (folder / FILE).write_text(json.dumps({**about, "files": files}, indent=2) + "\n", encoding="utf-8")


def open_export(folder: Path, key: str = "MODEL") -> dict[str, Any]:
    """What an exported folder says about itself, once every file has been found as it was written.

    Args:
        folder: The folder.
        key: What to call it in errors.

    Raises:
        UserError: A file is missing, cut short or changed.
    """
    try:
        about: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        files: dict[str, str] = about["files"]
        damaged = [n for n, digest in files.items() if not (folder / n).is_file() or sha256_file(folder / n) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{key}: {folder / FILE} cannot be read ({error}); export the model again") from error
    if damaged:
        raise UserError(
            f"{key}: {', '.join(damaged)} in {folder} is not what was written (its checksum differs, or it is missing); "
            "export the model again"
        )
    return about
