"""How a copy of a model folder is written: scored from disk, checked, and kept only if it is good enough."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from lightgpt2.conversions.base import Conversion
from lightgpt2.data.base import TaskData
from lightgpt2.errors import Problem, UserError
from lightgpt2.models.files import atomic_folder, clear_leftovers, folder_megabytes
from lightgpt2.models.ledger import Entry, Ledger, Parent
from lightgpt2.models.loading import load_model
from lightgpt2.models.operations import Operation
from lightgpt2.models.quality import Metric, read_scores, write_scores
from lightgpt2.models.saving import measure_sizes
from lightgpt2.runtime.engines import Classifier, Engine
from lightgpt2.runtime.text_to_text import TextToText


@dataclass
class Converted:
    """A copy: its record, its figures, and in `about` what `export.json` says."""

    operation: Operation
    sizes: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)  # by the model that was scored: `after`; `before`
    scores: dict[str, dict[str, Metric]] = field(default_factory=dict)  # the same, example by example
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Converter:
    """Writes copies of model folders.

    Attributes:
        data: The data: its training split calibrates, its validation split scores.
        task: The task that scores; it has `verify` if copies are run by an engine.
        method: What ledgers call the cause of the copies.
        scored: True if the source's ledger has its scores on the whole of the same split: it is not scored again.
        documents: Score only the first documents of the split; None: all.
        device: Where PyTorch models are scored.
        memory: Measures the weights of a PyTorch model in memory, in units of 10^6 bytes.
    """

    data: TaskData
    task: Any
    method: str
    scored: bool = False
    documents: int | None = None
    device: torch.device | str = "cpu"
    memory: Callable[[PreTrainedModel], float] | None = None

    def convert(self, conversion: Conversion, source: str, output: Path) -> Converted:
        """Write a copy, score it as it loads from disk, and put it in place of `output` if it is good enough.

        Raises:
            UserError: The model does not fit, or the copy is not good enough; nothing is left of it.
        """
        clear_leftovers(output.parent, output.name)
        ledger = Ledger.read(source)
        known = ledger.last["quality"]["after"] if self.scored else None
        old = read_scores(Path(source), "after", known) if known else {}
        with atomic_folder(output) as folder:
            made = Converted(conversion.write(Path(source), folder, self.data))
            runner = conversion.runner(folder)
            if not isinstance(runner, PreTrainedModel):
                self._verify(made, conversion, runner, source, folder, known)
                made.scores = {"before": old} | made.scores
            elif conversion.exact:
                made.sizes = {**self.sizes(runner, folder), "dense_megabytes": folder_megabytes(Path(source))}
                made.quality, made.scores = {"after": known} if known else {}, {"after": old}
            else:
                made.sizes = self.sizes(runner, folder)
                made.scores = {"after": self.evaluate(runner, conversion.name)}
                made.quality = {"after": self.task.quality(made.scores["after"])}
            data, operation = self.data.describe(), made.operation
            if ledger:
                ledger = ledger.derived(self.method, Path(source), operation, made.quality, made.sizes)
            else:  # a model that LightGPT2 did not make
                about = (data, 0, 0, 0.0, made.quality, made.sizes)
                ledger = ledger.extended(Entry("export", self.method, {}, Parent.of(source), [operation], *about))
            write_scores(folder, made.scores)
            values = {key: value for key, value in operation.items() if key not in ("op", "kind")}
            made.about = {**values, **made.about, "validation": data["source"]}
            conversion.finish(folder, made.about)
            ledger.write(folder)
        return made

    def sizes(self, model: PreTrainedModel, folder: Path) -> dict[str, Any]:
        return measure_sizes(model, folder) | ({"memory": self.memory(model)} if self.memory else {})

    def evaluate(self, model: PreTrainedModel, label: str) -> dict[str, Metric]:
        moved: Any = model.to(device=self.device)
        return cast(dict[str, Metric], self.task.evaluate(moved, self.data, "valid", f"Scoring {label}"))

    def _verify(
        self,
        made: Converted,
        conversion: Conversion,
        engine: Engine | Classifier | TextToText,
        source: str,
        folder: Path,
        known: Any,
    ) -> None:
        """Score what an engine runs, beside its source in PyTorch."""
        model = load_model(source, "MODEL", conversion.trust_remote_code).eval()
        found = self.task.verify(engine, model, self.data, self.documents, conversion.precision, known)
        if problems := found.pop("problems"):
            raise UserError([Problem("", problem, "nothing was written") for problem in problems])
        files = made.operation.get("bytes") or {path.name: path.stat().st_size for path in folder.iterdir()}
        made.sizes = {**measure_sizes(model, folder), "megabytes": sum(files.values()) / 1e6}
        if conversion.precision in ("int8", "int4") and made.operation.get("scales") != "trained":
            made.sizes["nonzero"] = None  # rounding has made more zeros
        made.operation["agreement"] = found["agreement"]
        made.quality = {label: found["quality"][label] for label in ("before", "after")}
        made.scores, made.about = found.pop("metrics"), found
