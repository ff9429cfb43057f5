"""An encoder-decoder of transformers as an engine."""

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from lightgpt2.models.saving import positions_of
from lightgpt2.runtime.engines import Floats, Ints


class TransformersEncoderDecoder:
    """Runs an encoder-decoder of transformers, in eval mode. See `engines.EncoderDecoder`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.vocabulary, self.context = int(model.config.vocab_size), positions_of(model.config)

    def prefill(self, ids: Ints, mask: Ints, start: Ints) -> Floats:
        self._mask, self._states = self._tensor(mask), self._read(ids, mask)
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        return self._run(start)[:, -1]

    @torch.inference_mode()
    def decode(self, tokens: Ints, rows: Ints | None = None) -> Floats:
        if rows is not None:
            chosen = self._tensor(rows)
            self._mask, self._states = self._mask[chosen], self._states[chosen]
            self._cache.reorder_cache(chosen)
        return self._run(tokens[:, None])[:, -1]

    def logits(self, ids: Ints, mask: Ints, targets: Ints) -> Floats:
        self._mask, self._states = self._tensor(mask), self._read(ids, mask)
        self._cache = None
        return self._run(targets)

    @torch.inference_mode()
    def _read(self, ids: Ints, mask: Ints) -> Tensor:
        encoder = self._model.get_encoder()
        found: Tensor = encoder(input_ids=self._tensor(ids), attention_mask=self._tensor(mask)).last_hidden_state
        return found

    @torch.inference_mode()
    def _run(self, tokens: Ints) -> Floats:
        output = self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._states), attention_mask=self._mask,
            decoder_input_ids=self._tensor(tokens), past_key_values=self._cache, use_cache=self._cache is not None,
        )  # fmt: skip
        found: Floats = output.logits.float().cpu().numpy()
        return found

    def _tensor(self, values: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._model.device)
