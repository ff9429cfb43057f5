"""How pairs become tokens: for an encoder-decoder, and for a decoder that reads the source as a prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from lightgpt2.data.documents import Conversation
from lightgpt2.data.encoding import Encoder
from lightgpt2.data.pair_batches import EncodedPairs, Tokens
from lightgpt2.data.pairs import Pair
from lightgpt2.data.preparation import document_separator
from lightgpt2.errors import UserError
from lightgpt2.models.chat import chat_template

PLACE = "{source}"  # of the source in a template
TEMPLATE = f"{PLACE}\n\nTL;DR: "  # Radford et al. 2019, section 3.6

Longer = Callable[[str, int], None]  # is told what is longer than it may be, and how many of them are


@dataclass(frozen=True)
class PairEncoder:
    """How pairs become tokens.

    Args:
        tokenizer: The tokenizer.
        prefix: Text before each source.
        most_source: Tokens of a source, at most.
        most_target: Tokens of a target, at most.
    """

    tokenizer: PreTrainedTokenizerFast
    prefix: str
    most_source: int
    most_target: int

    def separate(self, pairs: Sequence[Pair], longer: Longer) -> EncodedPairs:
        """Sources and targets, each with the special tokens that the tokenizer adds."""
        sources = self._encoded([self.prefix + pair.source for pair in pairs], self.most_source, "sources", longer)
        targets = self._encoded([pair.target for pair in pairs], self.most_target, "targets", longer)
        return self._of(sources, targets, pairs)

    def joined(self, pairs: Sequence[Pair], longer: Longer, template: str | None) -> EncodedPairs:
        """Prompts and the targets behind them.

        Args:
            pairs: The pairs. Those that are conversations are laid out by the chat template.
            longer: Is told what is cut.
            template: The text around the source; None: the tokenizer's chat template, if it has one.
        """
        chat = chat_template(self.tokenizer)
        chat = chat and replace(chat, is_dated=False)
        plain = TEMPLATE if template is None and chat is None else template
        backend, end = self.tokenizer.backend_tokenizer.to_str(), self.tokenizer.eos_token_id
        separator = document_separator(self.tokenizer)
        as_text, as_chat = (Encoder(backend, separator, end, "int32", way) for way in (None, chat))
        sources, targets, cut = list[Tokens](), list[Tokens](), 0
        texts = self._shortened(["" if pair.conversation else self.prefix + pair.source for pair in pairs], longer)
        for pair, text in zip(pairs, texts, strict=True):
            laid = pair.conversation or _asked(pair, text if plain is None else plain.replace(PLACE, text))
            (found,) = (as_chat if pair.conversation or plain is None else as_text)([laid])
            if isinstance(found, str):
                raise UserError(
                    f"data.chat_template: a conversation cannot be laid out ({found}); give another template"
                )
            first = int(np.argmax(found.answers)) if found.answers is not None else 0
            over = max(0, first - self.most_source) if pair.conversation else 0  # of a conversation the end matters
            cut += over > 0
            sources.append(found.tokens[over:first])
            targets.append(found.tokens[first:])
        if cut:
            longer("sources", cut)
        if long := sum(len(each) > self.most_target for each in targets):
            longer("targets", long)
        return self._of(sources, [each[: self.most_target] for each in targets], pairs)

    def _encoded(self, texts: Sequence[str], most: int, what: str, longer: Longer) -> list[Tokens]:
        found: Any = self.tokenizer([*texts], verbose=False)["input_ids"] if texts else []
        end = self.tokenizer.eos_token_id
        ends = end is not None and bool(found) and all(ids[-1:] != [end] for ids in found)  # GPT-2's adds none
        if cut := sum(len(ids) + ends > most for ids in found):
            longer(what, cut)
            found = self.tokenizer([*texts], truncation=True, max_length=most - ends)["input_ids"]
        return [np.array([*ids, *([end] if ends else [])], np.int32) for ids in found]

    def _shortened(self, texts: list[str], longer: Longer) -> list[str]:
        """The texts, each up to the last token that is read of it."""
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        places = encoded["offset_mapping"]
        if cut := sum(len(each) > self.most_source for each in places):
            longer("sources", cut)
        ends = [each[self.most_source - 1][1] if len(each) > self.most_source else None for each in places]
        return [text[:end] for text, end in zip(texts, ends, strict=True)]

    def _of(self, sources: Sequence[Tokens], targets: Sequence[Tokens], pairs: Sequence[Pair]) -> EncodedPairs:
        return EncodedPairs(sources, targets, pairs, self.tokenizer.pad_token_id or 0)


def _asked(pair: Pair, prompt: str) -> Conversation:
    turns = {"role": "user", "content": prompt}, {"role": "assistant", "content": pair.target}
    return Conversation(turns, is_pair=True)
