"""How text is generated where it is scored: the settings, what is wrong with them, and the generation itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.errors import Problem, UserError
from lightgpt2.models.families import family_of


@dataclass(frozen=True)
class Decoding:
    """How a model generates: greedily, or by beams.

    What is not said here (forced tokens, early stopping) is as the model's own generation settings say.

    Args:
        num_beams: Beams of the search; 1: greedy.
        length_penalty: Power of the length that a beam's score is divided by; above 0 it favours longer texts.
        min_new_tokens: The least tokens before the end may come.
        max_new_tokens: The most tokens. The default is the data's `max_target_length`.
        no_repeat_ngram_size: Length of the sequences of tokens that may not come twice; 0: all may.
    """

    num_beams: PositiveInt = 1
    length_penalty: float = 1.0
    min_new_tokens: NonNegativeInt = 0
    max_new_tokens: PositiveInt | None = None
    no_repeat_ngram_size: NonNegativeInt = 0

    def options(self, most: int) -> dict[str, Any]:
        """The arguments of transformers' `generate`; `most` is the number of new tokens where none is given."""
        least = int(self.min_new_tokens)
        return {
            "do_sample": False,
            "num_beams": int(self.num_beams),
            "length_penalty": float(self.length_penalty),
            # Either takes the place of the model's own `min_length`; transformers warns of both.
            **({"min_new_tokens": least} if least else {"min_new_tokens": None, "min_length": 0}),
            "max_new_tokens": self.longest(most),
            "no_repeat_ngram_size": int(self.no_repeat_ngram_size),
        }

    def runtime_options(self, most: int) -> dict[str, Any]:
        """The same, as options of `runtime.text_to_text.TextToText`."""
        options = {"temperature": 0.0, "num_beams": int(self.num_beams), "min_new_tokens": int(self.min_new_tokens)}
        options |= {"max_new_tokens": self.longest(most), "no_repeat_ngram": int(self.no_repeat_ngram_size)}
        return options | ({"length_penalty": float(self.length_penalty)} if self.num_beams > 1 else {})

    def longest(self, most: int) -> int:
        return int(self.max_new_tokens or most)

    def problems(self, most: int) -> list[Problem]:
        """What of the settings contradicts itself."""
        if self.min_new_tokens <= self.longest(most):
            return []
        what = f"must be at most the {self.longest(most)} new tokens, got {self.min_new_tokens}"
        return [Problem("min_new_tokens", what, "give less, or more max_new_tokens")]

    def cache_bytes(self, config: PretrainedConfig, batch: int, source: int, target: int) -> int:
        """The bytes that a batch takes while it is generated: keys and values of all beams, their logits twice, in FP32.

        Args:
            config: Of the model.
            batch: Its texts.
            source: Tokens of a source.
            target: New tokens of each.
        """
        depths, rows = family_of(config).depths(config), batch * int(self.num_beams)
        read = source * depths["decoder"]  # by a decoder as its prompt, or by cross-attention
        kept = 2 * (read + target * depths["decoder"]) * int(config.hidden_size)
        return 4 * rows * (kept + 2 * int(config.vocab_size))


def check_tokens(model: PreTrainedModel, key: str) -> None:
    """Raise a `UserError` if the generation settings of a model force tokens that it does not have."""
    settings, count = model.generation_config, int(model.config.vocab_size)
    names = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "bad_words_ids")
    for name in names:
        found = getattr(settings, name, None)
        flat = torch.tensor([each for part in _lists(found) for each in part])
        if len(flat) and not bool(((flat >= 0) & (flat < count)).all()):
            what = f"its generation settings have {name} {found}, and it has {count} tokens"
            raise UserError([Problem(key, what, "correct generation_config.json")])


def _lists(value: Any) -> list[list[int]]:
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    return [each if isinstance(each, list) else [each] for each in values]


def left_padded(rows: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of tokens as inputs `[B, S]` of `generate`, with their mask; pads are on the left, behind which text goes on."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, width - len(row) :] = row
        mask[place, width - len(row) :] = 1
    return ids, mask


@torch.no_grad()
def generate(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, options: dict[str, Any], ends: tuple[int | None, int | None]
) -> list[list[int]]:
    """Generate from inputs `[B, S]`; returns the new tokens of each, without pads.

    Args:
        model: In eval mode, an encoder-decoder, or a decoder whose inputs have their pads on the left.
        ids: The inputs.
        mask: 0 at pads.
        options: Of transformers' `generate`.
        ends: The end-of-text and the pad token, for models that name none.
    """
    settings = model.generation_config
    known = {"eos_token_id": settings.eos_token_id, "pad_token_id": settings.pad_token_id}
    said = {name: value for (name, own), value in zip(known.items(), ends, strict=True) if own is None}
    # Where a process holds a part of the weights, all have to take the same number of steps.
    shared = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    found = model.generate(input_ids=ids, attention_mask=mask, synced_gpus=shared, **options, **said)
    given = 1 if model.config.is_encoder_decoder else ids.shape[1]
    pad = said.get("pad_token_id", known["pad_token_id"])
    stop = said.get("eos_token_id", known["eos_token_id"])
    return [_until(row[given:], pad, {*_lists(stop)[0]} if stop is not None else set()) for row in found.tolist()]


def _until(tokens: list[int], pad: int | None, stops: set[int]) -> list[int]:
    """The tokens up to the one that ends them, or to the pads."""
    for place, token in enumerate(tokens):
        if token in stops and place:  # some models begin with what also ends
            return tokens[: place + 1]
        if token == pad and place:
            return tokens[:place]
    return tokens
