"""A text from a text, by an encoder-decoder, whatever runs it."""

import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from tokenizers import Tokenizer

from lightgpt2.errors import Problem, refuse, tell
from lightgpt2.models.vocabulary import is_unicode
from lightgpt2.runtime.beams import Beams
from lightgpt2.runtime.engines import EncoderDecoder, Floats, Ints
from lightgpt2.runtime.language_model import Continuation, OnText, OnToken, writers_of, written
from lightgpt2.runtime.options import Settings, resolve
from lightgpt2.runtime.sampling import Sampler

DONE = ("num_beams",)  # what a folder asks for that is done here and not for models that continue a text


class TextToText:
    """An encoder-decoder with its tokenizer, and the generation settings of its folder.

    ```python
    model = lightgpt2.load("checkpoints/summarize/model")  # or an exported folder
    model.generate(article, num_beams=4, max_new_tokens=60)
    ```

    Args:
        engine: What runs the model.
        tokenizer: Its tokenizer.
        folder: The values of the folder's generation configuration, `decoder_start_token_id` among them.
        pad: The token that fills up shorter sources.
    """

    def __init__(self, engine: EncoderDecoder, tokenizer: Tokenizer, folder: Mapping[str, Any], pad: int) -> None:
        self.engine, self.tokenizer, self._folder, self._pad = engine, tokenizer, folder, pad
        self.start = [int(folder["decoder_start_token_id"])]
        tokenizer.no_padding()  # which a folder may have kept from training
        tokenizer.no_truncation()
        if engine.context is not None:
            tokenizer.enable_truncation(engine.context)

    @overload
    def generate(self, texts: str, *, on_text: OnText | None = None, **options: Any) -> str: ...
    @overload
    def generate(self, texts: Sequence[str], *, on_text: OnText | None = None, **options: Any) -> list[str]: ...
    def generate(self, texts: Any, *, on_text: OnText | None = None, **options: Any) -> str | list[str]:
        """Write the text that belongs to a text, its summary for example; of several texts a list.

        It ends at an end-of-text token, a stop text, `max_new_tokens` or the end of the positions.

        Args:
            texts: One, or several. What is longer than the model allows is cut off, which is said.
            on_text: Called with a text's index and each new piece of what is written; with beams once, with all of it.
            **options: As for `lightgpt2.runtime.options.resolve`: `num_beams`, `min_new_tokens`, `no_repeat_ngram`, ...

        Raises:
            UserError: An option is out of range, or a text is empty.
        """
        several = [texts] if isinstance(texts, str) else texts
        made = {done.index: done.text for done in self.texts(several, options, on_text)}
        return made[0] if isinstance(texts, str) else [made[index] for index in range(len(made))]

    def texts(
        self,
        prompts: Sequence[str],
        options: Mapping[str, Any],
        on_text: OnText | None = None,
        known: Container[int] = (),
        on_token: OnToken | None = None,
    ) -> Iterator[Continuation]:
        """Write texts as `generate` does, the longest sources first, but for those whose indices are `known`.

        `on_token` is as in `LanguageModel.texts`; beams, which choose whole texts, do not call it.
        """
        settings = self.settings(options)
        sources = self._encode(prompts)
        order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
        size = settings.batch_size
        batches = (order[start : start + size] for start in range(0, len(order), size))
        # A batch is computed whole or not at all, so that rounding is the same.
        made = (
            self._written(b, [sources[i] for i in b], settings, on_text, on_token)
            for b in batches
            if any(i not in known for i in b)
        )
        return (done for batch in made for done in batch if done.index not in known)

    def settings(self, options: Mapping[str, Any]) -> Settings:
        """The settings that options give; a `UserError` for those that do not fit."""
        settings = resolve(options, self._folder)
        beams, problems = settings.num_beams, list[Problem]()
        if beams > 1 and settings.temperature > 0:
            what = f"must be 1 at a temperature above 0, which samples, got {beams}"
            problems.append(Problem("num_beams", what, "give 1, or temperature 0"))
        if beams > 1 and (settings.stop or settings.stop_strings):
            what = f"must be left out with {beams} beams, which end at an end-of-text token only"
            problems.append(Problem("stop", what, "remove it, or give num_beams 1"))
        if beams == 1:
            unused = [name for name in ("length_penalty", "early_stopping") if options.get(name) is not None]
            what = "must be left out with 1 beam, which is compared with no other"
            problems += [Problem(name, what, "give num_beams, or remove it") for name in unused]
        refuse(problems)
        return settings

    def tokens(self, ids: Ints, mask: Ints, options: Mapping[str, Any]) -> list[list[int]]:
        """The new tokens for sources `[B, S]`, with 0 at pads in `mask`: each with the one that ended it, if one did."""
        settings = self.settings(options)
        if settings.num_beams > 1:
            return self._searched(ids, mask, settings)
        made = [list[int]() for _ in ids]
        for _ in self._grown(ids, mask, settings, range(len(ids)), None, lambda row, token, _: made[row].append(token)):
            pass
        return made

    def new_tokens(self, settings: Settings) -> int:
        """The most tokens that are written."""
        most = settings.max_new_tokens if settings.max_length is None else settings.max_length - len(self.start)
        return max(1, most if self.engine.context is None else min(most, self.engine.context))

    def logits(self, ids: Ints, mask: Ints, targets: Ints) -> Floats:
        """The logits `[B, T, V]` behind each token of targets `[B, T]`, which begin with `start`."""
        return self.engine.logits(ids, mask, targets).copy()

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        problems = []
        for index, text in enumerate(texts):
            which = "prompt" if len(texts) == 1 else f"prompt {index + 1}"
            if not isinstance(text, str):
                problems.append(Problem(which, f"must be a text, got {text!a}", "this model has no conversations"))
            elif not text.strip():
                problems.append(Problem(which, "must not be empty", "give some text"))
            elif not is_unicode(text):
                problems.append(Problem(which, f"must be valid Unicode, got {text!a}", "correct it"))
        refuse(problems)
        found = self.tokenizer.encode_batch([*texts])
        if cut := sum(bool(each.overflowing) for each in found):
            what = f"{cut} of {len(texts)} texts are longer than {self.engine.context} tokens and cut off there"
            tell(f"lightgpt2: {what}", sys.stderr)
        return [each.ids for each in found]

    def _written(
        self,
        indices: Sequence[int],
        sources: Sequence[Sequence[int]],
        settings: Settings,
        on_text: OnText | None,
        on_token: OnToken | None,
    ) -> Iterator[Continuation]:
        ids, mask = _right_padded(sources, self._pad)
        if settings.num_beams > 1:
            writers = writers_of(self.tokenizer, [self.start] * len(indices), indices, settings, on_text)
            for index, writer, tokens in zip(indices, writers, self._searched(ids, mask, settings), strict=True):
                stopped = tokens[-1] in settings.ends
                for token in tokens[:-1] if stopped else tokens:
                    writer.add(token)
                yield Continuation(index, writer.finish(), "stop" if stopped else "length")
            return
        seen = on_token and (lambda row, *token: on_token(indices[row], *token))
        for row, text, stopped in self._grown(ids, mask, settings, indices, on_text, seen):
            yield Continuation(indices[row], text, "stop" if stopped else "length")

    def _grown(
        self,
        ids: Ints,
        mask: Ints,
        settings: Settings,
        indices: Sequence[int],
        on_text: OnText | None,
        on_token: OnToken | None,
    ) -> Iterator[tuple[int, str, bool]]:
        """What is written token by token, as `written` yields it; a text that is done leaves the batch."""
        starts, new = [self.start] * len(indices), self.new_tokens(settings)
        writers = writers_of(self.tokenizer, starts, indices, settings, on_text)
        sampler = Sampler(settings, starts, indices, new)
        logits = self.engine.prefill(ids, mask, np.array(starts, np.int64))
        return written(logits, self.engine.decode, sampler, writers, new, on_token, drops=True)

    def _searched(self, ids: Ints, mask: Ints, settings: Settings) -> list[list[int]]:
        """The tokens that beam search finds."""
        beams = Beams(settings, len(ids), self.start, self.new_tokens(settings))
        logits = self.engine.prefill(ids, mask, np.tile(np.array(self.start, np.int64), (len(ids), 1)))
        while True:
            tokens, rows = beams(logits)
            if beams.done:
                return beams.best()
            logits = self.engine.decode(tokens, rows)


def _right_padded(sequences: Sequence[Sequence[int]], pad: int) -> tuple[Ints, Ints]:
    """Tokens `[B, S]` with pads on the right, and the mask with 0 there."""
    ids = np.full((len(sequences), max(map(len, sequences))), pad, np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
    return ids, mask
