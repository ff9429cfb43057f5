"""An arm that transformers runs."""

import contextlib
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from lightgpt2.errors import UserError
from lightgpt2.measure.base import PROFILED_TOKENS, Worker
from lightgpt2.measure.memory import embedding_mb, stored_tensors, weights_mb
from lightgpt2.measure.profiling import Profile, profiled, residency_problem
from lightgpt2.models.loading import load_config
from lightgpt2.models.quantization import Format, load_for_inference


class Clock(BaseStreamer):  # type: ignore[misc]
    """Notes when each new token is there (after `synchronize`), and the CPU time up to then."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize
        self._prompt = True
        self.times: list[float] = []
        self.spent = 0.0

    def put(self, value: Tensor) -> None:
        """Called by `generate`: first with the prompt, then with every new token."""
        if self._prompt:
            self._prompt = False
            return
        self._synchronize()
        self.times.append(time.perf_counter())
        self.spent = time.process_time()

    def end(self) -> None:
        """Called by `generate` after the last token."""


class TorchWorker(Worker):
    """A model of transformers. See `Worker`."""

    def _prepare(self) -> None:
        arm = self.arm
        config = load_config(arm.source, "MODEL", arm.trust_remote_code)
        with torch.device("meta"), contextlib.suppress(Exception):  # what is wrong shows when it is loaded
            AutoModelForCausalLM.from_config(config, trust_remote_code=arm.trust_remote_code)
        if arm.precision in get_args(Format):
            with contextlib.suppress(ImportError):
                for name in ("accelerate", "bitsandbytes"):
                    importlib.import_module(name)

    def _load(self) -> dict[str, float | None]:
        arm, attention = self.arm, "sdpa" if self.arm.attention == "flash" else self.arm.attention
        trusted = arm.trust_remote_code
        self.model = load_for_inference(arm.source, "MODEL", arm.precision, attention, self.device, trusted)
        tensors = dict(stored_tensors(self.model))
        for tensor in tensors.values():  # what the file maps into memory is not there before it is read
            tensor.sum(dtype=torch.float32)
        self._synchronize()
        self.tensors = {name: tensor.device.type for name, tensor in tensors.items()}
        if problem := residency_problem(self.device, self.tensors, {}):
            raise UserError(problem)
        # The folder's own settings could stop or slow generation: its end-of-text token, a repetition penalty.
        self.model.generation_config = GenerationConfig(pad_token_id=0)
        self.vocabulary = self.model.config.vocab_size
        return {"weights_mb": weights_mb(self.model), "embedding_mb": embedding_mb(self.model)}

    def _profile(self, ids: Tensor, trace: Path) -> Profile:
        def step() -> None:
            with torch.profiler.record_function("forward"):
                self._forward(ids)
            with torch.profiler.record_function("generate"):
                self._generate(PROFILED_TOKENS)

        found = profiled(step, self.cuda, trace)
        if problem := residency_problem(self.device, self.tensors, found.products):
            raise UserError(problem)
        return found

    def _attention(self) -> contextlib.AbstractContextManager[None]:
        flash = self.arm.attention == "flash"
        return sdpa_kernel(SDPBackend.FLASH_ATTENTION) if flash else contextlib.nullcontext()

    @torch.inference_mode()
    def _forward(self, ids: Tensor) -> None:
        with self._attention():
            self.model(input_ids=ids, use_cache=False)

    @torch.inference_mode()
    def _generate(self, count: int) -> tuple[list[float], float]:
        clock = Clock(self._synchronize)
        forced = GenerationConfig(max_new_tokens=count, min_new_tokens=count, do_sample=False, num_beams=1)
        self._synchronize()
        spent, started = time.process_time(), time.perf_counter()
        with self._attention():
            whole = self.model.generate(
                self.prompt, attention_mask=torch.ones_like(self.prompt), generation_config=forced, streamer=clock
            )
        new = whole.shape[1] - self.prompt.shape[1]
        if new != count or len(clock.times) != count:
            raise RuntimeError(f"generated {new} tokens in place of {count}")
        return [started, *clock.times], clock.spent - spent
