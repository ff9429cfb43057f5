"""Copies of the artefact in other formats, at fit end."""

import copy
from collections.abc import Sequence
from typing import Any, cast

from lightning import Trainer
from transformers import PretrainedConfig

from lightgpt2.callbacks.base import RunCallback
from lightgpt2.conversions.base import Conversion
from lightgpt2.conversions.convert import Converted, Converter
from lightgpt2.errors import Problem, UserError
from lightgpt2.measure.memory import weights_mb
from lightgpt2.methods.method import Method
from lightgpt2.report.table import precisions
from lightgpt2.runs.run import Run


class Convert(RunCallback):
    """Writes the artefact anew with each conversion, as `model-NAME/` beside it, and scores each from disk.

    What cannot be converted is refused before anything is trained. A copy that is not good enough is not written; the run fails
    when all others are there.

    ```yaml
    trainer:
      callbacks:
        - {class_path: lightgpt2.callbacks.Convert, init_args: {conversions: [my_package.Halved]}}
    ```

    Args:
        conversions: What is done to the artefact.
    """

    phase = 1
    setting = "conversions"  # the argument that lists what is written, for messages

    def __init__(self, conversions: list[Conversion]) -> None:
        self.conversions: Sequence[Conversion] = [*conversions]
        self.names = [conversion.name for conversion in conversions]
        self.rows: dict[str, dict[str, Any]] = {}  # of the table

    def attach(self, run: Run) -> list[Problem]:
        self.run = run
        if self.names and len({*self.names}) == len(self.names):
            return []
        return [Problem(self.setting, f"must be one or more, each once, got {', '.join(self.names) or 'none'}")]

    def setup(self, trainer: Trainer, pl_module: Method, stage: str) -> None:
        """Refuse to write a folder that another callback writes too."""
        for conversion in self.conversions:
            conversion.trust_remote_code = pl_module.trust_remote_code
        for other in cast(Any, trainer).callbacks:
            both = {*self.names} & {*other.names} if isinstance(other, Convert) and other is not self else None
            if both:
                what = f"{min(both)} is among those of {type(other).__name__} too"
                raise UserError([self._located(Problem("", what, "remove one of the two"))])

    def on_fit_start(self, trainer: Trainer, pl_module: Method) -> None:
        config, data = _artefact_config(pl_module), pl_module.data
        found = [(each, problem) for each in self.conversions for problem in each.problems(config, data)]
        if found:
            raise UserError(dict.fromkeys(self._located(problem, each) for each, problem in found))

    def on_fit_end(self, trainer: Trainer, pl_module: Method) -> None:
        if not trainer.is_global_zero:
            return
        data, task, device = pl_module.data, pl_module.task, trainer.strategy.root_device
        converter = Converter(data, task, type(self).__name__, scored=True, device=device, memory=weights_mb)
        self.rows = self.references(converter, pl_module.trust_remote_code)
        problems = []
        for conversion in self.conversions:
            try:
                made = converter.convert(conversion, str(self.run.model), self.run.sibling(conversion.name))
            except UserError as error:
                problems += [self._located(problem, conversion) for problem in error.problems]
            else:
                self.show(conversion, made)
        if self.rows:
            print(precisions(self.rows), flush=True)
        if problems:
            raise UserError(problems)

    def references(self, converter: Converter, trust_remote_code: bool) -> dict[str, dict[str, Any]]:
        """Rows of the table to compare with."""
        return {}

    def show(self, conversion: Conversion, made: Converted) -> None:
        """Add a row to the table, or print a line."""
        matched, linears = (made.operation.get(key) for key in ("matched", "linears"))
        quantized = f"{matched}/{linears}" if linears else "all"
        self.rows[conversion.name] = {"memory": None, **made.quality["after"], **made.sizes, "quantized": quantized}

    def _located(self, problem: Problem, conversion: Conversion | None = None) -> Problem:
        """A conversion's problem by the callback's settings; another one, of a file say, as it is."""
        key = f"trainer.callbacks.{type(self).__name__}"
        if problem.key and problem.key in vars(self):  # a setting that the callback hands on
            return problem.under(key)
        if problem.key and not (conversion and problem.key in vars(conversion)):
            return problem
        place = ".".join(filter(None, [key, self.setting, problem.key]))
        return Problem(place, f"{conversion.name}: {problem.what}" if conversion else problem.what, problem.fix)


def _artefact_config(method: Method) -> PretrainedConfig:
    """The configuration of what a method will save: in full precision, unless it saves integers."""
    config = cast(PretrainedConfig, copy.deepcopy(method.model.config))
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    if method.precision:
        rounds = any(operation.get("activations") for operation in method.operations)
        about = {"stored": method.precision, **({"activations": "int8"} if rounds else {})}
        config.update({"lightgpt2": {**getattr(config, "lightgpt2", {}), **about}})
    return config
