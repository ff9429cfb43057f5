"""A transformers model that carries states. See `runtime.recurrent.Steps`."""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lightgpt2.runtime.engines import Floats, Ints
from lightgpt2.runtime.recurrent import State


class TransformersSteps:
    """Runs such a model, in eval mode."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self.vocabulary = model, int(model.config.vocab_size)
        self.sessions: list[Any] = []

    @torch.inference_mode()
    def run(self, ids: Ints, mask: Ints | None, state: State | None, whole: bool) -> tuple[Floats, State]:
        inputs = {"input_ids": ids} | ({} if mask is None else {"attention_mask": mask})
        given = {name: torch.from_numpy(np.ascontiguousarray(x)).to(self._model.device) for name, x in inputs.items()}
        output = self._model(**given, past_key_values=state, use_cache=True, logits_to_keep=0 if whole else 1)
        return output.logits.float().cpu().numpy(), output.past_key_values
