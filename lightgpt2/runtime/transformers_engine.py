"""A transformers model as an engine."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from lightgpt2.runtime.engines import Floats, Ints, positions


class TransformersEngine:
    """Runs a decoder of transformers, in eval mode, with a cache that is allocated once for a batch. See `Engine`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.vocabulary = int(model.config.vocab_size)
        self.context = int(model.config.max_position_embeddings)
        self._read = 0  # positions of the sequence of `resume`

    def prefill(self, ids: Ints, mask: Ints, new_tokens: int) -> Floats:
        self._length = ids.shape[1]
        self._cache = StaticCache(config=self._model.config, max_cache_len=self._length + new_tokens)
        self._mask = self._tensor(np.pad(mask, ((0, 0), (0, new_tokens)), constant_values=1))
        places = positions(mask)
        self._next = self._tensor(places[:, -1:] + 1)
        return self._last_logits(ids, self._tensor(places))

    def decode(self, tokens: Ints) -> Floats:
        self._length += 1
        logits = self._last_logits(tokens[:, None], self._next)
        self._next += 1
        return logits

    def logits(self, ids: Ints, mask: Ints) -> Floats:
        return self._run(ids, self._tensor(mask), self._tensor(positions(mask)), use_cache=False)

    def resume(self, ids: Ints, kept: int) -> Floats:
        if kept == 0:
            # Without the configuration: layers with a window keep all positions, or none could be dropped.
            self._sequence = DynamicCache()
        else:
            self._sequence.crop(min(0, kept - self._read))
        self._read = kept + len(ids)
        mask, places = np.ones((1, self._read), np.int64), np.arange(kept, self._read)[None]
        options: Any = {"past_key_values": self._sequence, "use_cache": True, "logits_to_keep": 1}
        return self._run(ids[None], self._tensor(mask), self._tensor(places), **options)[0, -1]

    def _last_logits(self, ids: Ints, places: Tensor) -> Floats:
        mask = self._mask[:, : self._length]
        return self._run(ids, mask, places, past_key_values=self._cache, use_cache=True, logits_to_keep=1)[:, -1]

    @torch.inference_mode()
    def _run(self, ids: Ints, mask: Tensor, places: Tensor, **options: Any) -> Floats:
        output = self._model(input_ids=self._tensor(ids), attention_mask=mask, position_ids=places, **options)
        found: Floats = output.logits.float().cpu().numpy()
        return found

    def _tensor(self, values: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._model.device)
