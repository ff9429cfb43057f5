"""Stands in for what `tasks`, `data`, `report` and the standard callbacks are about to offer; goes when they do."""

import math
from typing import Any

import numpy as np
import torch

from lightgpt2.callbacks import convert, export
from lightgpt2.callbacks.artefact import Artefact
from lightgpt2.callbacks.base import RunCallback
from lightgpt2.data import LanguageModelingData
from lightgpt2.errors import UserError
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.models import quality
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.quality import Metric, value_of
from lightgpt2.report import exported as report_lines
from lightgpt2.tasks import exported
from lightgpt2.tasks.language_modeling import LanguageModeling


class Task:
    primary = "perplexity"

    def metrics(self, rows: Any) -> dict[str, Metric]:
        sums: dict[int, list[float]] = {}
        for row in rows:
            sums.setdefault(row["example"], [0, 0, 0])
            sums[row["example"]] = [
                a + row[k] for a, k in zip(sums[row["example"]], ("nll", "tokens", "bytes"), strict=True)
            ]
        nll, tokens, sizes = np.array([sums[i] for i in sorted(sums)], float).T
        return {
            "perplexity": Metric("perplexity", "lower", nll, tokens, "exp", 2),
            "bits_per_byte": Metric("bits_per_byte", "lower", nll / math.log(2), sizes),
        }

    def quality(self, metrics: Any) -> dict[str, Any]:
        tokens = metrics["perplexity"].denominators
        return quality.quality(metrics, "perplexity", {"tokens": int(tokens.sum()), "documents": len(tokens)})

    @torch.inference_mode()
    def evaluate(self, model: Any, data: Any, split: str, label: str) -> dict[str, Metric]:
        rows = []
        for batch in data.scoring_loader(split):
            tokens = (batch["labels"] != IGNORE).sum(dim=1).tolist()
            columns = (
                batch["document"].tolist(),
                self.nll(model.eval(), batch).tolist(),
                tokens,
                batch["bytes"].tolist(),
            )  # type: ignore[attr-defined]
            rows += [
                dict(zip(("example", "nll", "tokens", "bytes"), row, strict=True)) for row in zip(*columns, strict=True)
            ]
        return self.metrics(rows)

    def verify(self, *args: Any) -> dict[str, Any]:
        return exported.verify(self, *args)


def described(old: dict[str, Any]) -> dict[str, Any]:
    if "primary" in old:
        return old
    about = {"better": "lower", "link": "exp", "digits": 2}
    return {
        "perplexity": {"value": old["perplexity"], "interval_95": old["interval_95"], **about},
        "bits_per_byte": {"value": old["bits_per_byte"], "interval_95": None, **about, "link": "identity"},
        "primary": "perplexity", "tokens": old["tokens"], "documents": old["documents"],
    }  # fmt: skip


def install() -> None:
    if hasattr(LanguageModeling, "evaluate"):
        return
    for name, value in vars(Task).items():
        if not name.startswith("__"):
            setattr(LanguageModeling, name, value)
    plain = LanguageModelingData.scoring_loader

    def scoring_loader(self: Any, split: Any) -> Any:
        seen: set[int] = set()
        for batch in plain(self, split):
            sizes = [
                0 if d in seen or seen.add(d) else int(self.document_sizes(split)[d])
                for d in batch["document"].tolist()
            ]  # type: ignore[func-returns-value]
            yield {**batch, "bytes": torch.tensor(sizes)}

    LanguageModelingData.scoring_loader = scoring_loader  # type: ignore[method-assign, assignment]
    RunCallback.order = property(lambda self: self.phase)  # type: ignore[attr-defined]
    finish, attach = Artefact.on_fit_end, convert.Convert.attach

    def on_fit_end(self: Any, trainer: Any, pl_module: Any) -> None:
        finish(self, trainer, pl_module)
        ledger = Ledger.read(self.run.model)
        ledger.last["quality"] = {label: described(each) for label, each in ledger.last["quality"].items()}
        ledger.write(self.run.model)

    Artefact.on_fit_end = on_fit_end  # type: ignore[method-assign]
    for kind in (convert.Convert, export.Export):
        own = kind.attach

        def attached(self: Any, run: Any, own: Any = own) -> Any:
            problems = own(self, run)
            if problems and type(self).attach.__defaults__ == (own,):
                raise UserError([problem.under(f"trainer.callbacks.{type(self).__name__}") for problem in problems])
            return problems

        kind.attach = attached  # type: ignore[method-assign]

    def table(rows: Any) -> str:
        return "\n".join(
            f"{name}  {value_of(row):.2f}  "
            + "  ".join(f"{row[key]:.2f}" for key in ("memory", "megabytes") if row[key] is not None)
            + f"  {row.get('quantized', 'none')}"
            for name, row in rows.items()
        )

    def line(folder: Any, about: Any) -> str:
        after = about["quality"]["after"]
        return f"{folder}: {sum(about['bytes'].values()) / 1e6:.2f} MB; perplexity {value_of(after):.2f}"

    convert.precisions, export.exported_line = table, line
    report_lines.exported_line = line
