"""transformers on PyTorch: the baseline."""

from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from benchmarks.engines.base import Engine, Ids, Logits


class TransformersEngine(Engine):
    """FP32, with the cache that `generate` uses; the option `attention` is `eager` or `sdpa`."""

    def prepare(self) -> None:
        """Imports the family's code, which transformers does when a model is built."""
        config = AutoConfig.from_pretrained(self.folder, trust_remote_code=True)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, trust_remote_code=True)

    def load(self, capacity: int) -> None:
        torch.set_num_threads(self.threads)
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=torch.float32, attn_implementation=self.options["attention"], trust_remote_code=True
        ).eval()

    @torch.inference_mode()
    def _run(self, ids: Ids, **options: Any) -> Logits:
        logits: Logits = self._model(input_ids=torch.from_numpy(ids), **options).logits.numpy()
        return logits

    def prefill(self, prompt: Ids) -> Logits:
        self._cache = {
            "past_key_values": DynamicCache(config=self._model.config),
            "use_cache": True,
            "logits_to_keep": 1,
        }
        return self._run(prompt[None], **self._cache)[0, -1]

    def decode(self, token: int) -> Logits:
        return self._run(np.array([[token]]), **self._cache)[0, -1]

    def logits(self, ids: Ids) -> Logits:
        return self._run(ids, use_cache=False)

    def describe(self) -> str:
        return f"transformers {transformers.__version__}, torch {torch.__version__}"
