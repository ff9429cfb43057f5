"""What was exported, held against the model of pairs of texts that it was made from."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from lightgpt2.errors import Problem, UserError
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.models.quality import Metric, value_of
from lightgpt2.tasks import exported
from lightgpt2.tasks.base import Batch, Row
from lightgpt2.tasks.exported import TIE, Agreement, Floats, error_of, share_problems
from lightgpt2.tasks.language_modeling import LanguageModeling

PROMPTS, NEW_TOKENS = 20, 64

# By how much the perplexity of the references may exceed the source's; and the primary metric, ROUGE-1, be below it, beside one
# text.
BOUNDS = {"fp32": (0.001, 0.0), "int8": (0.05, 0.02), "int4": (0.5, 0.1)}

Ints = NDArray[np.int64]


def agreement(runner: Any, model: PreTrainedModel, batches: Sequence[Batch]) -> Agreement:
    """Write greedily, all texts of a batch together; compare each token with that without a cache, and with PyTorch's.

    `runner` is a `runtime.text_to_text.TextToText`. Forced tokens and the like are left out. Each token is compared given those
    before it; of two whose logits are within 1e-3 either will do.
    """
    engine, start = runner.engine, runner.start
    same, errors = list[Floats](), [0.0]
    for batch in batches:
        ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
        targets = np.tile(np.array(start, np.int64), (len(ids), 1))
        new = min(NEW_TOKENS, engine.context or NEW_TOKENS)
        logits = engine.prefill(ids, mask, targets)
        for left in range(new, 0, -1):
            targets = np.concatenate([targets, logits.argmax(axis=1)[:, None]], axis=1)
            if left > 1:
                logits = engine.decode(targets[:, -1])
        for row, last in enumerate(logits):  # one at a time, without pads: the logits of a batch may be large
            length = int(mask[row].sum())
            inputs = ids[row : row + 1, :length], mask[row : row + 1, :length], targets[row : row + 1, :-1]
            pair = [each[0, len(start) - 1 :] for each in (engine.logits(*inputs), torch_logits(model, *inputs))]
            chosen = targets[row, len(start) :, None]
            same.append(
                np.stack([np.take_along_axis(each, chosen, axis=1)[:, 0] >= each.max(axis=1) - TIE for each in pair])
            )
            errors += [error_of(*pair).max(), error_of(last[None], pair[1][-1:]).max()]
    cache, source = np.concatenate(same, axis=1).mean(axis=1).tolist()
    return Agreement(cache, source, float(np.max(errors)), sum(each.shape[1] for each in same))


@torch.inference_mode()
def torch_logits(model: PreTrainedModel, ids: Ints, mask: Ints, targets: Ints) -> Floats:
    """The logits `[B, T, V]` behind each token of targets `[B, T]`."""
    given = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": targets}
    found: Floats = model(
        **{name: torch.from_numpy(value) for name, value in given.items()}, use_cache=False
    ).logits.numpy()
    return found


def first_examples(batches: Any, documents: int | None) -> Iterator[Batch]:
    """The batches of a split with its first examples only; all for None."""
    for batch in batches:
        kept = [place for place, n in enumerate(batch["example"].tolist()) if documents is None or n < documents]
        if kept:
            whole = {name: value for name, value in batch.items() if isinstance(value, Tensor | list)}
            yield {n: v[kept] if isinstance(v, Tensor) else [v[place] for place in kept] for n, v in whole.items()}


def score(task: Any, runner: Any, batch: Batch) -> list[Row]:
    """Score a batch as `Summarization.rows` does: what is written, and the loss of the references' tokens."""
    ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
    new = runner.tokens(ids, mask, task.decoding.runtime_options(task.most))
    texts = [text.strip() for text in task.tokenizer.batch_decode(new, skip_special_tokens=True)]
    columns = zip(batch["example"].tolist(), task.scored(texts, batch), batch["labels"], strict=True)
    rows = []
    for place, (example, scores, labels) in enumerate(columns):
        wanted = labels[labels != IGNORE]
        length = int(mask[place].sum())
        targets = np.array([[*runner.start, *wanted[:-1].tolist()]])
        logits = runner.logits(ids[place : place + 1, :length], mask[place : place + 1, :length], targets)
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits[0]).double(), wanted, reduction="sum")
        rows.append({"example": example, "loss": float(loss), "items": len(wanted), **scores})
    return rows


def verify(
    task: Any,
    engine: Any,
    model: PreTrainedModel,
    data: Any,
    documents: int | None,
    precision: str,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Score what was exported, and say what is out of bounds; see `Task.verify`.

    The engine of an encoder-decoder is a `TextToText` of `runtime`. A decoder is verified as a language model, by the
    perplexity of its answers; the source is scored anew for it.
    """
    if not model.config.is_encoder_decoder:  # it continues texts: its answers have a perplexity
        return exported.verify(LanguageModeling(), engine, model, _Answers(data), documents, precision)
    batches = [*first_examples(data.scoring_loader("valid"), documents)]
    if not batches:
        raise UserError(Problem("", f"no text of {data.source} to verify with", "give another with --data"))
    found = agreement(engine, model, [*first_examples(batches, PROMPTS)])
    rows: dict[str, list[Row]] = {"before": [], "after": []}
    with torch.inference_mode():
        for batch in tqdm(batches, desc="Scoring the export", leave=False, disable=None):
            rows["before"] += task.rows(model, batch)
            rows["after"] += score(task, engine, batch)
    metrics: dict[str, Mapping[str, Metric]] = {label: task.metrics(scored) for label, scored in rows.items()}
    source, after = (task.quality(metrics[label]) for label in ("before", "after"))
    losses = {
        label: sum(row["loss"] for row in each) / sum(row["items"] for row in each) for label, each in rows.items()
    }
    if before is not None:
        source, _ = before, metrics.pop("before")
    about = {**vars(found), "perplexity_ratio": math.exp(min(losses["after"] - losses["before"], 700.0))}
    ratio = value_of(after) / max(value_of(source), 1e-9)
    lost = value_of(source) - value_of(after)
    problems = [*share_problems(found, precision), *_problems(precision, lost, task.primary, about, len(rows["after"]))]
    quality = {"before": source, "after": after, "ratio": ratio}
    return {"quality": quality, "agreement": about, "problems": problems, "metrics": metrics}


class _Answers:
    """Pairs that a decoder reads, as the texts of a language model: the answers are scored."""

    def __init__(self, data: Any) -> None:
        self._data, self.source = data, data.source

    def prompts(self, split: str, count: int, length: int) -> list[list[int]]:
        """The first tokens of the first sources that have as many."""
        ids = (
            row[:size].tolist()
            for batch in self._data.scoring_loader(split)
            for row, size in zip(batch["input_ids"], batch["lengths"].tolist(), strict=True)
        )
        return [*itertools.islice((each[:length] for each in ids if len(each) >= length), count)]

    def scoring_loader(self, split: str) -> Iterator[Batch]:
        for batch in self._data.scoring_loader(split):
            sizes = torch.tensor([len(text.encode()) for text in batch["references"]])
            yield batch | {"lengths": batch["attention_mask"].sum(dim=1), "document": batch["example"], "bytes": sizes}


def _problems(precision: str, lost: float, primary: str, about: Mapping[str, float], texts: int) -> Iterator[str]:
    """What is out of bounds; NaN is."""
    perplexity, most = BOUNDS[precision]
    if not about["perplexity_ratio"] <= 1 + perplexity:
        said = f"the perplexity of the references is {about['perplexity_ratio'] - 1:.1%} above the source's"
        yield f"{said}; at most {perplexity:.1%} is allowed"
    if not lost <= most + 1 / texts:
        yield f"its {primary} is {lost:.4f} below the source's; at most {most} and one text in {texts} are allowed"
