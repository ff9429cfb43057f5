"""Classification: one class for a text, or for a pair of texts; scored by accuracy."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_matthews_corrcoef,
)
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.errors import Problem, UserError, refuse
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.models.families import CLASSIFICATION, family_of, head, recorded_states
from lightgpt2.models.loading import has_head
from lightgpt2.models.quality import Metric
from lightgpt2.models.workloads import Forward, Positions, Texts, Workload
from lightgpt2.tasks import exported_classifier
from lightgpt2.tasks.base import Batch, Predictions, Row, Task

_BINS = 15  # of the expected calibration error
_LENGTHS = (8, 32, 128, 256, 512)  # tokens of a text whose latency is measured
_REPEATS = 40  # of each in a round: the slowest in twenty is a figure, too
_TEXTS = 64  # of real lengths, or as many as the largest batch has


class Classification(Task):
    """One class for a text.

    What the head reads is the family's: an encoder's pooled first token, a decoder's last token. The hidden states of a text's
    tokens weigh as much together as the text.
    """

    auto_classes = (CLASSIFICATION,)
    primary = "accuracy"
    better = "higher"
    unit = "texts"
    predict = "classes"
    verify = exported_classifier.verify

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.pad: int | None = None

    def bind(self, data: Any) -> None:
        self.labels, self.pad = [*data.labels], data.tokenizer.pad_token_id

    def restore(self, config: PretrainedConfig) -> None:
        self.labels, self.pad = _names(config), config.pad_token_id

    def head_settings(self, config: PretrainedConfig | None) -> dict[str, Any] | None:
        if config is not None and has_head(config, CLASSIFICATION):
            return None
        names = {"id2label": dict(enumerate(self.labels)), "label2id": {n: i for i, n in enumerate(self.labels)}}
        pad = {} if self.pad is None else {"pad_token_id": self.pad}
        return ({**names, "num_labels": len(self.labels)} if self.labels else {}) | pad

    def align(self, teacher: PreTrainedModel, student: PretrainedConfig) -> None:
        """Puts the rows of a teacher's head in the student's order of classes, by their names.

        Raises:
            UserError: The two have other classes.
        """
        theirs, mine = _names(teacher.config), _names(student)
        if theirs == mine:
            return
        if {*theirs} != {*mine}:
            what = f"it has the classes {', '.join(theirs)} and the student {', '.join(mine)}"
            raise UserError([Problem("objective.teacher", what, "choose a teacher of the same classes")])
        order = [theirs.index(name) for name in mine]
        classifier: Any = family_of(teacher).classifier(teacher)
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.copy_(parameter[order].clone())
        teacher.config.id2label = dict(enumerate(mine))

    def check(self, model: PreTrainedModel, key: str) -> None:
        """Raises a `UserError` if the model has not one logit for each class of the data, or computes them in another way."""
        names, rows = _names(model.config), len(head(model).weight)
        if self.labels and rows != len(self.labels):
            what = f"its head has {rows} classes ({', '.join(names)}) and the data {len(self.labels)}"
            raise UserError(
                f"{key}: {what} ({', '.join(self.labels)}); give data of the same classes, or a model without a head"
            )
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self.pad  # transformers finds the last token of a text by it
        ids = torch.arange(1, min(4, model.config.vocab_size), device=model.device)[None]
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(1, dtype=torch.long)}
        training = model.training
        model.eval()
        with torch.no_grad():
            logits = model(**{name: batch[name] for name in family_of(model).model_inputs if name in batch}).logits
            expected = self.predictions(model, batch).logits(slice(None), torch.float32)
        model.train(training)
        if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max() + 1)):
            raise UserError(f"{key}: the logits of this model are not hidden @ weight.T + bias; it is not supported")

    def predictions(self, model: PreTrainedModel, batch: Batch, states: Sequence[str] = ()) -> Predictions:
        """Runs a model up to its classifier: one item a text, `N = B`."""
        with recorded_states(model, states) as found:
            pooled = family_of(model).pooled_states(model, batch)
        mask = batch["attention_mask"]
        counts = (batch["labels"] != IGNORE) * batch.get("weights", 1.0)
        share = (mask * (counts / mask.sum(dim=1))[:, None]).flatten()  # of each token of a text
        kept = {name: (state.flatten(0, 1), share) for name, state in found.items()}
        weight, bias, scale = head(model)
        return Predictions(pooled, weight, batch["labels"], bias, scale, kept, batch.get("weights"))

    @torch.no_grad()
    def rows(self, model: PreTrainedModel, batch: Batch) -> list[Row]:
        """One row a text: its `loss` in nats, its `label`, and `probabilities` of the classes."""
        if family_of(model).pads_behind and not batch["attention_mask"][:, 0].all():
            what = f"pads stand before the texts, where a {model.config.model_type} reads what classifies them"
            raise UserError(f"data: {what}; put them behind")
        return self.scored(self.predictions(model, batch).logits(slice(None), torch.float32), batch)

    def scored(self, logits: Tensor, batch: Batch) -> list[Row]:
        """The rows of a batch whose logits `[B, C]` are known."""
        labels, probabilities = batch["labels"], logits.softmax(dim=1)
        supervised = labels != IGNORE
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
        columns = zip(
            batch["example"].tolist(), loss.tolist(), labels.tolist(), probabilities.tolist(), supervised.tolist(),
            strict=True,
        )  # fmt: skip
        return [
            {"example": example, "loss": loss, "items": 1, "label": label, "probabilities": shares}
            for example, loss, label, shares, counts in columns
            if counts
        ]

    def metrics(self, rows: Iterable[Row]) -> dict[str, Metric]:
        """Accuracy with the confusion matrix; macro-F1, Matthews' correlation, and the expected calibration error (15 bins)."""
        ordered = sorted(rows, key=lambda row: int(row["example"]))
        labels = torch.tensor([row["label"] for row in ordered], dtype=torch.long)
        shares = torch.tensor([row["probabilities"] for row in ordered], dtype=torch.float64).reshape(len(ordered), -1)
        if not len(ordered):
            return {"accuracy": Metric("accuracy", "higher", np.zeros(0), np.zeros(0))}
        guesses, count = shares.argmax(dim=1), shares.shape[1]
        right = (guesses == labels).numpy().astype(np.float64)
        figures: dict[str, tuple[Tensor, Any]] = {
            "macro_f1": (multiclass_f1_score(shares, labels, count, average="macro"), "higher"),
            "mcc": (multiclass_matthews_corrcoef(shares, labels, count), "higher"),
            "ece": (multiclass_calibration_error(shares, labels, count, n_bins=_BINS, norm="l1"), "lower"),
        }
        classes = self.labels or [str(i) for i in range(count)]
        counts = multiclass_confusion_matrix(guesses, labels, count).tolist()
        confusion = {"confusion": {"classes": classes, "counts": counts}}  # rows are the labels
        found = {"accuracy": Metric("accuracy", "higher", right, np.ones(len(right)), details=confusion)}
        return found | {
            name: Metric(name, better, np.array([float(value)]), np.ones(1))
            for name, (value, better) in figures.items()
        }

    def workloads(
        self,
        positions: Positions,
        data: Any = None,
        *,
        batches: Sequence[int] = (16,),
        forward_tokens: Sequence[int] | None = None,
        concurrency: Sequence[int] = (1, 2, 4, 8),
    ) -> list[Workload]:
        """One text of each length, by default those of 8, 32, 128, 256 and 512 tokens that fit; and texts of mixed lengths.

        Mixed are those of the validation split, or random ones where there is no data. They are read in `batches`, and one by
        one from `concurrency` threads.
        """
        lengths = [n for n in _LENGTHS if n <= positions.count] if forward_tokens is None else forward_tokens
        given = {"batches": batches, "forward_tokens": lengths, "concurrency": concurrency}
        found = [Problem(key, "must have at least one value") for key, values in given.items() if not values]
        refuse([*found, *positions.problems("forward_tokens", lengths)])
        mixed = _mixed_lengths(max(_TEXTS, *batches), positions.count, data)
        texts = [*(Texts(mixed, batch) for batch in batches), *(Texts(mixed, threads=n) for n in concurrency)]
        return [*(Forward(1, n, _REPEATS) for n in lengths), *dict.fromkeys(texts)]

    def problems(self, configs: Mapping[str, PretrainedConfig], data: Any) -> list[Problem]:
        _, *others = configs.items()
        found = []
        for key, config in others:
            if config.architectures and not has_head(config, CLASSIFICATION):
                what = f"it has no classification head (its architecture: {', '.join(config.architectures)})"
                found.append(Problem(key, what, "fine-tune it with lightgpt2.methods.FineTune first"))
        return found

    def next_step(self, model: Path, data: Any) -> str:
        return f"lightgpt2 classify {model} --text 'The '"

    def predicted(self, model: PreTrainedModel, tokenizer: Any, batch: Batch) -> list[dict[str, Any]]:
        """Each text with its class, the most likely one, and the probabilities of all."""
        found = self.predictions(model, batch)
        probabilities = found.logits(slice(None), torch.float32).softmax(dim=1)
        names = _names(model.config)
        lines = []
        for example, number, (text, second), shares in zip(
            batch["example"].tolist(),
            probabilities.argmax(dim=1).tolist(),
            batch["texts"],
            probabilities.tolist(),
            strict=True,
        ):
            pair = {} if second is None else {"text_pair": second}
            scores = {name: round(share, 6) for name, share in zip(names, shares, strict=True)}
            lines.append({"example": example, "text": text, **pair, "label": names[number], "probabilities": scores})
        return lines


def _names(config: PretrainedConfig) -> list[str]:
    """The names of a model's classes in their order."""
    return [config.id2label[i] for i in sorted(config.id2label)]


def _mixed_lengths(count: int, most: int, data: Any) -> tuple[int, ...]:
    """Tokens of `count` texts: of random ones of the validation split; without data log-normal around 20, as sentences have."""
    generator = np.random.default_rng(0)
    if data is None:
        found = generator.lognormal(3.0, 0.6, count).astype(int).clip(3, most)
    else:
        masks = (batch["attention_mask"] for batch in data.scoring_loader("valid"))
        found = generator.choice(np.concatenate([mask.sum(dim=1).numpy() for mask in masks]), count)
    return tuple(map(int, found))
