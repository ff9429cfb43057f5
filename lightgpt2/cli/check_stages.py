"""Checks the configurations of stages before their turn comes: a mistake in the last shows before the first has run.

`python -m lightgpt2.cli.check_stages` reads them from standard input by their names, and writes the mistakes, in YAML.
"""

import contextlib
import sys
import tempfile
from pathlib import Path

import yaml
from jsonargparse import Namespace

from lightgpt2.cli.checking import check
from lightgpt2.cli.trainer import LightGPT2CLI, launch
from lightgpt2.errors import UserError
from lightgpt2.runs.settings import Settings


class _Checked(LightGPT2CLI):
    """Reads a configuration, builds what needs no model, and ends there; no folder of a run is looked at."""

    def _find_start(self, settings: Namespace) -> None:
        pass

    def _check_models(self, problems: list[str]) -> None:
        raise UserError(problems or self.datamodule.unreadable(fetch=False))


def check_stages(configs: dict[str, Settings]) -> list[str]:
    """The mistakes in configurations of `fit` by name, a line each, as far as they show while their models are not there."""
    problems = []
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as scratch:
        for name, settings in configs.items():
            path = Path(scratch) / "config.yaml"
            path.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
            try:
                launch(_Checked, check(["check", "--config", str(path)], models=False))
            except UserError as error:
                problems += [str(problem.under(name)) for problem in error.problems]
    return problems


if __name__ == "__main__":
    print(yaml.safe_dump(check_stages(yaml.safe_load(sys.stdin))))
