"""Text from a model, whatever runs it."""

import dataclasses
import itertools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, overload

import numpy as np
from tokenizers import Tokenizer

from lightgpt2.errors import Problem, UserError
from lightgpt2.models.vocabulary import is_unicode
from lightgpt2.runtime.engines import Engine, Floats, Ints
from lightgpt2.runtime.options import Settings, resolve
from lightgpt2.runtime.sampling import Sampler
from lightgpt2.runtime.text import Writer

OnText = Callable[[int, str], None]


@dataclasses.dataclass(frozen=True)
class _Prompt:
    index: int
    tokens: list[int]
    new_tokens: int  # how many may be added


class LanguageModel:
    """A model with its tokenizer, and the generation settings of its folder.

    ```python
    model = lightgpt2.load("checkpoints/distill/model")  # or an exported folder
    model.generate("The assert statement", max_new_tokens=40)
    ```

    Args:
        engine: What runs the model.
        tokenizer: Its tokenizer.
        folder: The values of the folder's generation configuration.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, folder: dict[str, Any]) -> None:
        self.engine, self.tokenizer, self._folder = engine, tokenizer, folder
        tokenizer.no_padding()  # which a folder may have kept from training
        tokenizer.no_truncation()

    @overload
    def generate(self, prompts: str, *, on_text: OnText | None = None, **options: Any) -> str: ...
    @overload
    def generate(self, prompts: Sequence[str], *, on_text: OnText | None = None, **options: Any) -> list[str]: ...
    def generate(self, prompts: Any, *, on_text: OnText | None = None, **options: Any) -> str | list[str]:
        """Continue prompts, up to an end-of-text token, a stop text, `max_new_tokens` or the end of the context.

        The same seed gives the same text. What is sampled for a prompt depends on the seed and its index, not on the rest of
        the batch; its logits may, by rounding: little in FP32, more where activations are quantized for a whole batch.

        Args:
            prompts: One, or several.
            on_text: Called with a prompt's index and each new piece of its text, whole characters only.
            **options: Fields of `lightgpt2.runtime.options.Settings`, as `temperature`, `top_k`, `stop` and `seed`.

        Returns:
            The new text, without the prompt; a list for a list of prompts.

        Raises:
            UserError: An option is out of range, or a prompt is empty or too long.
        """
        texts = dict(self.texts([prompts] if isinstance(prompts, str) else prompts, options, on_text))
        return texts[0] if isinstance(prompts, str) else [texts[index] for index in range(len(texts))]

    def texts(
        self,
        prompts: Sequence[str],
        options: Mapping[str, Any],
        on_text: OnText | None = None,
        known: Container[int] = (),
    ) -> Iterator[tuple[int, str]]:
        """Continue prompts as `generate` does; yields a prompt's index and its text, in the order in which they are done.

        Prompts whose indices are `known` are left out, and the other ones get the texts that they would get beside them.
        """
        settings = resolve(options, self._folder)
        batches = _batches(self._encode(prompts, settings), settings.batch_size)
        # A batch is computed whole or not at all: the rounding of its logits depends on its size.
        texts = (self._continue(b, settings, on_text) for b in batches if any(p.index not in known for p in b))
        return (done for batch in texts for done in batch if done[0] not in known)

    def logits(self, ids: Ints, mask: Ints | None = None) -> Floats:
        """The logits `[B, T, V]` at all positions of `[B, T]`; `mask` is 0 at pads, which are on the left (default: none)."""
        ids = np.asarray(ids, np.int64)
        mask = np.ones_like(ids) if mask is None else np.asarray(mask, np.int64)
        return self.engine.logits(ids, mask).copy()

    def _encode(self, prompts: Sequence[str], settings: Settings) -> list[_Prompt]:
        encoded, problems = [], []
        for index, prompt in enumerate(prompts):
            valid = is_unicode(prompt)
            tokens: list[int] = self.tokenizer.encode(prompt).ids if prompt and valid else []
            context, which = self.engine.context, "prompt" if len(prompts) == 1 else f"prompt {index + 1}"
            if not valid:
                problems.append(Problem(which, f"must be valid Unicode, got {prompt!a}", "correct it"))
            elif not tokens:
                problems.append(Problem(which, "must not be empty", "give some text to continue"))
            elif len(tokens) >= context:
                what = f"must leave room in the model's {context} positions, got {len(tokens)} tokens"
                problems.append(Problem(which, what, f"give at most {context - 1} tokens"))
            elif len(tokens) >= (most := settings.max_length or context):
                what = f"must be shorter than the max_length of the folder's generation_config.json, {most}"
                problems.append(Problem(which, f"{what}, got {len(tokens)} tokens", "give max_new_tokens"))
            else:
                new_tokens = settings.max_new_tokens if settings.max_length is None else context
                encoded.append(_Prompt(index, tokens, min(context - len(tokens), most - len(tokens), new_tokens)))
        if problems:
            raise UserError(problems)
        return encoded

    def _continue(
        self, batch: Sequence[_Prompt], settings: Settings, on_text: OnText | None
    ) -> Iterator[tuple[int, str]]:
        new_tokens = batch[0].new_tokens  # the same for all
        prompts = [prompt.tokens for prompt in batch]
        sampler = Sampler(settings, prompts, [prompt.index for prompt in batch], new_tokens)
        shown = (on_text and partial(on_text, prompt.index) for prompt in batch)
        stop, ends = settings.stop, settings.stop_strings
        writers = [Writer(self.tokenizer, p, stop, on, ends) for p, on in zip(prompts, shown, strict=True)]
        active = set(range(len(batch)))
        logits = self.engine.prefill(*_left_padded(prompts), new_tokens)
        for count in range(1, new_tokens + 1):
            tokens = sampler(logits)
            for row in sorted(active):
                token = int(tokens[row])
                if token not in settings.ends:
                    writers[row].add(token)
                if token in settings.ends or writers[row].stopped or count == new_tokens:
                    active.remove(row)
                    yield batch[row].index, writers[row].finish()
            if not active:
                return
            logits = self.engine.decode(tokens)


def _left_padded(sequences: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """Tokens `[B, T]` with pads on the left, and the mask with 0 there."""
    longest = max(map(len, sequences))
    ids, mask = np.zeros((2, len(sequences), longest), np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :], mask[row, longest - len(sequence) :] = sequence, 1
    return ids, mask


def _batches(prompts: Sequence[_Prompt], size: int) -> Iterator[list[_Prompt]]:
    """Prompts of like lengths together, with as many new tokens: no sequence ends sooner for another's length."""
    longest_first = sorted(prompts, key=lambda prompt: -len(prompt.tokens))
    for _, group in itertools.groupby(longest_first, lambda prompt: prompt.new_tokens):
        alike = [*group]
        yield from (alike[start : start + size] for start in range(0, len(alike), size))
