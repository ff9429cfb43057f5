"""A model to generate or classify text with, from any folder that holds one."""

import json
import sys
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from lightgpt2.errors import Problem, UserError, tell
from lightgpt2.models.architectures import CLASSIFICATION, SEQ2SEQ, predicts
from lightgpt2.models.chat import ChatTemplate, chat_template, folder_template
from lightgpt2.models.vocabulary import needed_rows
from lightgpt2.runtime.engines import Classifier, EncoderDecoder, Engine
from lightgpt2.runtime.folder import GGUF, ONNX, is_exported, open_export
from lightgpt2.runtime.language_model import LanguageModel
from lightgpt2.runtime.options import resolve
from lightgpt2.runtime.processors import not_done
from lightgpt2.runtime.text_classifier import TextClassifier
from lightgpt2.runtime.text_to_text import DONE, TextToText

_SEGMENTS = "token_type_ids"
_STARTS = ("decoder_start_token_id", "bos_token_id")  # what says how targets begin, in transformers' order


def load(
    path: str | Path,
    threads: int | None = None,
    *,
    verify: bool = False,
    trust_remote_code: bool = False,
    key: str = "path",
) -> Any:
    """Load a model to use on the processor.

    Args:
        path: An exported folder (or the GGUF file in one), or what transformers loads: a model folder, a GGUF file, a hub id.
        threads: Threads that compute; default: all physical cores for exported ONNX, else torch's own.
        verify: True to compare every file of the folder with its checksum; an exported folder's always are.
        trust_remote_code: True if code in the model's folder may run.
        key: The model's name in errors.

    Returns:
        A `LanguageModel`, which continues texts; of an encoder-decoder a `TextToText`, of a model that classifies texts a
        `TextClassifier`.

    Raises:
        UserError: It cannot be loaded, is damaged, or is of a family that is not supported.
    """
    if threads is not None and threads < 1:
        raise UserError(f"threads: must be at least 1, got {threads}")
    source, folder = str(path), Path(path).expanduser()
    if folder.suffix == ".gguf" and is_exported(str(folder.parent)):
        folder = folder.parent  # which has what transformers does not find in the file
    if is_exported(str(folder)):
        open_export(folder, key)
        return exported_model(folder, threads, key)
    from lightgpt2.models import sources
    from lightgpt2.models.quantization import load_for_inference
    from lightgpt2.models.tokenizers import load_tokenizer

    if verify:
        sources.verify(source, key, recorded=True)
    if sources.is_path(source):
        sources.check_folder(source, key)  # adapters are measured as they are, and used merged
    model = load_for_inference(source, key, "fp32", "sdpa", "cpu", trust_remote_code)
    engine, config = _torch_engine(model, threads), model.config.to_dict()
    classifies = _kind(config) == CLASSIFICATION
    whole = load_tokenizer(source, key, trust_remote_code, separates=not classifies)
    generation = {} if classifies else model.generation_config.to_dict()
    template = None if classifies else chat_template(whole)
    read = whole.backend_tokenizer, config, generation, template
    return _with_text(source, engine, *read, _SEGMENTS in whole.model_input_names, key)


def exported_model(folder: Path, threads: int | None, key: str) -> LanguageModel | TextToText | TextClassifier:
    """As `load`, of an exported folder whose files are known to be whole."""
    engine = exported_engine(folder, threads, key)
    tokenizer = _read(folder / "tokenizer.json", key, Tokenizer.from_str)
    names = _read(folder / "tokenizer_config.json", key).get("model_input_names", [_SEGMENTS])
    path, config = folder / "generation_config.json", _read(folder / "config.json", key)
    generation = _read(path, key) if path.exists() else {}
    read = tokenizer, config, generation, folder_template(folder)
    return _with_text(str(folder), engine, *read, _SEGMENTS in names, key)


def _with_text(
    source: str,
    engine: Any,
    tokenizer: Tokenizer,
    config: Mapping[str, Any],
    generation: dict[str, Any],
    template: ChatTemplate | None,
    segments: bool,
    key: str,
) -> LanguageModel | TextToText | TextClassifier:
    """A model with its tokenizer, as what it does."""
    if (tokens := needed_rows(tokenizer)) > config["vocab_size"]:
        what = f"the tokenizer of {source} has {tokens} tokens and the model {config['vocab_size']}"
        raise UserError([Problem(key, what, "give the model its own tokenizer")])
    if _kind(config) == CLASSIFICATION:
        return _text_classifier(source, engine, tokenizer, config, segments, key)
    if _kind(config) == SEQ2SEQ:
        return _text_to_text(source, engine, tokenizer, config, generation, key)
    _check_generation(source, config, generation, key)
    return LanguageModel(engine, tokenizer, generation, template)


def _text_classifier(
    source: str, engine: Classifier, tokenizer: Tokenizer, config: Any, segments: bool, key: str
) -> TextClassifier:
    if (kind := config.get("problem_type")) not in (None, "single_label_classification"):
        what = f"{source} is a model for {kind}, and here each text has one class"
        raise UserError([Problem(key, what, "use it with transformers")])
    names = {int(number): name for number, name in config["id2label"].items()}
    if len(names) < 2:
        raise UserError([Problem(key, f"{source} has one output, and no classes", "give a model with at least two")])
    labels = [names[number] for number in sorted(names)]
    if (
        sorted(names) != [*range(len(names))]
        or len({*labels}) < len(labels)
        or not all(isinstance(x, str) for x in labels)
    ):
        what = f"the classes of {source} are not numbered from 0, each with its own name: {config['id2label']!r:.100}"
        raise UserError([Problem(key, what, "correct id2label in its config.json")])
    return TextClassifier(engine, tokenizer, labels, max(0, config.get("pad_token_id") or 0), segments)


def _text_to_text(
    source: str, engine: EncoderDecoder, tokenizer: Tokenizer, config: Any, generation: Any, key: str
) -> TextToText:
    start = next((said[name] for name in _STARTS for said in (generation, config) if said.get(name) is not None), None)
    if start is None:
        what = f"{source} does not say which token its targets begin with (decoder_start_token_id)"
        raise UserError([Problem(key, what, "add it to generation_config.json")])
    generation["decoder_start_token_id"] = start
    _check_generation(source, config, generation, key, DONE)
    return TextToText(engine, tokenizer, generation, config.get("pad_token_id") or 0)


def _check_generation(source: str, config: Any, generation: Any, key: str, done: Container[str] = ()) -> None:
    """Complete a folder's generation settings, say which are passed over, and refuse those that cannot be followed."""
    if generation.get("eos_token_id") is None:
        generation["eos_token_id"] = config.get("eos_token_id")
    if passed_over := not_done(generation, done):
        asked = f"its generation_config.json asks for {', '.join(passed_over)}"
        tell(f"lightgpt2: {source}: {asked}, which is not done here", sys.stderr)
    try:
        resolve({}, generation)
    except UserError as error:
        raise UserError([problem.under("generation_config.json") for problem in error.problems]) from error
    except (TypeError, ValueError) as error:
        what = f"generation_config.json of {source} cannot be followed ({error})"
        raise UserError([Problem(key, what, "correct it")]) from error


def context_of(folder: Path, key: str) -> int:
    """How many positions the model of an exported folder has; a `UserError` naming `key` if its `config.json` does not say."""
    config = _read(folder / "config.json", key)
    context = config.get("max_position_embeddings") or config.get("n_positions")
    if not context:
        what = f"{folder / 'config.json'} has no max_position_embeddings or n_positions"
        raise UserError([Problem(key, what, "export it again")])
    return int(context)


def _kind(config: Mapping[str, Any]) -> str:
    return predicts(config.get("architectures"))


def exported_engine(folder: Path, threads: int | None, key: str) -> Engine | Classifier | EncoderDecoder:
    """What runs the model of an exported folder."""
    if (folder / GGUF).exists():
        from lightgpt2.models.loading import load_exported_gguf

        return _torch_engine(load_exported_gguf(folder, key), threads)
    kind = _kind(_read(folder / "config.json", key))
    if kind == CLASSIFICATION:
        from lightgpt2.runtime.onnx_classifier import OnnxClassifier

        return OnnxClassifier(folder / ONNX, threads, key)
    if kind == SEQ2SEQ:
        from lightgpt2.runtime.onnx_encoder_decoder import OnnxEncoderDecoder

        return OnnxEncoderDecoder(folder, threads, key)
    from lightgpt2.runtime.onnx_recurrent import onnx_decoder

    return onnx_decoder(folder / ONNX, context_of(folder, key), threads, key)


def exported_runner(folder: Path, threads: int | None, key: str) -> Engine | Classifier | TextToText:
    """What an exported folder is scored with: an encoder-decoder with its tokenizer and generation settings."""
    if _kind(_read(folder / "config.json", key)) == SEQ2SEQ:
        return cast(TextToText, exported_model(folder, threads, key))
    return cast(Engine | Classifier, exported_engine(folder, threads, key))


def _torch_engine(model: Any, threads: int | None) -> Engine | Classifier | EncoderDecoder:
    import torch

    torch.set_num_threads(threads or torch.get_num_threads())
    kind = _kind(model.config.to_dict())
    if kind == CLASSIFICATION:
        from lightgpt2.runtime.transformers_classifier import TransformersClassifier

        return TransformersClassifier(model)
    if kind == SEQ2SEQ:
        from lightgpt2.runtime.transformers_encoder_decoder import TransformersEncoderDecoder

        return TransformersEncoderDecoder(model)
    if model._is_stateful:  # transformers' own mark
        from lightgpt2.runtime.recurrent import RecurrentEngine
        from lightgpt2.runtime.transformers_recurrent import TransformersSteps

        return RecurrentEngine(TransformersSteps(model), int(model.config.max_position_embeddings))
    from lightgpt2.runtime.transformers_engine import TransformersEngine

    return TransformersEngine(model)


def _read(path: Path, key: str, parse: Callable[[str], Any] = json.loads) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers has no class for what is wrong
        what = f"{path} cannot be read ({' '.join(str(error).split())})"
        raise UserError([Problem(key, what, "export it again")]) from error
