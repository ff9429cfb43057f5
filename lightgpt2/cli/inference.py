"""The commands that run a finished model on texts: `generate` and `classify`."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from lightgpt2.errors import Interrupted, Problem, UserError, refuse


def generate(
    model: str,
    *,
    prompt: str | None = None,
    prompts: str | None = None,
    chat: bool = False,
    system: str | None = None,
    output: str | None = None,
    batch: PositiveInt = 8,
    max_new_tokens: PositiveInt | None = None,
    temperature: NonNegativeFloat | None = None,
    top_k: NonNegativeInt | None = None,
    top_p: PositiveFloat | None = None,
    repetition_penalty: PositiveFloat | None = None,
    no_repeat_ngram: NonNegativeInt | None = None,
    num_beams: PositiveInt | None = None,
    length_penalty: float | None = None,
    min_new_tokens: NonNegativeInt | None = None,
    stop: list[str] = [],  # noqa: B006
    seed: NonNegativeInt = 0,
    threads: PositiveInt | None = None,
    verify: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Continue a prompt, or each prompt of a file, or answer as an assistant.

    An encoder-decoder writes what belongs to the prompt, its summary for example. Settings default to what the model's folder
    says, else to the value in brackets.

    Args:
        model: An exported folder, a model folder, a GGUF file or a hub model.
        prompt: Text to continue; the new text goes to standard output.
        prompts: A JSONL file of prompts, one {"prompt": "..."} a line; with --chat also {"messages": [...]}.
        chat: Answer the prompts as a user's messages; without any, hold a conversation on the terminal.
        system: System message of --chat.
        output: JSONL file for the same lines with the text added (default: standard output).
        batch: Number of prompts of a file that are continued together.
        max_new_tokens: The most tokens to add (256).
        temperature: Softmax temperature; 0 takes the most likely token (0).
        top_k: Sample from the k most likely tokens (0: no limit) (50).
        top_p: Sample from the fewest most likely tokens with this share of the probability (1).
        repetition_penalty: Above 1, tokens that are there already become less likely (1).
        no_repeat_ngram: Never repeat this many tokens in a row (0: no limit) (0).
        num_beams: Texts that an encoder-decoder begins side by side, of which the best is taken (1).
        length_penalty: Power of its length that a beam's score is divided by; above 0 it favours longer texts (1).
        min_new_tokens: The least tokens before a text may end (0).
        stop: Texts that end a continuation, and are not printed.
        seed: Seed of the sampling: the same seed gives the same text.
        threads: Threads to compute with (default: all cores).
        verify: Compare every file of the model's folder with its checksum first. (Exported folders always are.)
        trust_remote_code: Let code in the model's folder run.
    """
    from lightgpt2.runtime.language_model import Continuation, LanguageModel
    from lightgpt2.runtime.options import resolve
    from lightgpt2.runtime.prompts import Texts, conversation, read_prompts, stamp
    from lightgpt2.runtime.text_to_text import TextToText

    options = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "stop": stop,
        "repetition_penalty": repetition_penalty, "no_repeat_ngram": no_repeat_ngram, "seed": seed, "batch_size": batch,
        "num_beams": num_beams, "length_penalty": length_penalty, "min_new_tokens": min_new_tokens,
    }  # fmt: skip
    _check_question(prompt, prompts, chat, system, output)
    with named_as_options(generate, "prompt"):
        # What a folder says can make an option useless, and never wrong.
        resolve(options, {"do_sample": True})
        rows = [{"prompt": prompt}] if prompts is None else read_prompts(Path(prompts), chat)
        loaded = load_quietly(model, threads, verify=verify, trust_remote_code=trust_remote_code)
        if not isinstance(loaded, LanguageModel | TextToText):
            raise UserError(f"MODEL: {model} classifies texts; use lightgpt2 classify")
        if chat and isinstance(loaded, TextToText):
            raise UserError(f"--chat: {model} is an encoder-decoder, which has no conversations; remove it")
        head = [] if system is None else [{"role": "system", "content": system}]
        if prompt is None and prompts is None and isinstance(loaded, LanguageModel):
            from lightgpt2.runtime.conversation import converse

            converse(loaded, options, head)
            return
        asked: list[Any] = [conversation(row, head) if chat else row["prompt"] for row in rows]
        if prompts is None:
            for _ in loaded.texts(asked, options, lambda _, piece: print(piece, end="", flush=True)):
                pass
            print(flush=True)
            return
        made: dict[str, Any] = {"model": model, "stamp": stamp(model), "options": options, "threads": threads}
        made |= {"chat": chat, "head": head}
        with Texts(rows, None if output is None else Path(output), Continuation, **made) as kept:
            _keep(kept, loaded.texts(asked, options, known={*kept.texts}), len(rows), "prompt")


def _check_question(
    prompt: str | None, prompts: str | None, chat: bool, system: str | None, output: str | None
) -> None:
    """Refuses options of `generate` that contradict each other."""
    if output is not None:
        refuse(unwritable("--output", Path(output), Path(output).parent))
    if (prompt is None) == (prompts is None) and not (chat and prompt is None):
        raise UserError("--prompt: give it or --prompts, one of the two; or --chat for a conversation")
    if system is not None and not chat:
        raise UserError("--system: it is for --chat; add that, or remove it")
    if prompt == "":
        raise UserError("--prompt: it is empty; give some text to continue")
    if output is not None and prompts is None:
        raise UserError("--output: it is for --prompts; a single text goes to standard output, remove it")


def classify(
    model: str,
    *,
    text: str | None = None,
    texts: str | None = None,
    output: str | None = None,
    batch: PositiveInt = 16,
    threads: PositiveInt | None = None,
    verify: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Classify a text, or each text of a file.

    A line of the output is the text's with `label`, its `score` and the `probabilities` of all classes.

    Args:
        model: An exported folder, a model folder or a hub model, of a classifier.
        text: Text to classify.
        texts: A JSONL file of texts, one {"text": "..."} a line, with "text_pair" for a second one.
        output: JSONL file for the lines (default: standard output).
        batch: Number of texts that are computed together.
        threads: Threads to compute with (default: all cores).
        verify: Compare every file of the model's folder with its checksum first. (Exported folders always are.)
        trust_remote_code: Let code in the model's folder run.
    """
    from lightgpt2.runtime.prompts import Texts, read_texts, stamp, text_of
    from lightgpt2.runtime.text_classifier import Classified, TextClassifier

    if (text is None) == (texts is None):
        raise UserError("--text: give it or --texts, one of the two")
    if output is not None:
        refuse(unwritable("--output", Path(output), Path(output).parent))
    with named_as_options(classify, "text"):
        rows = [{"text": text}] if texts is None else read_texts(Path(texts))
        loaded = load_quietly(model, threads, verify=verify, trust_remote_code=trust_remote_code)
        if not isinstance(loaded, TextClassifier):
            raise UserError(f"MODEL: {model} generates text; use lightgpt2 generate")
        made: dict[str, Any] = {"model": model, "stamp": stamp(model), "batch": batch, "threads": threads}
        with Texts(rows, None if output is None else Path(output), Classified, "text", **made) as kept:
            _keep(kept, loaded.results([*map(text_of, rows)], batch, {*kept.texts}), len(rows), "text")


def _keep(kept: Any, results: Iterator[Any], total: int, unit: str) -> None:
    """Keep results as they are done, with a progress bar."""
    from tqdm import tqdm

    try:
        for each in tqdm(results, initial=len(kept.texts), total=total, unit=unit, disable=None):
            kept.add(each)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {kept.state}") from None
    kept.finish()


def load_quietly(source: str, threads: int | None, key: str = "MODEL", **settings: bool) -> Any:
    """What `lightgpt2.load` gives, without the remarks of transformers; `key` is the model's option in messages."""
    from lightgpt2.runtime.folder import is_exported
    from lightgpt2.runtime.loading import load

    if not is_exported(source):
        quiet_transformers()
    return load(source, threads, key=key, **settings)


def quiet_transformers() -> None:
    """Keeps progress bars and remarks out of the output."""
    import logging

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which remarks on every layer of every step


@contextlib.contextmanager
def named_as_options(verb: Callable[..., None], unit: str) -> Iterator[None]:
    """Names the settings of a verb, and one of several prompts or texts, as the command line does."""
    names = {name: f"--{name.replace('_', '-')}" for name in verb.__annotations__} | {"model": "MODEL"}
    try:
        yield
    except UserError as error:
        problems = [f"--{unit}s: {p}" if p.key.startswith(f"{unit} ") else p.renamed(names) for p in error.problems]
        raise type(error)(problems) from error


def unwritable(option: str, path: Path, folder: Path) -> list[Problem]:
    """Says now what would otherwise show when everything has been measured."""
    if path != folder and path.exists() and not path.is_file():
        return [Problem(option, f"{path} is {'a folder' if path.is_dir() else 'a device'}", "give a file")]
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if existing.is_dir() and os.access(existing, os.W_OK):
        return []
    return [Problem(option, f"{path} cannot be written, {existing} does not allow it", "give another place")]
