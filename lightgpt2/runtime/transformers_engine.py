"""A transformers model as an engine."""

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from lightgpt2.runtime.engines import Floats, Ints, positions


class TransformersEngine:
    """Runs a model of transformers, with a cache that is allocated once for a batch.

    Args:
        model: A decoder in eval mode.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.vocabulary = int(model.config.vocab_size)
        self.context = int(model.config.max_position_embeddings)

    @torch.inference_mode()
    def start(self, ids: Ints, mask: Ints, room: int) -> Floats:
        """See `Engine`."""
        length = ids.shape[1]
        self._cache = StaticCache(config=self._model.config, max_cache_len=length + room)
        self._mask = self._tensor(np.pad(mask, ((0, 0), (0, room)), constant_values=1))
        self._length = length
        places = positions(mask)
        self._next = self._tensor(places[:, -1:] + 1)
        return self._last_logits(self._tensor(ids), self._tensor(places))

    @torch.inference_mode()
    def step(self, tokens: Ints) -> Floats:
        """See `Engine`."""
        self._length += 1
        logits = self._last_logits(self._tensor(tokens[:, None]), self._next)
        self._next += 1
        return logits

    @torch.inference_mode()
    def logits(self, ids: Ints, mask: Ints) -> Floats:
        """See `Engine`."""
        output = self._model(
            input_ids=self._tensor(ids),
            attention_mask=self._tensor(mask),
            position_ids=self._tensor(positions(mask)),
            use_cache=False,
        )
        return _array(output.logits)

    def _last_logits(self, ids: Tensor, places: Tensor) -> Floats:
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask[:, : self._length],
            position_ids=places,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return _array(output.logits[:, -1])

    def _tensor(self, values: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._model.device)


def _array(logits: Tensor) -> Floats:
    found: Floats = logits.float().cpu().numpy()
    return found
