"""transformers on PyTorch: the baseline."""

from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from benchmarks.engines.base import Engine, Ids, Logits


class TransformersEngine(Engine):
    """FP32, with the cache that `generate` uses; the option `attention` is `eager` or `sdpa`."""

    def prepare(self) -> None:
        """The family's code, which transformers imports when a model is made."""
        config = AutoConfig.from_pretrained(self.folder, trust_remote_code=True)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, trust_remote_code=True)

    def load(self, capacity: int) -> None:
        """Reads the folder."""
        torch.set_num_threads(self.threads)
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=torch.float32, attn_implementation=self.options["attention"], trust_remote_code=True
        ).eval()

    @torch.inference_mode()
    def start(self, prompt: Ids) -> int:
        """A fresh cache and one pass over the prompt."""
        self._cache = DynamicCache(config=self._model.config)
        return self._next(torch.from_numpy(prompt)[None])

    @torch.inference_mode()
    def step(self, token: int) -> int:
        """One pass over one token."""
        return self._next(torch.tensor([[token]]))

    def _next(self, ids: torch.Tensor) -> int:
        result = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return int(result.logits[0, -1].argmax())

    @torch.inference_mode()
    def forward(self, ids: Ids) -> Logits:
        """One pass without a cache."""
        logits: Logits = self._model(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()
        return logits

    def describe(self) -> str:
        """Versions."""
        return f"transformers {transformers.__version__}, torch {torch.__version__}"
