"""Stands in for what the command line and the report are about to do; goes when they do it."""

from typing import Any

from lightgpt2.callbacks import convert, export
from lightgpt2.callbacks.base import RunCallback
from lightgpt2.errors import UserError
from lightgpt2.models.quality import value_of
from lightgpt2.report import exported as report_lines


def install() -> None:
    if hasattr(RunCallback, "order"):
        return
    RunCallback.order = property(lambda self: self.phase)  # type: ignore[attr-defined]
    for kind in (convert.Convert, export.Export):
        own = kind.attach

        def attached(self: Any, run: Any, own: Any = own) -> Any:
            problems = own(self, run)
            if problems and type(self).attach.__defaults__ == (own,):
                raise UserError([problem.under(f"trainer.callbacks.{type(self).__name__}") for problem in problems])
            return problems

        kind.attach = attached  # type: ignore[method-assign]

    def line(folder: Any, about: Any) -> str:
        after = about["quality"]["after"]
        return f"{folder}: {sum(about['bytes'].values()) / 1e6:.2f} MB; perplexity {value_of(after):.2f}"

    export.exported_line = report_lines.exported_line = line
