"""A classifier of transformers as an engine."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from lightgpt2.models.families import family_of, head
from lightgpt2.models.saving import positions_of
from lightgpt2.runtime.engines import Floats, Ints


class TransformersClassifier:
    """Runs a classifier of transformers, in eval mode. See `Classifier`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self.context = model, positions_of(model.config)

    @torch.inference_mode()
    def logits(self, batch: Mapping[str, Ints]) -> Floats:
        tensors = {name: torch.from_numpy(values).to(self._model.device) for name, values in batch.items()}
        pooled = family_of(self._model).pooled_states(self._model, tensors)
        found: Floats = head(self._model).logits(pooled).float().cpu().numpy()
        return found
