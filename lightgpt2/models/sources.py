"""The places that models come from: folders, GGUF files and hub ids, and what is wrong with one in one line."""

import json
import pickle
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download, try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from lightgpt2.errors import Problem, UserError, cut
from lightgpt2.models import adapters, hub
from lightgpt2.models.files import exists, folder_megabytes, weight_files
from lightgpt2.models.ledger import Ledger

_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.safetensors.index.json")


def is_path(source: str) -> bool:
    """True if the source exists as a file or folder, or no hub id looks like it."""
    starts = (".", "/", "~", "checkpoints/")
    return exists(source) or source.startswith(starts) or source.count("/") > 1 or source == "checkpoints"


def gguf_file(source: str) -> Path | None:
    """The source as a path if it is a GGUF file."""
    path = Path(source).expanduser()
    return path if path.suffix == ".gguf" and path.is_file() else None


def arguments(source: str) -> dict[str, Any]:
    """The source as transformers' arguments; a GGUF file is named beside its folder."""
    if file := gguf_file(source):
        return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    return {"pretrained_model_name_or_path": str(Path(source).expanduser()) if is_path(source) else source}


def source_folder(source: str, *wanted: str) -> Path:
    """The folder of a source's files: its own, that of a GGUF file, or that of a hub model in the local cache.

    `wanted`: patterns of files that are fetched first, since transformers does not load them.
    """
    if is_path(source):
        path = Path(source).expanduser()
        return path.parent if gguf_file(source) else path
    if wanted:
        return Path(snapshot_download(source, allow_patterns=["config.json", *wanted]))  # it warns of nothing found
    file = try_to_load_from_cache(source, "config.json")
    return Path(file).parent if isinstance(file, str) else Path(source)


def stored_size(source: str) -> tuple[float, set[str]]:
    """The size of a source's own weight files in 10^6 bytes, 0 if it is not known; and the types of their tensors."""
    if file := gguf_file(source):
        return file.stat().st_size / 1e6, {"GGUF"}
    folder = source_folder(source)
    return folder_megabytes(folder), {*stored_types(folder).values()}


def stored_types(folder: Path) -> dict[str, str]:
    """The type of each tensor in the safetensors files that the weights of a folder are in, by its name."""
    types: dict[str, str] = {}
    for file in (each for each in weight_files(folder) if each.suffix == ".safetensors"):
        with safe_open(file, framework="pt") as opened:
            types |= {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 - it is no dictionary
    return types


def verify(source: str, key: str, recorded: bool = False) -> None:
    """Raise a `UserError` if a file of a model differs from what its folder's ledger says, or must say (`recorded`)."""
    folder = source_folder(source)
    ledger = Ledger.read(folder)
    if recorded and not ledger.files:
        what = f"there is no record of the files of {source}, as the ledger of a folder that lightgpt2 wrote has one"
        raise UserError([Problem(key, what, "it cannot be verified")])
    ledger.check(folder, key)


def check_folder(source: str, key: str) -> None:
    """Raise a `UserError` naming what a local model folder lacks, before transformers tries the hub with its path."""
    path = Path(source).expanduser()
    if gguf_file(source):
        return
    if not exists(source):
        raise UserError(f"{key}: {source} does not exist; give a hub id, a model folder or a .gguf file")
    if path.is_file():
        raise UserError(f"{key}: {source} is a file but not a .gguf file; give the model's folder")
    if adapters.is_adapter(source):  # transformers would put those beside a model on it, without a word
        fix = "give the model that they are merged into (model/ beside it), or train on with lightgpt2.methods.LoRA"
        raise UserError(f"{key}: {source} is a folder of adapters; {fix}")
    if not (path / "config.json").is_file():
        raise UserError(f"{key}: {source} has no config.json; give a Hugging Face model folder")
    Ledger.read(path).check(path, key, whole=False)
    if not any(file for pattern in _WEIGHT_FILES for file in path.glob(pattern)):
        raise UserError(f"{key}: {source} has no weights (*.safetensors); give a complete model folder")
    try:  # transformers goes on without settings that it cannot read: a text would have another end, or none
        if (settings := path / "generation_config.json").is_file():
            json.loads(settings.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{key}: {settings} is damaged ({error}); correct it, or remove it") from error


@contextmanager
def explained(source: str, key: str, named: bool = True) -> Iterator[None]:
    """Turn what the libraries raise into one line with a fix; `named` if the source is a model's name."""
    hub.try_once()
    try:
        yield
    except Exception as error:  # of any kind, for a folder or a configuration that is wrong
        raise UserError([Problem(key, *_explanation(error, source, named))]) from error


def _explanation(error: Exception, source: str, named: bool) -> tuple[str, str]:
    """What is wrong with a source that could not be loaded, and the fix."""
    if isinstance(error, SafetensorError | json.JSONDecodeError | zlib.error):
        return f"{source} is damaged ({error})", "fetch or write it again"
    if isinstance(error, pickle.UnpicklingError):
        what = f"{source} has its weights in a pickle that is damaged or would run code"
        return what, "give a folder with *.safetensors"
    if "trust_remote_code" in str(error):
        where = "trust_remote_code (in a configuration model.trust_remote_code, for a command --trust-remote-code)"
        return f"{source} needs Python code in its folder", f"read that code, and if you trust it, set {where}"
    if "backend tokenizer" in str(error):
        return f"{source} has no tokenizer (tokenizer.json) that can be read", "add it, or name one with data.tokenizer"
    said = f"there is no {error}" if isinstance(error, KeyError) else str(error)
    lines = [line.strip() for line in said.splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].startswith("Validation error for field") and len(lines) > 1:  # which comes in the next line
        lines = [re.sub(r"<class '(\w+)'>", r"\1", lines[1].partition(": ")[2])]
    reason = cut(lines[0], 200)
    if named and not is_path(source):
        what = f"{source!r} could not be loaded from the hub or its local cache ({reason})"
        return what, "check the name and the network, or give the path of a local folder"
    return f"{source} could not be loaded ({reason})", "give a complete model folder" if named else "correct it"
