"""The `lightgpt2` command: which verb is asked for, and the help that needs no heavy import."""

import codecs
import contextlib
import difflib
import json
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Any, TextIO

import lightgpt2
from lightgpt2 import signals
from lightgpt2.cli import pages
from lightgpt2.cli.checking import check
from lightgpt2.cli.commands import VERBS
from lightgpt2.cli.trainer_settings import TRAINER_VERBS
from lightgpt2.cli.version import version
from lightgpt2.errors import Problem, UserError, exit_with_message, tell
from lightgpt2.runs.configs import shipped_docs

_ABOUT = ("-h", "--help", "--version")


def main() -> None:
    """The command line of this process: what it prints can be printed anywhere, and what asks it to stop is heard."""
    signals.on_request(signals.interrupt)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # closed: else the first file to be opened would take its place
            os.dup2(os.open(os.devnull, os.O_RDONLY), descriptor)
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    # A character that the terminal's encoding lacks ends no run.
    codecs.register_error("json", _escaped)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="json")
    product = sys.argv[1:2] in (["generate"], ["classify"])  # what it prints is what it is called for
    sys.stdout, sys.stderr = _Stream(sys.stdout, product), _Stream(sys.stderr)
    run(sys.argv[1:])


class _Stream:
    """A standard stream that ends no run: what cannot be printed (into a closed pipe, on a full disk) is dropped.

    Args:
        stream: The stream itself.
        product: Whether what is printed is all that the command makes, so that it has failed where it cannot be.
    """

    def __init__(self, stream: TextIO, product: bool = False) -> None:
        self._stream, self._product = stream, product

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., Any], *args: Any) -> None:
        try:
            call(*args)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # with what it still holds
            closed, what = isinstance(error, BrokenPipeError), f"standard output: cannot be written ({error.strerror})"
            if self._product:
                raise error if closed else UserError(what) from error
            if not closed and self._stream.fileno() == 1:
                tell(f"lightgpt2: {what}; going on without", sys.stderr)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """The characters that an encoding lacks, as JSON has them."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def run(args: list[str]) -> None:
    """Runs a command line, the verb first; ends the process with a message where it is mistaken."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # no bars where nobody sees them move
    with exit_with_message():  # a Ctrl-C while it imports, too
        _call(args)


def _call(args: list[str]) -> None:
    verb = args[0] if args else ""
    page = pages.page(verb, args[1:]) if verb in TRAINER_VERBS else None
    if page is None and (verb in TRAINER_VERBS or (verb.startswith("-") and verb not in _ABOUT)):
        _train(args)  # or prints the shell's completion
        return
    with contextlib.suppress(BrokenPipeError):  # the reader has seen enough, as `head` has
        if page is not None:
            print(page, flush=True)
        elif verb in VERBS:
            from lightgpt2.cli.options import parse

            VERBS[verb](**parse(VERBS[verb], args[1:]))
        elif verb in _ABOUT:
            print(f"lightgpt2 {version()}" if verb == "--version" else _overview(), flush=True)
        else:
            known = [*TRAINER_VERBS, *VERBS]
            near = "".join(f"did you mean {close}? Else " for close in difflib.get_close_matches(verb, known, 1))
            fix = f"{near}give one of {', '.join(known)} (lightgpt2 --help)"
            raise UserError(Problem(verb, "no such verb" if verb else "no verb", fix))


def _train(args: list[str]) -> None:
    """Checks what can be checked at once, and hands the rest to Lightning."""
    safe = args[0] == "check" and "--safe" in args
    if safe:
        args = [arg for arg in args if arg != "--safe"]
    if args[0] in TRAINER_VERBS:
        args = check(args)
    from lightgpt2.cli.trainer import LightGPT2CLI, launch

    launch(LightGPT2CLI, args, safe)


def _overview() -> str:
    """The verbs, one a line."""
    texts = TRAINER_VERBS | {name: (verb.__doc__ or "").partition("\n")[0] for name, verb in VERBS.items()}
    lines = [f"  {name:{max(map(len, texts))}}  {text}" for name, text in texts.items()]
    usage = "usage: lightgpt2 VERB ...   (lightgpt2 VERB --help: its options)"
    return "\n".join([lightgpt2.__doc__ or "", "", usage, "", *lines, "", f"Documentation: {shipped_docs()}"])
