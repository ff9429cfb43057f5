"""The verbs that train nothing themselves: one function each, whose signature and docstring are its options and help.

They start at once: what takes seconds to import is imported by the function that needs it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeFloat, PositiveInt

from lightgpt2.cli.evaluate import evaluate
from lightgpt2.cli.inference import classify, generate, unwritable
from lightgpt2.cli.serving import serve
from lightgpt2.cli.typing import type as type_
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
    folders: list[str],
    *,
    output: str = ".",
    budget: NonNegativeFloat = 2.0,
    gain: NonNegativeFloat = 10.0,
    watch: bool = False,
) -> None:
    """Write what each stage of finished runs bought, as report.md and report.html.

    Args:
        folders: Folders of runs, or of pipelines.
        output: Folder for report.md and report.html.
        budget: Per cent by which the primary metric may be worse than the source's.
        gain: Per cent by which a stage must better a figure to have paid.
        watch: Write it again every few seconds, with the runs that go on, until Ctrl-C; report.html follows by itself.
    """
    if watch:
        from lightgpt2.runs.watch import watch_runs as write
    else:
        from lightgpt2.report.pages import write_report as write

    write(folders, output, budget, gain)


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
        new_tokens: Numbers of new tokens to generate (default: those of 128 256 that fit).
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
    refuse(unwritable("--output", Path(output), Path(output).parent))
    refuse(unwritable("--traces", Path(traces), Path(traces)))
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


def runs(names: list[str] = []) -> None:  # noqa: B006
    """List the runs under checkpoints/ with their state, quality, size and age.

    Args:
        names: Runs, or groups of runs (default: all).
    """
    from lightgpt2.cli.overview import listing
    from lightgpt2.runs.overview import ROOT, find_runs

    found = find_runs(names)
    print(listing(found) if found else f"there are no runs under {ROOT}/ yet", flush=True)


def show(run: str) -> None:
    """Show what a run has done and made: its source, operations, quality and files.

    Args:
        run: Name of the run, or of a group of runs.
    """
    from lightgpt2.cli.overview import details
    from lightgpt2.runs.overview import find_runs

    print("\n\n".join(map(details, find_runs([run]))), flush=True)


def clean(names: list[str] = [], *, data: bool = False, yes: bool = False) -> None:  # noqa: B006
    """Remove what finished runs no longer need: the checkpoints to resume from. Models stay.

    Args:
        names: Runs, or groups of runs (default: all).
        data: Remove the prepared data too, tokens and what teachers have written; runs prepare it anew.
        yes: Remove it; without, it is only listed.
    """
    from lightgpt2.models.files import remove
    from lightgpt2.runs.overview import find_runs, megabytes, unneeded

    sizes = {path: megabytes(path) for path in unneeded(find_runs(names), data)}
    for path, size in sizes.items():
        if yes:
            remove(path)
        print(f"{'removed ' if yes else ''}{path}, {size:.2f} MB")
    said = "removed" if yes else "can go: give --yes to remove it"
    print(f"{sum(sizes.values()):.2f} MB {said}" if sizes else "nothing can go", flush=True)


def card(run: str, *, name: str | None = None, output: str | None = None) -> None:
    """Write a finished model's card for the hub, from its ledger: what was done, quality, size, data, licences.

    Args:
        run: Name of a run, or a model folder or exported folder.
        name: What the model is called in it, owner/name on the hub (default: the run's name).
        output: File to write (default: README.md in the model's folder).
    """
    from lightgpt2.report.card import CARD
    from lightgpt2.runs.hub import finished_model, write_card

    folder = finished_model(run)
    target = Path(output).expanduser() if output else folder / CARD
    refuse(unwritable("--output", target, target.parent))
    write_card(folder, name or Path(run).name, target)
    print(f"card: {target}", flush=True)


def push(run: str, name: str, *, private: bool = False) -> None:
    """Upload a finished model to the hub, with its card. A README.md that is in its folder is kept.

    Args:
        run: Name of a run, or a model folder or exported folder.
        name: The repository, owner/name.
        private: Make a new repository private.
    """
    from lightgpt2.runs.hub import finished_model
    from lightgpt2.runs.hub import push as upload

    print(f"uploaded: {upload(finished_model(run), name, private)}", flush=True)


_VERBS = (
    pipeline,
    benchmark,
    evaluate,
    generate,
    classify,
    type_,
    serve,
    export,
    sweep,
    report,
    runs,
    show,
    clean,
    card,
    push,
)
VERBS: dict[str, Callable[..., None]] = {verb.__name__: verb for verb in _VERBS}


def _taken(folder: Path) -> list[Problem]:
    """Why a new folder cannot be written, if so."""
    if folder.exists():
        return [Problem("--output", f"{folder} exists already", "remove it, or give another folder")]
    return unwritable("--output", folder, folder.parent)
