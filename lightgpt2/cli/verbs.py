"""The verbs. Those that train nothing themselves, with their options; the trainer's are handed on to Lightning.

All but Lightning's start at once: what takes seconds to import is imported by what needs it.
"""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

import lightgpt2
from lightgpt2.cli.parsing import plain
from lightgpt2.cli.trainer_settings import TRAINER_VERBS
from lightgpt2.errors import Interrupted, UserError, exit_with_message


def _pipeline(options: Namespace) -> None:
    from lightgpt2.runs.pipeline import run_recipe

    run_recipe(options.recipe, options.dry_run, options.run)


def _pipeline_options(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", type=str, help="A recipe: a path, or the bare name of one that ships with lightgpt2.")
    parser.add_argument(
        "--run", type=str | None, help="Folder of its runs under checkpoints/; default: the recipe's stem."
    )
    parser.add_argument("--dry-run", action="store_true", help="Show what would run and why, and run nothing.")


def _report(options: Namespace) -> None:
    from lightgpt2.report.pages import write_report

    write_report(options.folders, options.output, options.budget, options.gain)


def _report_options(parser: ArgumentParser) -> None:
    parser.add_argument("folders", type=str, nargs="+", help="Folders of runs, or of pipelines.")
    parser.add_argument("--output", type=str, default=".", help="Folder for report.md and report.html.")
    parser.add_argument(
        "--budget", type=NonNegativeFloat, default=1.0, help="How much the perplexity may rise above the source's."
    )
    parser.add_argument(
        "--gain",
        type=NonNegativeFloat,
        default=10.0,
        help="Per cent by which a stage must better a figure to have paid.",
    )


def _benchmark(options: Namespace) -> None:
    from lightgpt2.measure.arms import Settings, plan
    from lightgpt2.measure.benchmark import choose_device, measure
    from lightgpt2.models.files import write_json
    from lightgpt2.report.benchmark_table import benchmark_table

    settings = Settings(
        options.prompt_tokens, options.new_tokens, options.forward_tokens, options.batches, options.rounds
    )
    output, traces = Path(options.output), Path(options.traces)
    _check_writable("--output", output, output.parent)
    _check_writable("--traces", traces, traces)
    device = choose_device(options.device)
    arms = plan(options.models, options.precision, options.attention, settings, options.trust_remote_code, device)
    try:
        result = measure(arms, settings, device, traces)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {options.output} was not written") from None
    write_json(output, result)
    if all("error" in arm for arm in result["arms"]):
        raise UserError([f"{arm['name']}: {arm['error']}" for arm in result["arms"]])
    print(benchmark_table(result), flush=True)
    print(f"\nfigures: {options.output}   traces: {options.traces}", flush=True)


def _check_all(checks: list[Callable[[], None]]) -> None:
    """Raises all mistakes at once."""
    problems = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)


def _check_new_folder(option: str, folder: Path) -> None:
    if folder.exists():
        raise UserError(f"{option}: {folder} exists already; remove it, or give another folder")
    _check_writable(option, folder, folder.parent)


def _check_writable(option: str, path: Path, folder: Path) -> None:
    """Says now what would otherwise show when everything has been measured."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if path != folder and path.is_dir():
        raise UserError(f"{option}: {path} is a folder; give a file")
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{option}: {path} cannot be written, {existing} does not allow it; give another place")


def _benchmark_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "models",
        type=str,
        nargs="+",
        help="Model folders, exported folders, GGUF files or hub models. First: the baseline.",
    )
    parser.add_argument(
        "--precision",
        type=Literal["fp32", "bf16", "fp16", "int8", "nf4"],
        nargs="+",
        help="Precisions to measure every model in; default: fp32, or what a folder is quantized to or exported as.",
    )
    parser.add_argument(
        "--attention",
        type=Literal["sdpa", "eager", "flash"],
        nargs="+",
        default=["sdpa"],
        help="Kinds of attention; flash is sdpa held to its flash kernel.",
    )
    parser.add_argument("--rounds", type=PositiveInt, default=5, help="How often every model is measured, in turns.")
    parser.add_argument(
        "--new-tokens", type=PositiveInt, nargs="+", default=[128, 256], help="Numbers of new tokens to generate."
    )
    parser.add_argument("--prompt-tokens", type=PositiveInt, default=32, help="Length of the random prompt.")
    parser.add_argument(
        "--batches", type=PositiveInt, nargs="+", default=[1, 16], help="Batch sizes of the forward pass."
    )
    parser.add_argument(
        "--forward-tokens", type=PositiveInt, default=128, help="Length of the sequences of the forward pass."
    )
    parser.add_argument("--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="Where to measure.")
    parser.add_argument("--output", type=str, default="benchmark.json", help="File for the figures.")
    parser.add_argument("--traces", type=str, default="tb-logs/benchmark", help="Folder for the profiler's traces.")
    parser.add_argument("--trust-remote-code", action="store_true", help="Let code in the models' folders run.")


def _export(options: Namespace) -> None:
    from lightgpt2.conversions.export import check_model, export
    from lightgpt2.conversions.onnx.encoder_export import export_encoder
    from lightgpt2.conversions.target import Target, default_output
    from lightgpt2.data.validation import validation_data, validation_texts
    from lightgpt2.models.loading import is_encoder
    from lightgpt2.report.exported import encoder_line, exported_line

    target = Target(options.format, options.embeddings, options.group, options.gguf_type, options.prefill)
    output = Path(options.output).expanduser() if options.output else default_output(options.model, target)
    if is_encoder(options.model, "MODEL"):
        _check_new_folder("--output", output)
        texts, named = validation_texts(options.data, options.documents)
        print(encoder_line(output, export_encoder(options.model, target, output, texts, named)), flush=True)
        return
    checks: list[Callable[[], None]] = [
        lambda: _check_new_folder("--output", output),
        lambda: check_model(options.model, target, options.trust_remote_code),
    ]
    _check_all(checks)
    data = validation_data(options.model, options.data, options.trust_remote_code)
    try:
        about = export(
            options.model,
            target,
            output,
            data,
            documents=options.documents,
            trust_remote_code=options.trust_remote_code,
        )
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {output} was not written") from None
    print(exported_line(output, about), flush=True)


def _export_options(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=str, help="Model folder, GGUF file or hub model.")
    parser.add_argument(
        "--format",
        type=Literal["onnx", "onnx-int8", "onnx-int4", "gguf"],
        required=True,
        help="ONNX in FP32, INT8 or INT4, or GGUF.",
    )
    parser.add_argument(
        "--output", type=str | None, help="Folder to write; default: beside the model's folder, MODEL-FORMAT."
    )
    parser.add_argument(
        "--embeddings",
        type=Literal["fp32", "int8", "int4"],
        help="Token embedding and head of onnx-int8 and onnx-int4; default: int8.",
    )
    parser.add_argument(
        "--group",
        type=PositiveInt | None,
        help="Inputs that share a scale in onnx-int4; default: 32. With more a token is faster.",
    )
    parser.add_argument(
        "--prefill",
        type=Literal["int8"],
        help="Reads prompts with onnx-int4's weights made INT8 when they are loaded: faster, in more memory.",
    )
    parser.add_argument(
        "--gguf-type",
        type=Literal["F32", "F16", "Q8_0", "Q4_0"],
        help="What gguf stores matrices as; default: F16.",
    )
    parser.add_argument(
        "--data",
        type=str | None,
        help="Text that it is verified with, as data.source; default: what the model was trained on, else pydoc.",
    )
    parser.add_argument(
        "--documents", type=PositiveInt, default=200, help="Documents of the validation split to score."
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="Let code in the model's folder run.")


def _sweep(options: Namespace) -> None:
    from lightgpt2.runs.sweep import run_sweep

    run_sweep(
        options.config, options.key, options["values"], options.run, options.targets, float(options.budget), options.set
    )


def _sweep_options(parser: ArgumentParser) -> None:
    parser.add_argument("--config", type=str, required=True, help="As for fit: a path, or a shipped configuration.")
    parser.add_argument(
        "--key",
        type=str,
        default="sparsity",
        help="What is swept: sparsity, or the dotted key of a number of the config.",
    )
    parser.add_argument(
        "--values", type=float, nargs="+", default=[], help="Its values; of sparsity, 0 to 0.9 in steps of 0.1."
    )
    parser.add_argument("--run", type=str | None, help="Name of the run; default: the config's stem.")
    parser.add_argument(
        "--targets",
        type=str | None,
        help="What is pruned: lora, linear, or a regular expression. Default: lora if there are any.",
    )
    parser.add_argument(
        "--budget",
        type=NonNegativeFloat,
        default=1.0,
        help="How much the perplexity may rise above that of sparsity 0.",
    )
    parser.add_argument("--set", type=str, nargs="+", default=[], help="Further settings, key=value each.")


def _generate(options: Namespace) -> None:
    from lightgpt2.cli.generate import generate

    if options.output is not None:
        _check_writable("--output", Path(options.output), Path(options.output).parent)
    generate(options.as_dict())


def _generate_options(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=str, help="An exported folder, a model folder, a GGUF file or a hub model.")
    parser.add_argument("--prompt", type=str, help="Text to continue; what is new goes to standard output.")
    parser.add_argument("--prompts", type=str, help='A JSONL file of many, a line {"prompt": "..."} for each.')
    parser.add_argument(
        "--output", type=str, help="JSONL file for their lines with text added; default: standard output."
    )
    parser.add_argument(
        "--batch", type=PositiveInt, default=8, help="How many prompts of a file are continued together."
    )
    parser.add_argument(
        "--max-new-tokens", type=PositiveInt | None, help="Default of this and what follows: the folder's; else 256."
    )
    parser.add_argument(
        "--temperature", type=NonNegativeFloat | None, help="0, the default, takes the likeliest token."
    )
    parser.add_argument("--top-k", type=NonNegativeInt | None, help="Of so many of the likeliest; 0: of all; else 50.")
    parser.add_argument(
        "--top-p", type=PositiveFloat | None, help="Of the fewest with this share of probability; else 1."
    )
    parser.add_argument(
        "--repetition-penalty", type=PositiveFloat | None, help="Above 1: less likely what was there; else 1."
    )
    parser.add_argument(
        "--no-repeat-ngram", type=NonNegativeInt | None, help="So many tokens may not come twice; else 0."
    )
    parser.add_argument("--stop", type=str, nargs="+", default=[], help="Texts that end it, and are not printed.")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="The same seed gives the same text.")
    parser.add_argument("--threads", type=PositiveInt | None, help="Threads that compute; default: all cores.")
    parser.add_argument("--trust-remote-code", action="store_true", help="Let code in the model's folder run.")


VERBS: dict[str, tuple[str, Callable[[ArgumentParser], None], Callable[[Namespace], None]]] = {
    "pipeline": ("Run the stages of a recipe that are not done yet, in order.", _pipeline_options, _pipeline),
    "benchmark": (
        "Measure speed and memory of models side by side, each in a process of its own.",
        _benchmark_options,
        _benchmark,
    ),
    "generate": ("Continue a prompt, or each of a file.", _generate_options, _generate),
    "export": ("Write a model as ONNX or GGUF, verified: a folder that stands alone.", _export_options, _export),
    "sweep": ("Score a model at many sparsities, or at many values of a setting.", _sweep_options, _sweep),
    "report": (
        "Write what each stage of finished runs bought, as report.md and report.html.",
        _report_options,
        _report,
    ),
}


def run(args: list[str]) -> None:
    """Runs one of the verbs.

    Args:
        args: The command line, the verb first.
    """
    text, add_options, work = VERBS[args[0]]
    parser = ArgumentParser(prog=f"lightgpt2 {args[0]}", description=text, exit_on_error=False)
    add_options(parser)
    with exit_with_message():
        try:
            options = parser.parse_args(args[1:])
        except ArgumentError as error:
            said = " ".join(str(error).split())
            key = re.match(r'Parser key "(\w+)"( element \d+)?: ', said)
            reason = f"--{key[1].replace('_', '-')}: {plain(said[key.end() :])}" if key else said
            raise UserError(f"{reason}; see lightgpt2 {args[0]} --help") from error
        work(options)


def is_verb(args: list[str]) -> bool:
    """Whether a command line is for this file and not for Lightning's."""
    return bool(args) and args[0] in VERBS


def _overview() -> str:
    """What there is to be called, a line each."""
    texts = TRAINER_VERBS | {verb: text for verb, (text, _, _) in VERBS.items()}
    width = max(map(len, texts))
    lines = [f"  {verb:{width}}  {text}" for verb, text in texts.items()]
    usage = "usage: lightgpt2 VERB ...   (lightgpt2 VERB --help: its options)"
    return "\n".join([lightgpt2.__doc__ or "", "", usage, "", *lines])


def main() -> None:
    """Entry point of the `lightgpt2` command."""
    args = sys.argv[1:]
    if is_verb(args):
        run(args)
        return
    with exit_with_message():  # a Ctrl-C in these seconds too
        if args[:1] in (["-h"], ["--help"]):
            print(_overview())
            return
        if args == ["--version"]:
            print(f"lightgpt2 {lightgpt2.__version__}")
            return
        if not args:
            raise UserError(f"no verb; give one of {', '.join([*TRAINER_VERBS, *VERBS])} (lightgpt2 --help)")
        if not args[0].startswith("-") and args[0] not in TRAINER_VERBS:
            raise UserError(f"{args[0]}: no such verb; give one of {', '.join([*TRAINER_VERBS, *VERBS])}")
        from lightgpt2.cli.trainer import main as lightning_main

    lightning_main()
