"""Print the scores of `validate` and `test`, and write the predictions of `predict`."""

import json
from typing import Any

from lightning import Callback, Trainer

from lightgpt2.methods.method import Method
from lightgpt2.methods.processes import of_all_processes
from lightgpt2.models.files import atomic_file
from lightgpt2.report.table import class_table
from lightgpt2.runs.run import Run


class ScorePrinter(Callback):
    """Prints each metric of a split with its 95 % interval, and what was scored; of classes, a table."""

    def on_validation_end(self, trainer: Trainer, pl_module: Method) -> None:
        self._print(trainer, pl_module, "valid")

    def on_test_end(self, trainer: Trainer, pl_module: Method) -> None:
        self._print(trainer, pl_module, "test")

    def _print(self, trainer: Trainer, method: Method, split: str) -> None:
        if not trainer.is_global_zero:
            return
        parts = []
        for name, metric in method.metrics.items():
            text = f"{name.replace('_', ' ')} {metric.value():.4f}"
            if name == method.task.primary:
                bounds = metric.interval()
                shown = "{:.4f} - {:.4f}".format(*bounds) if bounds else "of one example there is none"
                text += f" (95 % interval {shown})"
            parts.append(text)
        counts = [f"{count:,} {what}" for what, count in method.task.counts(method.metrics).items()]
        classes = class_table(method.task.quality(method.metrics))
        print(f"{split}: {', '.join([*parts, ' in '.join(counts)])}{classes}", flush=True)
        for label, metrics in method.task.baselines(method.data, split).items():
            said = [f"{name.replace('_', ' ')} {metric.value():.4f}" for name, metric in metrics.items()]
            print(f"  {label}: {', '.join(said)}", flush=True)


class PredictionWriter(Callback):
    """Writes a JSON line for each example to `checkpoints/<run>/predictions.jsonl`: its scores, or the task's prediction."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._outputs: list[Any] = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: Method, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._outputs += outputs

    def on_predict_end(self, trainer: Trainer, pl_module: Method) -> None:
        """Gathers the rows of all processes and writes them in the order of the examples."""
        outputs = of_all_processes(self._outputs)
        if not trainer.is_global_zero:
            return
        if pl_module.task.predict == "scores":
            lines = pl_module.task.scores(outputs)
            for line in lines:
                text = pl_module.data.beginning(pl_module.data.predict_split, next(iter(line.values())))
                line |= {"text": text} if text else {}
        else:  # a batch that keeps processes in step repeats an example
            once = {next(iter(row.values())): row for row in outputs}
            lines = [once[example] for example in sorted(once)]
        with atomic_file(self.run.predictions) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        print(f"{len(lines)} documents written to {self.run.predictions}", flush=True)
