"""The verbs that train nothing themselves: their options, and where their work is done.

`pipeline`, `benchmark`, `sweep` and `report` start at once: what takes seconds to import is imported by what needs it.
"""

import sys
from collections.abc import Callable

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeFloat

from lightgpt2.errors import UserError, exit_with_message


def _pipeline(options: Namespace) -> None:
    from lightgpt2.pipeline import run_recipe

    run_recipe(options.recipe, options.dry_run)


def _pipeline_options(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", type=str, help="A recipe: a path, or the bare name of one that ships with lightgpt2.")
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


VERBS: dict[str, tuple[str, Callable[[ArgumentParser], None], Callable[[Namespace], None]]] = {
    "pipeline": ("Run the stages of a recipe that are not done yet, in order.", _pipeline_options, _pipeline),
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
            raise UserError(f"{' '.join(str(error).split())}; see lightgpt2 {args[0]} --help") from error
        work(options)


def is_verb(args: list[str]) -> bool:
    """Whether a command line is for this file and not for Lightning's."""
    return bool(args) and args[0] in VERBS


def main() -> None:
    """Entry point of the `lightgpt2` command."""
    if is_verb(sys.argv[1:]):
        run(sys.argv[1:])
    else:
        from lightgpt2.cli import main as lightning_main

        lightning_main()
