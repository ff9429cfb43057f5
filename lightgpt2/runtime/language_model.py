"""Text from a model, whatever runs it."""

import dataclasses
import itertools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal, overload

import numpy as np
from tokenizers import Tokenizer

from lightgpt2.errors import Problem, UserError, refuse
from lightgpt2.models.chat import ChatTemplate, Message, message_problem
from lightgpt2.models.vocabulary import is_unicode
from lightgpt2.runtime.engines import Engine, Floats, Ints
from lightgpt2.runtime.options import Settings, resolve
from lightgpt2.runtime.processors import as_ids
from lightgpt2.runtime.reader import Reader
from lightgpt2.runtime.sampling import Sampler
from lightgpt2.runtime.spellings import Spellings
from lightgpt2.runtime.text import Writer

OnText = Callable[[int, str], None]
# Called with a prompt's index, each token that is chosen for it, and the model's logits `[V]` in its place.
OnToken = Callable[[int, int, Floats], None]
Prompt = str | Sequence[Message]  # a text to continue, or a conversation to answer


_OF_BEAMS = ("num_beams", "length_penalty", "early_stopping")  # options


class TooLong(Problem):
    """A prompt that the model's context has no room for."""


@dataclasses.dataclass(frozen=True)
class Continuation:
    """The new text of a prompt.

    Attributes:
        index: The prompt's index.
        text: The text.
        finish_reason: `stop` if it ended itself, at an end-of-text token, a stop text or the end of a turn; else `length`.
    """

    index: int
    text: str
    finish_reason: Literal["stop", "length"]


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
        template: Its chat template; None if it has none.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, folder: dict[str, Any], template: ChatTemplate | None = None
    ) -> None:
        self.engine, self.tokenizer, self._folder, self._template = engine, tokenizer, folder, template
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
        several = [prompts] if isinstance(prompts, str) else prompts
        texts = {done.index: done.text for done in self.texts(several, options, on_text)}
        return texts[0] if isinstance(prompts, str) else [texts[index] for index in range(len(texts))]

    def chat(self, messages: Sequence[Message], *, on_text: Callable[[str], None] | None = None, **options: Any) -> str:
        """Answer a conversation, up to the end of the assistant's turn, `max_new_tokens` or the end of the context.

        ```python
        model.chat([{"role": "user", "content": "What is the capital of France?"}])
        ```

        Args:
            messages: The conversation, each message with `role` and `content`; the last one is the user's, or a tool's.
            on_text: Called with each new piece of the answer, whole characters only.
            **options: As for `generate`.

        Returns:
            The answer.

        Raises:
            UserError: The model has no chat template, the template refuses the conversation, or as for `generate`.
        """
        if isinstance(messages, str):  # which would be continued as it is
            fix = 'give [{"role": "user", "content": ...}]'
            raise UserError([Problem("messages", f"must be a list of messages, got {messages!r:.60}", fix)])
        (done,) = self.texts([messages], options, on_text and (lambda _, piece: on_text(piece)))
        return done.text

    def texts(
        self,
        prompts: Sequence[Prompt],
        options: Mapping[str, Any],
        on_text: OnText | None = None,
        known: Container[int] = (),
        on_token: OnToken | None = None,
    ) -> Iterator[Continuation]:
        """Continue prompts as `generate` does, and answer conversations as `chat` does; yields them as they are done.

        Prompts whose indices are `known` are left out, and the other ones get the texts that they would get beside them.
        `on_token` is called before `on_text`, for the token that ends a text as well.
        """
        wrong = (each for each in prompts if isinstance(each, bytes) or not isinstance(each, Sequence))
        if (given := next(wrong, self)) is not self:
            raise UserError(
                [Problem("prompt", f"must be text, or a list of messages, got {given!r:.60}", "correct it")]
            )
        refuse(_no_beams(name) for name in _OF_BEAMS if options.get(name) is not None)
        if any(not isinstance(prompt, str) for prompt in prompts):
            ids, stop = self._turn_end
            ends = [*as_ids(self._folder.get("eos_token_id")), *ids]
            asked = options.get("stop") or ()
            options = {**options, "stop": (*([asked] if isinstance(asked, str) else asked), *stop)}
            settings = resolve(options, {**self._folder, "eos_token_id": ends})
        else:
            settings = resolve(options, self._folder)
        batches = _batches(self._encode(prompts, settings), settings.batch_size)
        # A batch is computed whole or not at all: the rounding of its logits depends on its size.
        wanted = (batch for batch in batches if any(prompt.index not in known for prompt in batch))
        texts = (self._continue(batch, settings, on_text, on_token) for batch in wanted)
        return (done for batch in texts for done in batch if done.index not in known)

    def room(self, messages: Sequence[Message]) -> int:
        """How many tokens the context has room for behind a conversation; negative if that is too long itself."""
        return self.engine.context - len(self._tokens(messages, "messages"))

    def logits(self, ids: Ints, mask: Ints | None = None) -> Floats:
        """The logits `[B, T, V]` at all positions of `[B, T]`; `mask` is 0 at pads, which are on the left (default: none)."""
        ids = np.asarray(ids, np.int64)
        mask = np.ones_like(ids) if mask is None else np.asarray(mask, np.int64)
        return self.engine.logits(ids, mask).copy()

    def _encode(self, prompts: Sequence[Prompt], settings: Settings) -> list[_Prompt]:
        encoded: list[_Prompt] = []
        problems: list[Problem] = []
        for index, prompt in enumerate(prompts):
            context, which = self.engine.context, "prompt" if len(prompts) == 1 else f"prompt {index + 1}"
            try:
                tokens = self._tokens(prompt, which)
            except UserError as error:
                problems += error.problems
                continue
            if not tokens:
                problems.append(Problem(which, "must not be empty", "give some text to continue"))
            elif len(tokens) >= context:
                what = f"must leave room in the model's {context} positions, got {len(tokens)} tokens"
                problems.append(TooLong(which, what, f"give at most {context - 1} tokens"))
            elif len(tokens) >= (most := settings.max_length or context):
                what = f"must be shorter than the max_length of the folder's generation_config.json, {most}"
                problems.append(Problem(which, f"{what}, got {len(tokens)} tokens", "give max_new_tokens"))
            else:
                new_tokens = settings.max_new_tokens if settings.max_length is None else context
                encoded.append(_Prompt(index, tokens, min(context - len(tokens), most - len(tokens), new_tokens)))
        if problems:
            raise UserError(problems)
        return encoded

    def _tokens(self, prompt: Prompt, which: str) -> list[int]:
        """The tokens of a text, or of a conversation with the beginning of an answer, whose template writes special ones."""
        if isinstance(prompt, str):
            if not is_unicode(prompt):
                raise UserError([Problem(which, f"must be valid Unicode, got {prompt!a}", "correct it")])
            tokens: list[int] = self.tokenizer.encode(prompt).ids if prompt else []
            return tokens
        if wrong := message_problem([*prompt], reply=True):
            raise UserError([Problem(which, wrong, "correct it")])
        try:
            text = self.template.render(prompt, reply=True)
        except ValueError as error:
            raise UserError([Problem(which, str(error), "change the conversation")]) from error
        tokens = self.tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    @cached_property
    def reader(self) -> Reader:
        """What reads texts that are being typed; one for all who complete texts with this model."""
        return Reader(self.engine, Spellings(self.tokenizer))

    @property
    def first(self) -> int:
        """The token before the first one of a text that has no other."""
        said = (each for name in ("bos_token_id", "eos_token_id") for each in as_ids(self._folder.get(name)))
        return next(said, 0)

    @property
    def has_template(self) -> bool:
        """True if there is a chat template."""
        return self._template is not None

    @property
    def template(self) -> ChatTemplate:
        """The chat template; a `UserError` if there is none."""
        if self._template is None:
            what = "the model has no chat template (chat_template.jinja)"
            raise UserError([Problem("chat", what, "add the one that it was trained with, or continue a text instead")])
        return self._template

    @cached_property
    def _turn_end(self) -> tuple[list[int], list[str]]:
        """What ends an answer in the chat template: tokens; or the text, of a tokenizer that has no tokens for it."""
        try:
            end = self.template.end_of_turn()
        except ValueError as error:
            raise UserError([Problem("chat", str(error), "correct chat_template.jinja")]) from error
        added = self.tokenizer.get_added_tokens_decoder()
        ids = [id_ for id_ in self.tokenizer.encode(end, add_special_tokens=False).ids if id_ in added]
        return ids, [end] if end and not ids else []

    def _continue(
        self, batch: Sequence[_Prompt], settings: Settings, on_text: OnText | None, on_token: OnToken | None
    ) -> Iterator[Continuation]:
        new_tokens = batch[0].new_tokens  # the same for all
        prompts, indices = [prompt.tokens for prompt in batch], [prompt.index for prompt in batch]
        writers = writers_of(self.tokenizer, prompts, indices, settings, on_text)
        sampler = Sampler(settings, prompts, indices, new_tokens)
        logits = self.engine.prefill(*left_padded(prompts), new_tokens)
        seen = on_token and (lambda row, *token: on_token(indices[row], *token))
        for row, text, stopped in written(logits, self.engine.decode, sampler, writers, new_tokens, seen):
            yield Continuation(indices[row], text, "stop" if stopped else "length")


def _no_beams(name: str) -> Problem:
    return Problem(name, "models that continue a text are not searched with beams here", "remove it")


def writers_of(
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    indices: Sequence[int],
    settings: Settings,
    on_text: OnText | None,
) -> list[Writer]:
    """What writes the texts behind prompts of these indices."""
    shown = (on_text and partial(on_text, index) for index in indices)
    stop, ends = settings.stop, settings.stop_strings
    return [Writer(tokenizer, prompt, stop, on, ends) for prompt, on in zip(prompts, shown, strict=True)]


def written(
    logits: Floats,
    decode: Callable[..., Floats],
    sampler: Sampler,
    writers: Sequence[Writer],
    new_tokens: int,
    on_token: OnToken | None = None,
    drops: bool = False,
) -> Iterator[tuple[int, str, bool]]:
    """Write on, token by token, from logits `[B, V]`; yields each row that is done, its text, and whether it ended itself.

    `on_token` is called with a row in the place of an index. True for `drops`: `decode` is also given which rows of its call
    before go on, and what is done is computed no longer.
    """
    ends, rows = sampler.settings.ends, [*range(len(writers))]  # whose logits there are
    active = {*rows}
    for count in range(1, new_tokens + 1):
        given = logits.copy() if on_token else logits  # the sampler changes them
        tokens = sampler(logits, rows)
        for place, row in enumerate(rows):
            if row not in active:
                continue
            token = int(tokens[place])
            if on_token:
                on_token(row, token, given[place])
            if token not in ends:
                writers[row].add(token)
            if token in ends or writers[row].stopped or count == new_tokens:
                active.remove(row)
                text = writers[row].finish()  # which may find a stop text
                yield row, text, token in ends or writers[row].stopped
        if not active:
            return
        if drops and len(active) < len(rows):
            kept = np.array([place for place, row in enumerate(rows) if row in active])
            rows = sorted(active)
            logits = decode(tokens[kept], kept)
        else:
            logits = decode(tokens)


def left_padded(sequences: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
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
