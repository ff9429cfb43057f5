"""`lightgpt2 check`: everything built, nothing trained."""

from lightning import Callback, LightningModule, Trainer

from lightgpt2.methods.method import Method


class Checked(Exception):  # noqa: N818 - not an error: it ends the fit before its first step
    """Everything has been built."""


class Check(Callback):
    """Prints what would be trained, and ends the fit."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts parameters and steps once data, model and optimizer stand."""
        assert isinstance(pl_module, Method)
        counts = [(p.numel(), p.requires_grad) for p in pl_module.model.parameters()]
        total, trainable = sum(n for n, _ in counts), sum(n for n, grad in counts if grad)
        if trainer.is_global_zero:
            print(f"trainable parameters: {trainable:,} of {total:,} ({trainable / total:.4%})")
            print(f"optimizer steps: {pl_module.total_steps:,}")
            print("ok", flush=True)
        raise Checked
