"""`lightgpt2 generate`."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lightgpt2.errors import UserError
from lightgpt2.runtime.folder import is_exported
from lightgpt2.runtime.language_model import LanguageModel
from lightgpt2.runtime.loading import load
from lightgpt2.runtime.options import Options, resolve
from lightgpt2.runtime.prompts import read_prompts, to_jsonl, write_texts

_OPTIONS = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram", "stop", "seed")


def generate(arguments: dict[str, Any]) -> None:
    """Runs the verb.

    Args:
        arguments: Its options by their names.

    Raises:
        UserError: An option, a prompt or the model cannot be.
    """
    try:
        _generate(arguments)
    except UserError as error:
        raise UserError([_as_on_the_command_line(problem) for problem in error.problems]) from error
    except BrokenPipeError:  # whoever reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end


def _generate(arguments: dict[str, Any]) -> None:
    prompt, file, output = arguments["prompt"], arguments["prompts"], arguments["output"]
    options = Options(**{name: arguments[name] for name in _OPTIONS}, batch_size=arguments["batch"])
    _check(arguments, options)
    rows = [{"prompt": prompt}] if file is None else read_prompts(Path(file))
    if not is_exported(arguments["model"]):
        _quiet_transformers()
    model = load(arguments["model"], arguments["threads"], trust_remote_code=arguments["trust_remote_code"])
    if file is None:
        _stream(model, prompt, options)
        return
    content = _continue(model, rows, options)
    if output is None:
        _reconfigure()
        print(content, end="", flush=True)
    else:
        write_texts(Path(output), content)


def _as_on_the_command_line(problem: str) -> str:
    """A problem that names an option as Python does, or one of many prompts, as the verb has it."""
    key = problem.partition(":")[0]
    if key in ("prompt", *_OPTIONS):
        return f"--{key.replace('_', '-')}{problem[len(key) :]}"
    return f"--prompts: {problem}" if key.startswith("prompt ") else problem


def _check(arguments: dict[str, Any], options: Options) -> None:
    """What shows to be wrong before the model is loaded."""
    prompt, file, output = arguments["prompt"], arguments["prompts"], arguments["output"]
    if (prompt is None) == (file is None):
        raise UserError("--prompt: give it or --prompts, one of the two")
    if prompt == "":
        raise UserError("--prompt: it is empty; give some text to continue")
    if output is not None and file is None:
        raise UserError("--output: it is for --prompts; a single text goes to standard output, remove it")
    # What a folder says may be what makes an option useless, and never what makes it wrong.
    resolve(options, {"do_sample": True})


def _stream(model: LanguageModel, prompt: str, options: Options) -> None:
    """Prints a text while it is written."""
    _reconfigure()

    def tell(_: int, piece: str) -> None:
        print(piece, end="", flush=True)

    for _ in model.texts([prompt], options, tell):
        pass
    print(flush=True)


def _continue(model: LanguageModel, rows: list[dict[str, Any]], options: Options) -> str:
    texts = [""] * len(rows)
    done = model.texts([row["prompt"] for row in rows], options)
    for index, text in tqdm(done, desc="Generating", total=len(rows), unit="prompt"):
        texts[index] = text
    return to_jsonl(rows, texts)


def _reconfigure() -> None:
    """Lets a terminal that does not know a character show another one, rather than end the text."""
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]


def _quiet_transformers() -> None:
    """Keeps progress bars and remarks, of bitsandbytes in every layer of every step, out of the text."""
    import logging

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
