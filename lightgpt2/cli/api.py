"""`lightgpt2.fit`: what the command does, from Python."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightgpt2.errors import Problem, UserError


@dataclass(frozen=True)
class Result:
    """What a fit has made: its model's folder, the metrics of that on the validation split, the table of the command."""

    folder: Path
    metrics: dict[str, float]
    table: str


def fit(config: str | Path, **overrides: Any) -> Result:
    """Trains as `lightgpt2 fit --config CONFIG --KEY VALUE ...` does, in this process.

    ```python
    result = lightgpt2.fit("distill.yaml", run="short", trainer__max_steps=50, **{"model.optimizer.lr": 1e-3})
    ```

    Args:
        config: Path of a configuration, or the bare name of one that ships with lightgpt2.
        **overrides: Settings by their dotted keys; a dot may be written as two underscores.

    Raises:
        UserError: There are mistakes in the settings, or the fit failed.
        Interrupted: It was interrupted; what was saved is kept.
    """
    from lightgpt2.cli.checking import check
    from lightgpt2.cli.trainer import LightGPT2CLI, launch
    from lightgpt2.models.ledger import Ledger
    from lightgpt2.models.quality import metric_names, value_of

    texts = {k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in overrides.items()}
    options = [f"--{key.replace('__', '.')}={text}" for key, text in texts.items()]
    try:
        cli = launch(LightGPT2CLI, check(["fit", "--config", str(config), *options]))
    except UserError as error:
        raise type(error)(_as_arguments(problem) for problem in error.problems) from error
    quality = Ledger.read(cli.place.model).last["quality"]["after"]
    metrics = {name: value_of(quality, name) for name in metric_names(quality)}
    return Result(cli.place.model, metrics, cli.artefact.table)


# A command stays as it is; an option, with its value where that is seen to be one.
_OPTION = re.compile(
    r"(lightgpt2 \w+(?: --\S+(?: [\w./-]+)?)*)|--([\w.]+)(?: (last|best|[A-Z]+|[\w./-]*/[\w./-]*\w|[\w./-]+$))?"
)


def _as_arguments(problem: Problem) -> Problem:
    """The same problem with arguments of `fit` in the place of options: `ckpt_path="last"` for `--ckpt_path last`."""

    def argument(found: re.Match[str]) -> str:
        command, name, value = found.groups()
        return command or (f'{name}="{value}"' if value else name)

    return Problem(*(_OPTION.sub(argument, text) for text in (problem.key, problem.what, problem.fix)))
