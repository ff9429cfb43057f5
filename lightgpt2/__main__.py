"""`python -m lightgpt2`, and the `lightgpt2` command."""

import signal


def main() -> None:
    """Entry point of the command: a Ctrl-C ends the process without a word until there is something that hears it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lightgpt2.cli import verbs

    verbs.main()


if __name__ == "__main__":
    main()
