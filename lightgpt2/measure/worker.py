"""The process of one arm: loads its model, and measures it when asked.

    python -m lightgpt2.measure.worker

Requests and replies are lines of JSON on standard input and output. Between two requests it waits on the pipe and takes no
time from the other arms.
"""

import contextlib
import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
import transformers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from lightgpt2.errors import UserError
from lightgpt2.measure.arms import EXPORTED, Arm, Settings
from lightgpt2.measure.measured import PROFILED_TOKENS, Measured, machine
from lightgpt2.measure.memory import Meter, embedding_mb, stored_tensors, weights_mb
from lightgpt2.measure.profiling import profiled, residency_problem
from lightgpt2.models.loading import load_config
from lightgpt2.models.quantization import load_for_inference


class Clock(BaseStreamer):  # type: ignore[misc]
    """Notes when each new token is there, and what the processor has spent by then.

    Args:
        synchronize: Waits until the device is done.
    """

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
        """Nothing."""


class Worker(Measured):
    """A model of transformers and what can be asked of it.

    Args:
        arm: What to load, and how.
        settings: What to measure.
        device: `cpu` or `cuda:N`.
    """

    def __init__(self, arm: Arm, settings: Settings, device: str) -> None:
        super().__init__(arm, settings, device)
        if device.startswith("cuda"):
            torch.cuda.set_device(device)

    def load(self) -> dict[str, Any]:
        """Loads the model and warms it up; its sizes, and the machine's description."""
        arm = self.arm
        config = load_config(arm.source, "MODEL", arm.trust_remote_code)
        _import_model_code(config, arm)
        self.meter = Meter(self.device)
        started = time.perf_counter()
        attention = "sdpa" if arm.attention == "flash" else arm.attention
        self.model = load_for_inference(
            arm.source, "MODEL", arm.precision, attention, self.device, arm.trust_remote_code
        )
        tensors = dict(stored_tensors(self.model))
        for tensor in tensors.values():  # what the file maps into memory is not there before it is read
            tensor.sum(dtype=torch.float32)
        self._synchronize()
        seconds = time.perf_counter() - started
        self.tensors = {name: tensor.device.type for name, tensor in tensors.items()}
        if problem := residency_problem(self.device, self.tensors, {}):
            raise UserError(problem)
        # The folder's own settings could stop or slow generation: its end-of-text token, a repetition penalty.
        self.model.generation_config = GenerationConfig(pad_token_id=0)
        self._prepare(self.model.config.vocab_size)
        sizes = {
            "weights_mb": weights_mb(self.model),
            "embedding_mb": embedding_mb(self.model),
            "load_mb": self.meter.grown_mb(),
            "load_seconds": seconds,
        }
        self._warm_up()
        return {"sizes": sizes, "machine": machine(self.device)}

    def profile(self, trace: str) -> dict[str, Any]:
        """Profiles a forward pass at batch 1 and a few decode steps.

        Args:
            trace: Where the Chrome trace goes.

        Raises:
            UserError: Something ran on another device than asked.
        """
        ids = self._random(1, self.settings.forward_tokens)

        def step() -> None:
            with torch.profiler.record_function("forward"):
                self._forward(ids)
            with torch.profiler.record_function("generate"):
                self._generate(PROFILED_TOKENS)

        found = profiled(step, self.device, Path(trace))
        if problem := residency_problem(self.device, self.tensors, found.products):
            raise UserError(problem)
        return {"operators": found.operators, "attention_kernel": found.attention_kernel, "trace": trace}

    # -- inside ------------------------------------------------------------------------------------------------------

    def _synchronize(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def _attention(self) -> contextlib.AbstractContextManager[None]:
        if self.arm.attention == "flash":
            return sdpa_kernel(SDPBackend.FLASH_ATTENTION)
        return contextlib.nullcontext()

    @torch.inference_mode()
    def _forward(self, ids: Tensor) -> None:
        with self._attention():
            self.model(input_ids=ids, use_cache=False)

    @torch.inference_mode()
    def _generate(self, count: int) -> tuple[list[float], float]:
        """See `Measured`."""
        clock = Clock(self._synchronize)
        forced = GenerationConfig(max_new_tokens=count, min_new_tokens=count, do_sample=False, num_beams=1)
        self._synchronize()
        spent, started = time.process_time(), time.perf_counter()
        with self._attention():
            whole = self.model.generate(
                self.prompt, attention_mask=torch.ones_like(self.prompt), generation_config=forced, streamer=clock
            )
        made = whole.shape[1] - self.prompt.shape[1]
        if made != count or len(clock.times) != count:
            raise RuntimeError(f"generated {made} tokens in place of {count}")
        return [started, *clock.times], clock.spent - spent


def _import_model_code(config: Any, arm: Arm) -> None:
    """Imports what loading will need, so that it does not count as memory of the model."""
    with torch.device("meta"), contextlib.suppress(Exception):  # what is wrong shows when it is loaded
        AutoModelForCausalLM.from_config(config, trust_remote_code=arm.trust_remote_code)
    if arm.precision not in ("fp32", "bf16", "fp16"):
        with contextlib.suppress(ImportError):
            for name in ("accelerate", "bitsandbytes"):
                importlib.import_module(name)


def _reason(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, UserError):
        return "; ".join(error.problems)
    text = " ".join(str(error).split())
    # torch has no class of its own for a CPU that is out of memory.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return "ran out of memory"
    return f"{type(error).__name__}: {text[:300]}"


def _worker_of(arm: Arm) -> type[Measured]:
    if arm.precision not in EXPORTED:
        return Worker
    from lightgpt2.measure.onnx_worker import OnnxWorker  # and ONNX Runtime, of which the other arms' memory is free

    return OnnxWorker


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answers requests until there are no more.

    Args:
        requests: Lines of JSON: `load`, `round`, `profile`.
        replies: A line for each: `ok` with what was measured, or `error`.
    """
    worker: Measured | None = None
    for line in requests:
        request = json.loads(line)
        reply: dict[str, Any]
        try:
            if request["do"] == "load":
                arm, settings = Arm(**request["spec"]), Settings(**request["settings"])
                worker = _worker_of(arm)(arm, settings, request["device"])
                result = worker.load()
            else:
                assert worker is not None
                result = worker.round() if request["do"] == "round" else worker.profile(request["trace"])
            reply = {"ok": result}
        except Exception as error:
            reply = {"error": _reason(error)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def main() -> None:
    """Keeps the channel to itself: whatever else is printed goes to standard error."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would write a line in every layer of every pass
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin, channel)


if __name__ == "__main__":
    main()
