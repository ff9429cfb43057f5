"""A folder that was exported: opened only when all its files are as they were written."""

import json
from pathlib import Path
from typing import Any

from lightgpt2.errors import UserError
from lightgpt2.models.ledger import Ledger

FILE = "export.json"
ONNX, GGUF = "model.onnx", "model.gguf"  # the model in it is one of these


def is_exported(source: str) -> bool:
    """True for a folder that `lightgpt2 export` wrote."""
    return (Path(source).expanduser() / FILE).is_file()


def describe(folder: Path, about: dict[str, Any]) -> None:
    """Write `export.json`: plain values about the folder."""
    (folder / FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def open_export(folder: Path, key: str = "MODEL") -> dict[str, Any]:
    """Read `export.json`; a `UserError` that names `key` if a file of the folder is not as it was written."""
    ledger = Ledger.read(folder)
    if FILE not in ledger.files:
        raise UserError(f"{key}: {folder} has no record of its files (in ledger.json); export the model again")
    ledger.check(folder, key)
    about: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return about
