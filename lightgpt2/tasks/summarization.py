"""Summarization, or any other text of a text: scored by ROUGE, beside Lead-3 and the extractive oracle."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor
from tqdm import tqdm
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.errors import Problem, refuse
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.functional.vocabulary import token_nll
from lightgpt2.models.decoding import Decoding, check_tokens, generate, left_padded
from lightgpt2.models.families import CAUSAL_LM, SEQ2SEQ, check_head, family_of, head, recorded_states
from lightgpt2.models.quality import Metric
from lightgpt2.models.room import free_memory, lack
from lightgpt2.models.saving import positions_of
from lightgpt2.models.workloads import Documents, Encoding, Generation, Positions, Workload
from lightgpt2.tasks import exported_seq2seq, rouge
from lightgpt2.tasks.base import Batch, Predictions, Row, Task

_WITHOUT_DATA = 128  # the most new tokens where no data says it
_COPIED = 3  # words of the sequences that are looked for in the source
_DOCUMENTS = 8  # of real lengths, whose time is measured
_BEAMS = 4
_COLUMNS = (*rouge.NAMES, "words", "reference_words", "copied")


class Summarization(Task):
    """A text of a text.

    An encoder-decoder reads the source in its encoder; a decoder reads it as a prompt. transformers generates the
    summaries, and they are compared with whole references. The `rouge-score` package computes ROUGE; ROUGE-Lsum
    has one sentence a line.

    Args:
        num_beams: Beams of the search; 1: greedy.
        length_penalty: Power of the length that a beam's score is divided by; above 0 it favours longer texts.
        min_new_tokens: The least tokens of a summary.
        max_new_tokens: The most tokens of a summary. The default is the data's `max_target_length`.
        no_repeat_ngram_size: Length of the sequences of tokens that may not come twice; 0: all may.
        use_stemmer: Whether ROUGE compares the stems of words.
        samples: Number of validation texts whose summaries are shown in TensorBoard and in the report.
    """

    auto_classes = (SEQ2SEQ, CAUSAL_LM)
    primary = "rouge1"
    better = "higher"
    predict = "summaries"
    verify = exported_seq2seq.verify

    def __init__(
        self,
        num_beams: PositiveInt = 1,
        length_penalty: float = 1.0,
        min_new_tokens: NonNegativeInt = 0,
        max_new_tokens: PositiveInt | None = None,
        no_repeat_ngram_size: NonNegativeInt = 0,
        use_stemmer: bool = False,
        samples: NonNegativeInt = 3,
    ) -> None:
        self.decoding = Decoding(num_beams, length_penalty, min_new_tokens, max_new_tokens, no_repeat_ngram_size)
        self.use_stemmer, self.shown = use_stemmer, samples
        self.most, self.tokenizer = _WITHOUT_DATA, None
        self._scorer: rouge.Scorer | None = None

    def bind(self, data: Any) -> None:
        self.most, self.tokenizer = data.max_target_length, data.tokenizer

    def check(self, model: PreTrainedModel, key: str) -> None:
        check_head(model, key)
        check_tokens(model, key)

    def predictions(self, model: PreTrainedModel, batch: Batch, states: Sequence[str] = ()) -> Predictions:
        """Runs a model up to its head: one item a target token, `N = B * T`."""
        labels: Tensor = batch["labels"]
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        supervised = (labels != IGNORE).flatten()
        masks = {"decoder": supervised, "encoder": inputs["attention_mask"].bool().flatten()}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
        with recorded_states(model, states) as found:
            final = family_of(model).final_states(model, **inputs)
        kept = {name: (state.flatten(0, 1), masks[name.partition(".")[0]]) for name, state in found.items()}
        weight, bias, scale = head(model)
        return Predictions(final.flatten(0, 1), weight, labels.flatten(), bias, scale, kept)

    @torch.no_grad()
    def rows(self, model: PreTrainedModel, batch: Batch) -> list[Row]:
        """One row a text: its `loss` in nats over `items` tokens, its F1 scores, words, and the copied ones among them."""
        supervised = (batch["labels"] != IGNORE).sum(dim=1)
        if not supervised.any():
            return []
        found = self.predictions(model, batch)
        values = token_nll(found.hidden, found.weight, found.labels, found.bias, found.scale)
        nll = values.double().view_as(batch["labels"]).sum(dim=1).tolist()
        return [
            {"example": example, "loss": loss, "items": items, **scores}
            for example, loss, items, scores in zip(
                batch["example"].tolist(), nll, supervised.tolist(), self.scored(self.summaries(model, batch), batch),
                strict=True,
            )
        ]  # fmt: skip

    @torch.no_grad()
    def summaries(self, model: PreTrainedModel, batch: Batch) -> list[str]:
        """What the model writes of the texts of a batch."""
        assert self.tokenizer is not None, "bind() hands over the tokenizer"
        prompts = [row[:length] for row, length in zip(batch["input_ids"], batch["lengths"].tolist(), strict=True)]
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if not model.config.is_encoder_decoder:
            ids, mask = (part.to(model.device) for part in left_padded(prompts, self.tokenizer.pad_token_id or 0))
        ends = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        new = generate(model, ids, mask, self.decoding.options(self.most), ends)
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def scored(self, summaries: Sequence[str], batch: Batch) -> list[Row]:
        """The scores of summaries of the texts of a batch, against their whole references."""
        self._scorer = self._scorer or rouge.scorer(self.use_stemmer)
        return [
            {
                **self._scorer(summary, reference),
                "words": rouge.words(summary),
                "reference_words": rouge.words(reference),
                "copied": rouge.copied(summary, source, _COPIED),
            }
            for summary, reference, source in zip(summaries, batch["references"], batch["texts"], strict=True)
        ]

    def metrics(self, rows: Iterable[Row]) -> dict[str, Metric]:
        """ROUGE's F1 scores; how long summaries are beside their references; which share of their trigrams is copied."""
        ordered = sorted(rows, key=lambda row: int(row["example"]))
        columns = {name: np.array([row[name] for row in ordered], np.float64) for name in _COLUMNS}
        ones = np.ones(len(ordered))
        found = {name: Metric(name, "higher", columns[name], ones) for name in rouge.NAMES}
        length = Metric("length", "higher", columns["words"], columns["reference_words"], digits=2)
        return found | {"length": length, "copied": Metric("copied", "lower", columns["copied"], ones, digits=2)}

    def baselines(self, data: Any, split: str) -> dict[str, dict[str, Metric]]:
        """Lead-3, the first three sentences, and the extractive oracle, the best ones."""
        rows: dict[str, list[Row]] = {"lead-3": [], "oracle": []}
        for batch in tqdm(data.scoring_loader(split), desc="Scoring Lead-3 and oracle", leave=False, disable=None):
            both = {
                "lead-3": [rouge.lead(text) for text in batch["texts"]],
                "oracle": [rouge.oracle(*pair) for pair in zip(batch["texts"], batch["references"], strict=True)],
            }
            for name, summaries in both.items():
                found = zip(batch["example"].tolist(), self.scored(summaries, batch), strict=True)
                rows[name] += [{"example": example, **scores} for example, scores in found]
        return {name: self.metrics(found) for name, found in rows.items()}

    def problems(self, configs: Mapping[str, PretrainedConfig], data: Any) -> list[Problem]:
        (_, config), *others = configs.items()
        if not hasattr(data, "max_target_length"):
            what = f"{type(data).__name__} has no texts with their targets"
            return [Problem("", what, "use lightgpt2.data.TextToTextData")]
        found, new = self.decoding.problems(data.max_target_length), self.decoding.longest(data.max_target_length)
        kinds = {True: "an encoder-decoder", False: "a decoder"}
        for key, other in others:
            if other.is_encoder_decoder != config.is_encoder_decoder:
                what = f"it is {kinds[other.is_encoder_decoder]}, and the model {kinds[config.is_encoder_decoder]}"
                found.append(Problem(key, what, "choose two of one kind"))
        read = 0 if config.is_encoder_decoder else data.max_source_length
        if (most := positions_of(config)) and read + new > most:
            what = f"{new}{f' after {read} of a source' if read else ''} is more than the model's {most} positions"
            found.append(Problem("max_new_tokens", what, f"give at most {max(1, most - read)}"))
        needed = self.decoding.cache_bytes(config, data.eval_batch_size, data.max_source_length, new)
        if room := lack(needed, free_memory(), "memory for the beams"):
            fix = "give fewer, or a smaller data.eval_batch_size"
            found.append(Problem("num_beams", f"{self.decoding.num_beams} with {new} tokens: {room}", fix))
        return found

    def workloads(
        self,
        positions: Positions,
        data: Any = None,
        *,
        batches: Sequence[int] = (1,),
        forward_tokens: Sequence[int] = (128, 512),
        new_tokens: Sequence[int] = (64,),
    ) -> list[Workload]:
        """Sources that are read, tokens that are written, and whole documents of real lengths, greedily and with 4 beams.

        Documents are those of the validation split; without data they are as long as news.
        """
        lengths = [count for count in forward_tokens if count <= positions.count] or [min(positions.count, 128)]
        given = {"batches": batches, "forward_tokens": forward_tokens, "new_tokens": new_tokens}
        problems = [Problem(key, "must have at least one value") for key, values in given.items() if not values]
        if (least := min(new_tokens, default=2)) < 2:
            fix = "the first token is timed apart from the others"
            problems.append(Problem("new_tokens", f"must be at least 2, got {least}", fix))
        refuse([*problems, *positions.problems("new_tokens", new_tokens)])
        documents = _documents(positions.count, data)
        room = positions.count - max(new_tokens)
        return [
            *(Encoding(batch, count) for count in lengths for batch in batches),
            *(Generation(max(1, min(lengths[0], room)), count) for count in new_tokens),
            *(Documents(documents, beams) for beams in (1, _BEAMS)),
        ]

    def next_step(self, model: Path, data: Any) -> str:
        return f"lightgpt2 generate {model} --prompt 'TEXT'"

    def predicted(self, model: PreTrainedModel, tokenizer: Any, batch: Batch) -> list[dict[str, Any]]:
        """Each text with its summary, its reference, and the scores."""
        summaries = self.summaries(model, batch)
        columns = batch["example"].tolist(), batch["texts"], summaries, batch["references"]
        names = ("example", "source", "summary", "reference")
        scores = self.scored(summaries, batch)
        found = zip(zip(*columns, strict=True), scores, strict=True)
        return [{**dict(zip(names, each, strict=True)), **scored} for each, scored in found]

    def prompts(self, data: Any) -> list[Batch]:
        """The first texts of the validation split, as batches of one."""
        return data.examples("valid", self.shown) if self.shown else []

    def references(self, prompts: Sequence[Batch]) -> dict[str, str]:
        return {prompt["texts"][0]: prompt["references"][0] for prompt in prompts}

    @torch.no_grad()
    def samples(self, model: PreTrainedModel, tokenizer: Any, prompts: list[Batch]) -> list[tuple[str, str]]:
        """Texts and their summaries."""
        training = model.training
        model.eval()
        found = []
        for prompt in prompts:
            inputs = {name: value.to(model.device) for name, value in prompt.items() if isinstance(value, Tensor)}
            found.append((prompt["texts"][0], self.summaries(model, {**prompt, **inputs})[0]))
        model.train(training)
        return found


def _documents(most: int, data: Any) -> tuple[tuple[int, int], ...]:
    """Tokens of some sources and their targets: of random ones of the validation split; without data as long as news."""
    generator = np.random.default_rng(0)
    if data is None:
        sources = generator.lognormal(6.0, 0.5, _DOCUMENTS).astype(int).clip(8, most)
        return tuple((int(count), max(2, min(64, most // 2))) for count in sources)
    pairs = []
    for batch in data.scoring_loader("valid"):
        targets = (batch["labels"] != IGNORE).sum(dim=1).tolist()
        pairs += [(source, max(2, target)) for source, target in zip(batch["lengths"].tolist(), targets, strict=True)]
    return tuple(pairs[i] for i in generator.integers(len(pairs), size=_DOCUMENTS))
