"""What a callback of a run is, beyond one of Lightning's."""

from lightning import Callback

from lightgpt2.errors import Problem
from lightgpt2.runs.run import Run


class RunCallback(Callback):
    """A callback that knows its run; the command line calls `attach` before anything is built.

    Attributes:
        phase: When it works at fit end: 0 before the artefact is written, 1 converts it, 2 measures it and its copies, 3 comes
            after all that writes to the ledger.
        run: The run.
    """

    phase: int = 0
    run: Run

    def attach(self, run: Run) -> list[Problem]:
        """Takes the run; the mistakes in the settings, keys below the callback's own name.

        Args:
            run: The run.
        """
        self.run = run
        return []
