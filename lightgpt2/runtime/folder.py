"""A folder that was exported: sealed with checksums, and opened only when they hold."""

import json
from pathlib import Path
from typing import Any

from lightgpt2.errors import Problem, UserError
from lightgpt2.models.files import sha256_file

FILE = "export.json"
ONNX, GGUF = "model.onnx", "model.gguf"  # the model in it is one of these


def is_exported(source: str) -> bool:
    """True for a folder that `lightgpt2 export` wrote."""
    return (Path(source).expanduser() / FILE).is_file()


def seal(folder: Path, about: dict[str, Any]) -> None:
    """Write `export.json`: plain values about the folder, and the SHA-256 of each of its files."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / FILE]
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}
    (folder / FILE).write_text(json.dumps({**about, "files": files}, indent=2) + "\n", encoding="utf-8")


def open_export(folder: Path, key: str = "MODEL") -> dict[str, Any]:
    """Read `export.json`; a `UserError` that names `key` if a file is not as it was written."""
    try:
        about: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        files: dict[str, str] = about["files"]
        damaged = [n for n, digest in files.items() if not (folder / n).is_file() or sha256_file(folder / n) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{key}: {folder / FILE} cannot be read ({error}); export the model again") from error
    if damaged:
        what = f"{', '.join(damaged)} in {folder} is not what was written (its checksum differs, or it is missing)"
        raise UserError([Problem(key, what, "export the model again")])
    return about
