"""The report of a run, at its end."""

from jsonargparse.typing import NonNegativeFloat
from lightning import Trainer

from lightgpt2.callbacks.base import RunCallback
from lightgpt2.methods.method import Method
from lightgpt2.report.pages import write_report


class Report(RunCallback):
    """Writes `report.md` and `report.html` into the run's folder, as `lightgpt2 report` does.

    Args:
        budget: By how many per cent the primary metric may be worse than the source's.
        gain: By how many per cent a stage must better a figure to have paid.
    """

    phase = 4  # after all that writes to the ledger

    def __init__(self, budget: NonNegativeFloat = 2.0, gain: NonNegativeFloat = 10.0) -> None:
        self.budget, self.gain = float(budget), float(gain)

    def on_fit_end(self, trainer: Trainer, pl_module: Method) -> None:
        if trainer.is_global_zero:
            write_report([str(self.run.folder)], str(self.run.folder), self.budget, self.gain)
