"""Language modeling: predict the next token; scored by perplexity, shown by continuations."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.errors import Problem, UserError, refuse
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.functional.vocabulary import token_nll
from lightgpt2.models.families import CAUSAL_LM, check_head, family_of, head, recorded_states
from lightgpt2.models.quality import Metric
from lightgpt2.models.workloads import Generation, Positions, Workload
from lightgpt2.tasks import exported
from lightgpt2.tasks.base import Batch, Predictions, Row, Task

_PASS, _NEW = 128, (128, 256)  # tokens that are measured unless others are asked for: of a forward pass, and new ones


class LanguageModeling(Task):
    """Next-token prediction.

    Args:
        samples: Number of validation prompts that are continued at each validation and shown in TensorBoard.
        sample_tokens: New tokens of each continuation.
        prompt_tokens: Tokens of each prompt, the separator included.
        predict: What `predict` writes for each document: its `scores`, or greedy `continuations` of its beginning.
    """

    auto_classes = (CAUSAL_LM,)
    primary = "perplexity"
    verify = exported.verify

    def __init__(
        self,
        samples: NonNegativeInt = 3,
        sample_tokens: PositiveInt = 40,
        prompt_tokens: PositiveInt = 24,
        predict: Literal["scores", "continuations"] = "scores",
    ) -> None:
        self.shown, self.sample_tokens, self.prompt_tokens = samples, sample_tokens, prompt_tokens
        self.predict, self.prompt_length = predict, prompt_tokens if predict == "continuations" else None

    def predictions(self, model: PreTrainedModel, batch: Batch, states: Sequence[str] = ()) -> Predictions:
        """Runs a decoder up to its head; positions are flattened, `N = B * T`."""
        family = family_of(model)
        with recorded_states(model, states) as found:
            apart = family.apart(model, batch["position_ids"]) if "position_ids" in batch else {}
            final = family.final_states(model, input_ids=batch["input_ids"], **apart)
        labels: Tensor = batch["labels"].flatten()
        supervised = labels != IGNORE
        kept = {name: (state.flatten(0, 1), supervised) for name, state in found.items()}
        weight, bias, scale = head(model)
        return Predictions(final.flatten(0, 1), weight, labels, bias, scale, kept)

    def check(self, model: PreTrainedModel, key: str) -> None:
        check_head(model, key)

    @torch.no_grad()
    def rows(self, model: PreTrainedModel, batch: Batch) -> list[Row]:
        """One row a window: `loss` is its negative log likelihood in nats, `items` its tokens, `bytes` its document's."""
        found = self.predictions(model, batch)
        values = token_nll(found.hidden, found.weight, found.labels, found.bias, found.scale)
        nll = values.double().view_as(batch["labels"]).sum(dim=1).tolist()
        tokens = (batch["labels"] != IGNORE).sum(dim=1).tolist()
        columns = {
            "example": batch["document"].tolist(),
            "loss": nll,
            "items": tokens,
            "bytes": batch["bytes"].tolist(),
        }
        if "sources" in batch:  # there are several
            columns["source"] = batch["sources"]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def metrics(self, rows: Iterable[Row]) -> dict[str, Metric]:
        """Perplexity; and bits per byte, which compares tokenizers. Both are over documents; then each source's perplexity."""
        rows = [*rows]
        found = self._metrics(rows)
        for source in sorted({row["source"] for row in rows if "source" in row}):
            theirs = [row for row in rows if row["source"] == source]
            metric = self._metrics(theirs, min(row["example"] for row in theirs))[self.primary]
            found[f"{self.primary}/{source}"] = replace(metric, name=f"{self.primary}/{source}")
        return found

    def _metrics(self, rows: Sequence[Row], first: int = 0) -> dict[str, Metric]:
        """The metrics of the documents from number `first` on."""
        table = np.array([[row["example"], row["loss"], row["items"], row["bytes"]] for row in rows]).reshape(-1, 4)
        examples = table[:, 0].astype(np.int64) - first
        # bincount adds in the order of the rows, as a loop would
        count = int(examples.max()) + 1 if len(examples) else 0
        nll, tokens, sizes = (np.bincount(examples, table[:, i], count).astype(np.float64) for i in (1, 2, 3))
        return {
            "perplexity": Metric("perplexity", "lower", nll, tokens, "exp", digits=2),
            "bits_per_byte": Metric("bits_per_byte", "lower", nll / math.log(2), sizes, digits=4),
        }

    def counts(self, metrics: Mapping[str, Metric]) -> dict[str, int]:
        scored = metrics["perplexity"]
        return {"tokens": int(scored.denominators.sum()), "documents": len(scored.denominators)}

    def scores(self, rows: Iterable[Row]) -> list[dict[str, Any]]:
        """Each document's `nll` in nats, `tokens` and `perplexity`."""
        scored = self.metrics(rows)["perplexity"]
        with np.errstate(over="ignore"):
            each = np.exp(scored.numerators / scored.denominators)
        columns = zip(scored.numerators.tolist(), scored.denominators.astype(int).tolist(), each.tolist(), strict=True)
        return [
            {"document": i, "nll": nll, "tokens": tokens, "perplexity": perplexity}
            for i, (nll, tokens, perplexity) in enumerate(columns)
        ]

    def problems(self, configs: Mapping[str, PretrainedConfig], data: Any) -> list[Problem]:
        positions = next(iter(configs.values())).max_position_embeddings
        if self.prompt_tokens < positions:
            return []
        what = f"{self.prompt_tokens} leaves none of the model's {positions} positions for a continuation"
        return [Problem("prompt_tokens", what, f"give at most {positions - 1}")]

    def workloads(
        self,
        positions: Positions,
        data: Any = None,
        *,
        batches: Sequence[int] = (1, 16),
        forward_tokens: Sequence[int] | None = None,
        new_tokens: Sequence[int] | None = None,
        prompt_tokens: int = 32,
    ) -> list[Workload]:
        """Forward passes with all logits, and the generation of `new_tokens` after a prompt: by default, as many as fit."""
        passes, problems = list[Workload](), list[Problem]()
        room = positions.count - prompt_tokens
        if forward_tokens is None:
            forward_tokens = [min(_PASS, positions.count)]
        if new_tokens is None:
            new_tokens = [count for count in _NEW if count <= room] or [max(2, room)]
        try:
            passes = super().workloads(positions, data, batches=batches, forward_tokens=forward_tokens)
        except UserError as error:
            problems += error.problems
        longest = max(new_tokens, default=0)
        if not new_tokens:
            problems.append(Problem("new_tokens", "must have at least one value"))
        elif min(new_tokens) < 2:
            what = f"must be at least 2, got {min(new_tokens)}"
            problems.append(Problem("new_tokens", what, "the first token is timed apart from the others"))
        if room < 2:
            what = f"must leave room for new tokens in {positions}, got {prompt_tokens}"
            problems.append(Problem("prompt_tokens", what, f"give at most {positions.count - 2}"))
        elif longest > room:
            what = f"must be within {positions} after a prompt of {prompt_tokens}, got {longest}"
            problems.append(Problem("new_tokens", what, f"give at most {room}"))
        refuse(problems)
        return [*passes, *(Generation(prompt_tokens, count) for count in new_tokens)]

    def prompts(self, data: Any) -> list[list[int]]:
        found: list[list[int]] = data.prompts("valid", self.shown, self.prompt_tokens)
        return found

    @torch.no_grad()
    def samples(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
    ) -> list[tuple[str, str]]:
        """Prompts with their greedy continuations of `sample_tokens`, which take no random number."""
        training = model.training
        model.eval()
        pad = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
        options = {"do_sample": False, "pad_token_id": pad}
        pairs = []
        for prompt in prompts:
            ids = torch.tensor([prompt], device=model.device)
            new = max(1, min(self.sample_tokens, model.config.max_position_embeddings - len(prompt)))
            output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, **options)[
                0
            ]
            begun, whole = tokenizer.batch_decode([prompt, output], skip_special_tokens=True)
            begun = begun.rstrip("\ufffd")  # a prompt may end inside a character
            pairs.append((begun, whole.removeprefix(begun)))
        model.train(training)
        return pairs

    def next_step(self, model: Path, data: Any) -> str:
        asked = "--chat" if data.tokenizer.chat_template else "--prompt 'The '"
        return f"lightgpt2 generate {model} {asked}"

    def predicted(self, model: PreTrainedModel, tokenizer: Any, batch: Batch) -> list[dict[str, Any]]:
        prompts = [row[:n].tolist() for row, n in zip(batch["input_ids"], batch["lengths"].tolist(), strict=True)]
        pairs = self.samples(model, tokenizer, prompts)
        return [
            {"document": document, "prompt": prompt, "continuation": text}
            for document, (prompt, text) in zip(batch["document"].tolist(), pairs, strict=True)
        ]
