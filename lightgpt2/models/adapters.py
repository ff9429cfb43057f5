"""Adapter folders, as PEFT writes them."""

import json
from pathlib import Path

from lightgpt2.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(source: str) -> bool:
    """True for a folder of adapters."""
    return (Path(source).expanduser() / CONFIG).is_file()


def base_of(source: str, key: str) -> str:
    """The model that adapters belong to; the source itself if it is a model."""
    if not is_adapter(source):
        return source
    folder = Path(source).expanduser()
    try:
        base = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except ValueError as error:
        raise UserError(f"{key}: {folder / CONFIG} is damaged ({error}); write it again") from error
    if not base:
        raise UserError(f"{key}: {folder / CONFIG} names no base_model_name_or_path; add the model that it belongs to")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{key}: {source} has no {WEIGHTS}; give a complete adapter folder")
    return str(base)
