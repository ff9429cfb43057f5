"""A model to generate text with, from any folder that holds one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lightgpt2.errors import Problem, UserError
from lightgpt2.runtime.folder import GGUF, ONNX, is_exported, open_export
from lightgpt2.runtime.language_model import LanguageModel


def load(
    path: str | Path, threads: int | None = None, *, trust_remote_code: bool = False, key: str = "MODEL"
) -> LanguageModel:
    """Load a model to generate text with, on the processor.

    Args:
        path: An exported folder (or the GGUF file in one), or what transformers loads: a model folder, a GGUF file, a hub id.
        threads: Threads that compute; default: all physical cores for exported ONNX, else torch's own.
        trust_remote_code: True if code in the model's folder may run.
        key: The model's name in errors.

    Raises:
        UserError: It cannot be loaded, is damaged, or is of a family that is not supported.
    """
    source = str(path)
    if threads is not None and threads < 1:
        raise UserError(f"threads: must be at least 1, got {threads}")
    folder = Path(source).expanduser()
    if folder.suffix == ".gguf" and is_exported(str(folder.parent)):
        folder = folder.parent  # which has what transformers does not find in the file
    if not is_exported(str(folder)):
        return _load_torch(source, None, threads, trust_remote_code, key)
    open_export(folder, key)
    if (folder / GGUF).exists():
        return _load_torch(source, folder, threads, trust_remote_code, key)
    from lightgpt2.runtime.onnx_engine import OnnxEngine

    engine = OnnxEngine(folder / ONNX, context_of(folder, key), threads, key)
    return LanguageModel(engine, _tokenizer(folder, key), _generation(folder, _json(folder / "config.json", key), key))


def context_of(folder: Path, key: str) -> int:
    """How many positions the model of an exported folder has; `key` names it in errors.

    Raises:
        UserError: Its `config.json` cannot be read, or does not say.
    """
    config = _json(folder / "config.json", key)
    context = config.get("max_position_embeddings") or config.get("n_positions")
    if not context:
        what = f"{folder / 'config.json'} has no max_position_embeddings or n_positions"
        raise UserError([Problem(key, what, "export it again")])
    return int(context)


def _load_torch(source: str, gguf: Path | None, threads: int | None, trusted: bool, key: str) -> LanguageModel:
    """A model that transformers runs; of an exported GGUF it does not find configuration and tokenizer in the file."""
    import torch

    from lightgpt2.models.loading import load_exported_gguf, load_tokenizer
    from lightgpt2.models.quantization import load_for_inference
    from lightgpt2.runtime.transformers_engine import TransformersEngine

    torch.set_num_threads(threads or torch.get_num_threads())
    if gguf:
        model = load_exported_gguf(gguf, key)
        tokenizer, generation = _tokenizer(gguf, key), _generation(gguf, model.config.to_dict(), key)
    else:
        model = load_for_inference(source, key, "fp32", "sdpa", "cpu", trusted)
        tokenizer = load_tokenizer(source, key, trusted).backend_tokenizer
        generation = _with_ends(model.generation_config.to_dict(), model.config.to_dict())
    return LanguageModel(TransformersEngine(model), tokenizer, generation)


def _generation(folder: Path, config: dict[str, Any], key: str) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return _with_ends(_json(path, key) if path.exists() else {}, config)


def _with_ends(generation: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A generation configuration with the end-of-text tokens of the model's own, where it names none."""
    missing = generation.get("eos_token_id") is None
    return {**generation, "eos_token_id": config.get("eos_token_id")} if missing else generation


def _json(path: Path, key: str) -> dict[str, Any]:
    values = _read(path, key, lambda: json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(values, dict):
        raise UserError(f"{key}: {path} holds no settings; export it again")
    return values


def _tokenizer(folder: Path, key: str) -> Tokenizer:
    path = folder / "tokenizer.json"
    return _read(path, key, lambda: Tokenizer.from_file(str(path)))


def _read(path: Path, key: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # tokenizers has no class for what is wrong
        what = f"{path} cannot be read ({' '.join(str(error).split())})"
        raise UserError([Problem(key, what, "export it again")]) from error
