"""transformers on PyTorch: the baseline."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache

from lightgpt2.runtime.engines import Floats, Ints

# Their code is imported late by itself.
_FAMILIES = (
    transformers.BertModel,
    transformers.DistilBertModel,
    transformers.GPT2LMHeadModel,
    transformers.LlamaForCausalLM,
)
_ABOUT = f"transformers {transformers.__version__}, torch {torch.__version__}"


class Transformers:
    """A decoder in FP32 with the cache that `generate` uses, or an encoder."""

    def __init__(self, model: Any, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = model.eval()
        model.config.use_cache = False  # unless it is asked for

    @torch.inference_mode()
    def _run(self, ids: Ints, **options: Any) -> Floats:
        return self._model(input_ids=torch.from_numpy(ids), **options)[0].numpy()

    def prefill(self, ids: Ints, mask: Ints, new_tokens: int) -> Floats:
        cache = DynamicCache(config=self._model.config)
        self._cache = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        return self._run(ids, **self._cache)[:, -1]

    def decode(self, tokens: Ints) -> Floats:
        return self._run(tokens[:, None], **self._cache)[:, -1]

    def logits(self, ids: Ints, mask: Ints) -> Floats:
        return self._run(ids)


def decoder(folder: Path, threads: int, attention: str) -> tuple[Transformers, str]:
    """A model folder, with `eager` or `sdpa` attention."""
    options = {"dtype": torch.float32, "attn_implementation": attention, "trust_remote_code": True}
    return Transformers(AutoModelForCausalLM.from_pretrained(folder, **options), threads), _ABOUT


def encoder(folder: Path, threads: int, int8: bool = False) -> tuple[Transformers, str]:
    """A model folder, in FP32 or with dynamic quantization."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    if int8:
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    return Transformers(model, threads), _ABOUT
