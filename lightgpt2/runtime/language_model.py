"""Text from a model, whatever runs it."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict, Unpack, overload

import numpy as np
from tokenizers import Tokenizer

from lightgpt2.errors import UserError
from lightgpt2.runtime.engines import Engine, Floats, Ints
from lightgpt2.runtime.options import Options, Resolved, resolve
from lightgpt2.runtime.sampling import Sampler
from lightgpt2.runtime.text import Writer

Tell = Callable[[int, str], None]


@dataclasses.dataclass(frozen=True)
class _Prompt:
    index: int
    tokens: list[int]
    room: int  # how many tokens may be added


class _Asked(TypedDict, total=False):
    """The options of `LanguageModel.generate`, once for both of its signatures."""

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    no_repeat_ngram: int | None
    stop: str | Sequence[str]
    seed: int
    batch_size: int
    on_text: Tell | None


class LanguageModel:
    """A model with its tokenizer, and how its folder says it writes.

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

    @overload  # a text is a sequence of texts, too
    def generate(self, prompts: str, **options: Unpack[_Asked]) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompts: Sequence[str], **options: Unpack[_Asked]) -> list[str]: ...
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        no_repeat_ngram: int | None = None,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        batch_size: int = 8,
        on_text: Tell | None = None,
    ) -> str | list[str]:
        """Continues prompts, up to an end-of-text token, a stop text, `max_new_tokens` or the end of the context.

        The same seed gives the same text. A prompt's draws depend on the seed and its index, on nothing else in the batch;
        its logits may, by rounding: little in FP32, more where activations are quantized for a whole batch.

        Args:
            prompts: One, or several.
            max_new_tokens: See `Options`, for this and the next ones.
            temperature: 0 takes the likeliest token.
            top_k: How many of the likeliest tokens are left to choose from; 0 is all.
            top_p: Of those the fewest that have this share of the probability.
            repetition_penalty: Above 1 tokens that were there before are less likely.
            no_repeat_ngram: Length of sequences of tokens that may not come twice.
            stop: Texts that end a text, and are no part of it.
            seed: Seed of the sampling.
            batch_size: How many prompts are continued at a time.
            on_text: Called with a prompt's index and each new piece of its text, whole characters only.

        Returns:
            The new text, without the prompt; a list where `prompts` is none.

        Raises:
            UserError: An option or a prompt that cannot be.
        """
        options = Options(
            max_new_tokens, temperature, top_k, top_p, repetition_penalty, no_repeat_ngram, stop, seed, batch_size
        )  # fmt: skip
        texts = dict(self.texts([prompts] if isinstance(prompts, str) else prompts, options, on_text))
        return texts[0] if isinstance(prompts, str) else [texts[index] for index in range(len(texts))]

    def texts(self, prompts: Sequence[str], options: Options, on_text: Tell | None = None) -> Iterator[tuple[int, str]]:
        """Continues prompts; see `generate`.

        Args:
            prompts: Any number.
            options: How.
            on_text: As for `generate`.

        Returns:
            Iterator over a prompt's index and its text, in the order in which they are done.

        Raises:
            UserError: An option or a prompt that cannot be.
        """
        settings = resolve(options, self._folder)
        encoded = self._encode(prompts, settings.max_new_tokens)
        batches = _batches(encoded, settings.batch_size)
        return (done for batch in batches for done in self._continue(batch, settings, on_text))

    def logits(self, ids: Ints, mask: Ints | None = None) -> Floats:
        """Logits at all positions.

        Args:
            ids: Tokens `[B, T]`.
            mask: `[B, T]`, 0 at pads, which are on the left; default: there are none.

        Returns:
            `[B, T, V]`.
        """
        ids = np.asarray(ids, np.int64)
        mask = np.ones_like(ids) if mask is None else np.asarray(mask, np.int64)
        return self.engine.logits(ids, mask).copy()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _encode(self, prompts: Sequence[str], new_tokens: int) -> list[_Prompt]:
        encoded, problems = [], []
        for index, prompt in enumerate(prompts):
            tokens: list[int] = self.tokenizer.encode(prompt).ids if prompt else []
            room = self.engine.context - len(tokens)
            which = "prompt" if len(prompts) == 1 else f"prompt {index + 1}"
            if not tokens:
                problems.append(f"{which}: it is empty; give some text to continue")
            elif room < 1:
                problems.append(
                    f"{which}: its {len(tokens)} tokens leave none of the model's {self.engine.context} positions; give at "
                    f"most {self.engine.context - 1} tokens"
                )
            encoded.append(_Prompt(index, tokens, min(room, new_tokens)))
        if problems:
            raise UserError(problems)
        return encoded

    def _continue(
        self, batch: Sequence[_Prompt], settings: Resolved, on_text: Tell | None
    ) -> Iterator[tuple[int, str]]:
        """Continues prompts together; their indices and texts as they are done."""
        room = batch[0].room  # which is that of all
        sampler = Sampler(settings.sampling, [p.tokens for p in batch], [p.index for p in batch], room)
        writers = [Writer(self.tokenizer, p.tokens, settings.stop, _teller(on_text, p.index)) for p in batch]
        active = set(range(len(batch)))
        logits = self.engine.start(*_padded([prompt.tokens for prompt in batch]), room)
        for count in range(1, room + 1):
            tokens = sampler(logits)
            for row in sorted(active):
                token = int(tokens[row])
                if token not in settings.ends:
                    writers[row].add(token)
                if token in settings.ends or writers[row].stopped or count == room:
                    active.remove(row)
                    yield batch[row].index, writers[row].finish()
            if not active:
                return
            logits = self.engine.step(tokens)


def _teller(on_text: Tell | None, index: int) -> Callable[[str], None] | None:
    return None if on_text is None else lambda piece: on_text(index, piece)


def _padded(sequences: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """Tokens `[B, T]` with pads on the left, and 0 where those are."""
    longest = max(map(len, sequences))
    ids, mask = np.zeros((2, len(sequences), longest), np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :], mask[row, longest - len(sequence) :] = sequence, 1
    return ids, mask


def _batches(prompts: Sequence[_Prompt], size: int) -> list[list[_Prompt]]:
    """Prompts of like lengths together, and of one room: no sequence ends sooner for another's length."""
    batches: list[list[_Prompt]] = []
    for prompt in sorted(prompts, key=lambda prompt: -len(prompt.tokens)):
        last = batches[-1] if batches else []
        if last and len(last) < size and last[0].room == prompt.room:
            last.append(prompt)
        else:
            batches.append([prompt])
    return batches
