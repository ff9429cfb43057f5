"""The classes of texts, whatever runs the model."""

import sys
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from tokenizers import Encoding, Tokenizer

from lightgpt2.errors import Problem, UserError, refuse, tell
from lightgpt2.models.vocabulary import is_unicode
from lightgpt2.runtime.engines import Classifier, Ints

Text = str | tuple[str, str]  # or two that belong together


@dataclass(frozen=True)
class Classified:
    """The class of a text.

    Attributes:
        index: The text's index.
        label: The name of the most likely class.
        score: Its probability.
        probabilities: The probability of each class by name.
    """

    index: int
    label: str
    score: float
    probabilities: dict[str, float]


class TextClassifier:
    """A classifier with its tokenizer.

    ```python
    model = lightgpt2.load("checkpoints/classify/model")  # or an exported folder
    model.classify("The pump shall start within 5 s.")["label"]
    ```

    Args:
        engine: What runs the model.
        tokenizer: Its tokenizer.
        labels: The names of the classes, in the order of the logits.
        pad: The token that fills up shorter texts.
        segments: True if the second text of a pair is in another segment than the first.
    """

    def __init__(
        self, engine: Classifier, tokenizer: Tokenizer, labels: Sequence[str], pad: int, segments: bool
    ) -> None:
        self.engine, self.tokenizer, self.labels = engine, tokenizer, [*labels]
        self._pad, self._segments = pad, segments
        tokenizer.no_padding()  # which a folder may have kept from training
        tokenizer.no_truncation()
        if engine.context is not None:
            tokenizer.enable_truncation(engine.context)

    @overload
    def classify(self, texts: Text, *, batch_size: int = 16) -> dict[str, Any]: ...
    @overload
    def classify(self, texts: list[Text] | list[str], *, batch_size: int = 16) -> list[dict[str, Any]]: ...
    def classify(self, texts: Any, *, batch_size: int = 16) -> dict[str, Any] | list[dict[str, Any]]:
        """Classify texts.

        Args:
            texts: One, or a list of several; a pair of texts is a tuple. What is longer than the model allows is cut off.
            batch_size: The texts that are computed together; texts of similar length are.

        Returns:
            `label`, its `score`, which is its probability, and the `probabilities` of all classes by name; a list for a list.

        Raises:
            UserError: A text is empty, or is none.
        """
        one = isinstance(texts, str | tuple)
        found = {done.index: done for done in self.results([texts] if one else texts, batch_size)}
        rows = [{key: value for key, value in vars(found[i]).items() if key != "index"} for i in range(len(found))]
        return rows[0] if one else rows

    def results(self, texts: Sequence[Text], batch_size: int, known: Container[int] = ()) -> Iterator[Classified]:
        """Classify texts as `classify` does, the longest first, but those whose indices are `known`."""
        if batch_size < 1:
            raise UserError([Problem("batch_size", f"must be at least 1, got {batch_size}")])
        encoded = self._encode(texts)
        order = sorted((index for index in range(len(texts)) if index not in known), key=lambda i: -len(encoded[i].ids))
        batches = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
        return (done for batch in batches for done in self._classify(batch, [encoded[index] for index in batch]))

    def _encode(self, texts: Sequence[Text]) -> list[Encoding]:
        problems = []
        for index, text in enumerate(texts):
            which = "text" if len(texts) == 1 else f"text {index + 1}"
            parts = text if isinstance(text, tuple) else (text,)
            if len(parts) > 2 or not all(isinstance(part, str) for part in parts):
                problems.append(Problem(which, f"must be a text or a pair of texts, got {text!a}", "give one of these"))
            elif not all(part.strip() for part in parts):
                problems.append(Problem(which, "must not be empty", "give some text"))
            elif not all(map(is_unicode, parts)):
                problems.append(Problem(which, f"must be valid Unicode, got {text!a}", "correct it"))
        refuse(problems)
        found: list[Encoding] = self.tokenizer.encode_batch([*texts])
        if cut := sum(bool(each.overflowing) for each in found):
            what = f"{cut} of {len(texts)} texts are longer than {self.engine.context} tokens and cut off there"
            tell(f"lightgpt2: {what}", sys.stderr)
        return found

    def _classify(self, indices: Sequence[int], encoded: Sequence[Encoding]) -> Iterator[Classified]:
        logits = self.engine.logits(self._padded(encoded)).astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        for index, row in zip(indices, shares.tolist(), strict=True):
            probabilities = dict(zip(self.labels, row, strict=True))
            label = max(probabilities, key=probabilities.__getitem__)
            yield Classified(index, label, probabilities[label], probabilities)

    def _padded(self, encoded: Sequence[Encoding]) -> dict[str, Ints]:
        """A batch `[B, T]` with pads on the right."""
        shape = len(encoded), max(len(each.ids) for each in encoded)
        ids, mask, segments = np.full(shape, self._pad, np.int64), *np.zeros((2, *shape), np.int64)
        for row, each in enumerate(encoded):
            length = len(each.ids)
            ids[row, :length], mask[row, :length], segments[row, :length] = each.ids, 1, each.type_ids
        batch = {"input_ids": ids, "attention_mask": mask}
        return batch | ({"token_type_ids": segments} if self._segments else {})
