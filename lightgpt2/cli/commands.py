"""The verbs that train nothing themselves: one function each, whose signature and docstring are its options and help.

They start at once: what takes seconds to import is imported by the function that needs it.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from lightgpt2.errors import Interrupted, Problem, UserError, refuse


def pipeline(recipe: str, *, run: str | None = None, dry_run: bool = False) -> None:
    """Run the stages of a recipe that are not done yet, in order.

    Args:
        recipe: A recipe: a path, or the bare name of one that ships with lightgpt2.
        run: Folder of its runs under checkpoints/ (default: the recipe's stem).
        dry_run: Show what would run and why, and run nothing.
    """
    from lightgpt2.runs.pipeline import run_recipe

    run_recipe(recipe, dry_run, run)


def report(
    folders: list[str], *, output: str = ".", budget: NonNegativeFloat = 2.0, gain: NonNegativeFloat = 10.0
) -> None:
    """Write what each stage of finished runs bought, as report.md and report.html.

    Args:
        folders: Folders of runs, or of pipelines.
        output: Folder for report.md and report.html.
        budget: Per cent by which the primary metric may be worse than the source's.
        gain: Per cent by which a stage must better a figure to have paid.
    """
    from lightgpt2.report.pages import write_report

    write_report(folders, output, budget, gain)


def benchmark(
    models: list[str],
    *,
    precision: list[Literal["fp32", "bf16", "fp16", "int8", "nf4", "dynamic-int8"]] | None = None,
    attention: list[Literal["sdpa", "eager", "flash"]] = ["sdpa"],  # noqa: B006 - nobody changes it
    rounds: PositiveInt = 5,
    new_tokens: list[PositiveInt] | None = None,
    prompt_tokens: PositiveInt | None = None,
    batches: list[PositiveInt] | None = None,
    forward_tokens: list[PositiveInt] | None = None,
    concurrency: list[PositiveInt] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    output: str = "benchmark.json",
    traces: str = "tb-logs/benchmark",
    verify: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Measure speed and memory of models side by side, each in a fresh process.

    What is run is what the models are for: decoders generate, classifiers read texts.

    Args:
        models: Model folders, exported folders, GGUF files or hub models. The first is the baseline.
        precision: Precisions to measure every model in (default: fp32, or what a folder is quantized to or exported as);
            dynamic-int8 is PyTorch's own.
        attention: Kinds of attention; flash is sdpa held to its flash kernel.
        rounds: How often every model is measured, in turns.
        new_tokens: Numbers of new tokens to generate (default: 128 256).
        prompt_tokens: Length of the random prompt (default: 32).
        batches: Batch sizes of the forward pass (default: 1 16); of a classifier, in which texts are read (default: 16).
        forward_tokens: Lengths of the texts of the forward pass (default: 128; of a classifier 8 32 128 256 512).
        concurrency: Numbers of threads from which a classifier is called (default: 1 2 4 8).
        device: Where to measure.
        output: File for the figures.
        traces: Folder for the profiler's traces.
        verify: Compare every file of the models' folders with its checksum first.
        trust_remote_code: Let code in the models' folders run.
    """
    from lightgpt2.measure.benchmark import Stopped, choose_device, measure
    from lightgpt2.measure.plan import plan
    from lightgpt2.models.files import write_json
    from lightgpt2.report.table import benchmark_table

    settings = {
        "new_tokens": new_tokens, "prompt_tokens": prompt_tokens, "batches": batches,
        "forward_tokens": forward_tokens, "concurrency": concurrency,
    }  # fmt: skip
    refuse(_unwritable("--output", Path(output), Path(output).parent))
    refuse(_unwritable("--traces", Path(traces), Path(traces)))
    chosen = choose_device(device)
    arms, workloads = plan(models, precision, attention, settings, trust_remote_code, chosen, verify)
    try:
        result = measure(arms, workloads, rounds, chosen, Path(traces))
    except Stopped as stop:
        if not (result := stop.result):
            raise Interrupted(f"stopped; {output} was not written") from None
        write_json(Path(output), result)
        print(benchmark_table(result), flush=True)
        measured = sum("error" not in arm for arm in result["arms"])
        kept = f"{measured} of {len(arms)} models, in {result['settings']['rounds']} of {rounds} rounds"
        raise Interrupted(f"stopped; {output} has what is measured: {kept}") from None
    write_json(Path(output), result)
    if all("error" in arm for arm in result["arms"]):
        raise UserError([Problem(arm["name"], arm["error"]) for arm in result["arms"]])
    print(f"{benchmark_table(result)}\n\nfigures: {output}   traces: {traces}", flush=True)


def export(
    model: str,
    *,
    format: Literal["onnx", "onnx-int8", "onnx-int4", "gguf"],
    output: str | None = None,
    embeddings: Literal["fp32", "int8", "int4"] | None = None,
    group: PositiveInt | None = None,
    prefill: Literal["int8"] | None = None,
    gguf_type: Literal["F32", "F16", "Q8_0", "Q4_0"] | None = None,
    data: str | None = None,
    documents: PositiveInt = 200,
    trust_remote_code: bool = False,
) -> None:
    """Write a model as ONNX or GGUF, verified: a folder that stands alone.

    Args:
        model: Model folder, GGUF file or hub model.
        format: ONNX in FP32, INT8 or INT4, or GGUF.
        output: Folder to write (default: MODEL-FORMAT, beside the model's folder).
        embeddings: Token embedding and head of onnx-int8 and onnx-int4 (default: int8).
        group: Inputs that share a scale in onnx-int4 (default: 32). With more a token is faster.
        prefill: Read prompts with onnx-int4's weights as INT8, converted when they are loaded: faster, in more memory.
        gguf_type: What gguf stores matrices as (default: F16).
        data: Text to verify it with, as data.source, labelled for a classifier (default: that of its training, else pydoc).
        documents: Documents, or labelled texts, of the validation split to score.
        trust_remote_code: Let code in the model's folder run.
    """
    from lightgpt2.conversions.export import check_model
    from lightgpt2.conversions.export import export as write
    from lightgpt2.conversions.onnx.encoder_export import export_encoder
    from lightgpt2.conversions.target import Target, default_output
    from lightgpt2.data.validation import is_labelled, validation_data, validation_texts
    from lightgpt2.models.loading import is_encoder
    from lightgpt2.report.table import encoder_line, exported_line

    target = Target(format, embeddings, group, gguf_type, prefill)
    folder = Path(output).expanduser() if output else default_output(model, target)
    if is_encoder(model, "MODEL") and not is_labelled(model, data):
        refuse(_taken(folder))
        texts, named = validation_texts(data, documents)
        print(encoder_line(folder, export_encoder(model, target, folder, texts, named)), flush=True)
        return
    problems = _taken(folder)
    try:
        check_model(model, target, trust_remote_code)
    except UserError as error:
        problems += error.problems
    refuse(problems)
    try:
        text = validation_data(model, data, trust_remote_code)
        about = write(model, target, folder, text, documents=documents, trust_remote_code=trust_remote_code)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {folder} was not written") from None
    print(exported_line(folder, about), flush=True)


def sweep(
    *,
    config: str,
    key: str = "sparsity",
    values: list[float] = [],  # noqa: B006
    run: str | None = None,
    targets: str | None = None,
    budget: NonNegativeFloat = 2.0,
    set: list[str] = [],  # noqa: B006
) -> None:
    """Score a model at many sparsities, or at many values of a setting.

    Args:
        config: As for fit: a path, or a shipped configuration.
        key: What is swept: sparsity, or the dotted key of a number of the config.
        values: Its values (default for sparsity: 0 to 0.9 in steps of 0.1).
        run: Name of the run (default: the config's stem).
        targets: What is pruned: lora, linear, or a regular expression (default: lora if there are any).
        budget: Per cent by which the primary metric may be worse than at the first value.
        set: Further settings, key=value each.
    """
    from lightgpt2.runs.sweep import run_sweep

    run_sweep(config, key, values, run, targets, float(budget), set)


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
    stop: list[str] = [],  # noqa: B006
    seed: NonNegativeInt = 0,
    threads: PositiveInt | None = None,
    verify: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Continue a prompt, or each prompt of a file, or answer as an assistant.

    The settings of the sampling default to what the model's folder says, else to the value in brackets.

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
        stop: Texts that end a continuation, and are not printed.
        seed: Seed of the sampling: the same seed gives the same text.
        threads: Threads to compute with (default: all cores).
        verify: Compare every file of the model's folder with its checksum first. (Exported folders always are.)
        trust_remote_code: Let code in the model's folder run.
    """
    from lightgpt2.runtime.folder import is_exported
    from lightgpt2.runtime.language_model import Continuation, LanguageModel
    from lightgpt2.runtime.loading import load
    from lightgpt2.runtime.options import resolve
    from lightgpt2.runtime.prompts import Texts, conversation, read_prompts, stamp

    options = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "stop": stop,
        "repetition_penalty": repetition_penalty, "no_repeat_ngram": no_repeat_ngram, "seed": seed, "batch_size": batch,
    }  # fmt: skip
    if output is not None:
        refuse(_unwritable("--output", Path(output), Path(output).parent))
    given = 2 - [prompt, prompts].count(None)
    if given == 2 or (given == 0 and not chat):
        raise UserError("--prompt: give it or --prompts, one of the two; or --chat for a conversation")
    if system is not None and not chat:
        raise UserError("--system: it is for --chat; add that, or remove it")
    if prompt == "":
        raise UserError("--prompt: it is empty; give some text to continue")
    if output is not None and prompts is None:
        raise UserError("--output: it is for --prompts; a single text goes to standard output, remove it")
    with _named_as_options(generate, "prompt"):
        # What a folder says can make an option useless, and never wrong.
        resolve(options, {"do_sample": True})
        rows = [{"prompt": prompt}] if prompts is None else read_prompts(Path(prompts), chat)
        if not is_exported(model):
            quiet_transformers()
        loaded = load(model, threads, verify=verify, trust_remote_code=trust_remote_code, key="MODEL")
        if not isinstance(loaded, LanguageModel):
            raise UserError(f"MODEL: {model} classifies texts; use lightgpt2 classify")
        head = [] if system is None else [{"role": "system", "content": system}]
        if given == 0:
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
    from lightgpt2.runtime.folder import is_exported
    from lightgpt2.runtime.loading import load
    from lightgpt2.runtime.prompts import Texts, read_texts, stamp, text_of
    from lightgpt2.runtime.text_classifier import Classified, TextClassifier

    if (text is None) == (texts is None):
        raise UserError("--text: give it or --texts, one of the two")
    if output is not None:
        refuse(_unwritable("--output", Path(output), Path(output).parent))
    with _named_as_options(classify, "text"):
        rows = [{"text": text}] if texts is None else read_texts(Path(texts))
        if not is_exported(model):
            quiet_transformers()
        loaded = load(model, threads, verify=verify, trust_remote_code=trust_remote_code, key="MODEL")
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


VERBS: dict[str, Callable[..., None]] = {
    verb.__name__: verb for verb in (pipeline, benchmark, generate, classify, export, sweep, report)
}


def quiet_transformers() -> None:
    """Keeps progress bars and remarks out of the output."""
    import logging

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which remarks on every layer of every step


@contextlib.contextmanager
def _named_as_options(verb: Callable[..., None], unit: str) -> Iterator[None]:
    """Names the settings of a verb, and one of several prompts or texts, as the command line does."""
    names = {name: f"--{name.replace('_', '-')}" for name in verb.__annotations__} | {"model": "MODEL"}
    try:
        yield
    except UserError as error:
        problems = [f"--{unit}s: {p}" if p.key.startswith(f"{unit} ") else p.renamed(names) for p in error.problems]
        raise type(error)(problems) from error


def _taken(folder: Path) -> list[Problem]:
    """Why a new folder cannot be written, if so."""
    if folder.exists():
        return [Problem("--output", f"{folder} exists already", "remove it, or give another folder")]
    return _unwritable("--output", folder, folder.parent)


def _unwritable(option: str, path: Path, folder: Path) -> list[Problem]:
    """Says now what would otherwise show when everything has been measured."""
    if path != folder and path.exists() and not path.is_file():
        return [Problem(option, f"{path} is {'a folder' if path.is_dir() else 'a device'}", "give a file")]
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if existing.is_dir() and os.access(existing, os.W_OK):
        return []
    return [Problem(option, f"{path} cannot be written, {existing} does not allow it", "give another place")]
