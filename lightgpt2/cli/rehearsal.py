"""Reading configurations before their turn comes, so that a mistake in the last one shows before the first has run.

`python -m lightgpt2.cli.rehearsal` reads them from its standard input, and writes what is wrong with them, in YAML.
"""

import contextlib
import sys
import tempfile
from pathlib import Path

import yaml
from jsonargparse import Namespace

from lightgpt2.cli import trainer as cli
from lightgpt2.errors import UserError
from lightgpt2.runs.settings import Settings


class _Rehearsal(cli.LightGPT2CLI):
    """Reads a configuration, builds what needs no model, and ends there; no folder of a run is looked at."""

    def _find_start(self, settings: Namespace) -> None:
        pass

    def _provide_and_check(self, problems: list[str]) -> None:
        raise UserError(problems)


def rehearse(configs: dict[str, Settings]) -> list[str]:
    """What is wrong with configurations of `fit`, as far as shows while their models are not there.

    Args:
        configs: The configurations by what they are called.

    Returns:
        One line for each mistake, beginning with what its configuration is called.
    """
    problems = []
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as scratch:
        for name, settings in configs.items():
            path = Path(scratch) / "config.yaml"
            path.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
            try:
                cli.run(_Rehearsal, ["check", "--config", str(path)])
            except UserError as error:
                problems += [f"{name}.{problem}" for problem in error.problems]
    return problems


if __name__ == "__main__":
    print(yaml.safe_dump(rehearse(yaml.safe_load(sys.stdin))))
