"""`lightgpt2 check`: everything built, nothing trained."""

from lightning import Callback, Trainer

from lightgpt2.callbacks.progress import parameters
from lightgpt2.methods.method import Method


class Checked(Exception):  # noqa: N818 - not an error: it ends the fit before its first step
    """Everything has been built."""


class Check(Callback):
    """Prints what would be trained, and ends the fit."""

    def on_fit_start(self, trainer: Trainer, pl_module: Method) -> None:
        """Counts parameters and steps once data, model and optimizer stand."""
        if trainer.is_global_zero:
            total, trained = parameters(pl_module)
            print(f"trainable parameters: {trained:,} of {total:,} ({trained / total:.4%})")
            print(f"optimizer steps: {pl_module.total_steps:,}\nok", flush=True)
        raise Checked
