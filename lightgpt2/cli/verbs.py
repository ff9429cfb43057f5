"""The `lightgpt2` command: which verb is asked for, and the help that needs no heavy import."""

import contextlib
import difflib
import os
import sys
from collections.abc import Iterator

import lightgpt2
from lightgpt2.cli import pages
from lightgpt2.cli.commands import VERBS
from lightgpt2.cli.trainer_settings import TRAINER_VERBS
from lightgpt2.errors import Problem, UserError, exit_with_message


def main() -> None:
    """Entry point of the `lightgpt2` command."""
    run(sys.argv[1:])


def run(args: list[str]) -> None:
    """Runs a command line; ends the process with a message where it is mistaken.

    Args:
        args: The command line, the verb first.
    """
    with exit_with_message():  # a Ctrl-C while it imports, too
        call(args)


def call(args: list[str]) -> None:
    """Runs a command line.

    Args:
        args: The command line, the verb first.

    Raises:
        UserError: There are mistakes in it.
    """
    verb = args[0] if args else ""
    if verb in TRAINER_VERBS and (page := pages.page(verb, args[1:])) is None:
        _train(args)
        return
    with _closed_early():
        if verb in VERBS:
            from lightgpt2.cli.options import parse

            VERBS[verb](**parse(VERBS[verb], args[1:]).as_dict())
        elif verb in TRAINER_VERBS:
            print(page, flush=True)
        elif verb in ("-h", "--help"):
            print(_overview(), flush=True)
        elif verb == "--version":
            print(f"lightgpt2 {lightgpt2.__version__}")
        elif verb.startswith("-"):  # the shell's completion
            _train(args)
        else:
            known = [*TRAINER_VERBS, *VERBS]
            near = "".join(f"did you mean {close}? Else " for close in difflib.get_close_matches(verb, known, 1))
            fix = f"{near}give one of {', '.join(known)} (lightgpt2 --help)"
            raise UserError(Problem(verb, "no such verb" if verb else "no verb", fix))


def _train(args: list[str]) -> None:
    """Checks what can be checked at once, and hands the rest to Lightning."""
    if args[0] in TRAINER_VERBS:
        from lightgpt2.cli.checking import check

        args = check(args)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # no bars where nobody sees them move
    from lightgpt2.cli.trainer import LightGPT2CLI, launch

    launch(LightGPT2CLI, args)


@contextlib.contextmanager
def _closed_early() -> Iterator[None]:
    """Ends without a word where the reader of standard output has seen enough, as `head` has."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end


def _overview() -> str:
    """The verbs, one a line."""
    texts = TRAINER_VERBS | {name: (verb.__doc__ or "").partition("\n")[0] for name, verb in VERBS.items()}
    width = max(map(len, texts))
    lines = [f"  {name:{width}}  {text}" for name, text in texts.items()]
    return "\n".join(
        [f"{lightgpt2.__doc__}", "", "usage: lightgpt2 VERB ...   (lightgpt2 VERB --help: its options)", "", *lines]
    )
