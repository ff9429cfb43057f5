"""An arm that transformers runs."""

import contextlib
import importlib
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, schedule
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from lightgpt2.errors import Problem, UserError
from lightgpt2.measure.base import PROFILED_STEPS, Operator, Steps, Worker
from lightgpt2.measure.memory import embedding_mb, stored_tensors, weights_mb
from lightgpt2.models.families import family_of
from lightgpt2.models.files import scratch_folder
from lightgpt2.models.loading import new_model
from lightgpt2.models.quantization import DYNAMIC, Format, inference_config, load_for_inference

_ATTENTION = "aten::_scaled_dot_product_"
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_int_mm", "aten::_scaled_mm")


class Clock(BaseStreamer):  # type: ignore[misc]
    """Notes wall and CPU time, after `synchronize`, when the prompt and then each new token is there."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize
        self.marks: list[tuple[float, float]] = []

    def put(self, value: Tensor) -> None:
        self._synchronize()
        self.marks.append((time.perf_counter(), time.process_time()))

    def end(self) -> None:
        """Called by `generate` after the last token."""


class TorchWorker(Worker):
    """A model of transformers. See `Worker`."""

    def _prepare(self) -> None:
        arm = self.arm
        if self.cuda:
            torch.cuda.set_device(self.device)
            torch.cuda.init()
        config = inference_config(arm.source, "MODEL", arm.trust_remote_code)
        with torch.device("meta"), contextlib.suppress(Exception):  # what is wrong shows when it is loaded
            new_model(config)
        needed = dict.fromkeys(get_args(Format), ("accelerate", "bitsandbytes")) | {DYNAMIC: ("torch.ao.quantization",)}
        with contextlib.suppress(ImportError):
            for name in needed.get(arm.precision, ()):
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
        if problem := residency_problem(self.device, self.tensors):
            raise UserError(problem)
        # The folder's own settings could stop or slow generation: its end-of-text token, a repetition penalty.
        settings = getattr(self.model, "generation_config", None)  # a classifier has none
        start = getattr(settings, "decoder_start_token_id", None)
        self.model.generation_config = GenerationConfig(pad_token_id=0, decoder_start_token_id=start)
        self.vocabulary = self.model.config.vocab_size
        self._inputs = family_of(self.model).text_inputs
        self._plain = {"use_cache": False} if hasattr(self.model.config, "use_cache") else {}
        return {"weights_mb": weights_mb(self.model), "embedding_mb": embedding_mb(self.model)}

    def _profile(self, steps: Steps, trace: Path) -> tuple[list[Operator], str]:
        """Profiles a few steps, after one that is thrown away and one that warms the profiler up."""
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        averages: list[Any] = []

        def finish(profiler: profile) -> None:
            with scratch_folder(trace.parent, trace.name) as folder:  # torch writes a temporary file beside it
                profiler.export_chrome_trace(str(folder / trace.name))
                if not (folder / trace.name).exists():  # torch does not raise
                    what = "cannot be written: the disk is full, or does not allow it"
                    raise UserError([Problem(str(trace), what, "give another folder with --traces")])
                (folder / trace.name).replace(trace)
            averages.extend(profiler.key_averages())

        order = schedule(wait=1, warmup=1, active=PROFILED_STEPS, repeat=1)
        with profile(activities=activities, schedule=order, on_trace_ready=finish) as profiler:
            for _ in range(2 + PROFILED_STEPS):
                for name, step in steps.items():
                    with torch.profiler.record_function(name):
                        step()
                self._synchronize()
                profiler.step()
        # Operators have a namespace; the rest are marks, and CUDA's own functions and kernels.
        rows = [row for row in averages if "::" in row.key and row.device_type == DeviceType.CPU]
        products = [row for row in rows if row.key in _PRODUCTS or row.key.startswith("bitsandbytes::")]
        launched = {row.key: float(row.device_time_total) for row in products}
        if problem := residency_problem(self.device, self.tensors, launched):
            raise UserError(problem)
        # On CUDA an operator's own time is the time of its kernels.
        own = [(r.key, r.count, (r.self_device_time_total if self.cuda else r.self_cpu_time_total) / 1e3) for r in rows]
        return own, attention_kernel(row.key for row in rows)

    def _attention(self) -> contextlib.AbstractContextManager[None]:
        flash = self.arm.attention == "flash"
        return sdpa_kernel(SDPBackend.FLASH_ATTENTION) if flash else contextlib.nullcontext()

    @torch.inference_mode()
    def forward(self, ids: Tensor, mask: Tensor | None = None) -> None:
        with self._attention():
            self.model(**dict.fromkeys(self._inputs, ids), attention_mask=mask, **self._plain)
        self._synchronize()

    @torch.inference_mode()
    def encode(self, ids: Tensor) -> None:
        part = self.model.get_encoder() if self.model.config.is_encoder_decoder else self.model.base_model
        with self._attention():
            part(input_ids=ids)
        self._synchronize()

    @torch.inference_mode()
    def generate(self, prompt: Tensor, count: int) -> tuple[list[float], float]:
        clock = Clock(self._synchronize)
        self._synchronize()
        spent, started = time.process_time(), time.perf_counter()
        self._write(prompt, count, streamer=clock)
        if len(clock.marks) != 1 + count:
            raise RuntimeError(f"generated {len(clock.marks) - 1} tokens in place of {count}")
        return [started, *(wall for wall, _ in clock.marks[1:])], clock.marks[-1][1] - spent

    @torch.inference_mode()
    def search(self, prompt: Tensor, count: int, beams: int) -> None:
        self._write(prompt, count, beams)
        self._synchronize()

    def _write(self, prompt: Tensor, count: int, beams: int = 1, **options: Any) -> None:
        forced = GenerationConfig(max_new_tokens=count, min_new_tokens=count, do_sample=False, num_beams=beams)
        with self._attention():
            whole = self.model.generate(
                prompt, attention_mask=torch.ones_like(prompt), generation_config=forced, **options
            )
        given = 1 if self.model.config.is_encoder_decoder else prompt.shape[1]
        if (new := whole.shape[1] - given) != count:
            raise RuntimeError(f"generated {new} tokens in place of {count}")


def attention_kernel(names: Iterable[str]) -> str:
    """The attention that ran, from the names of the operators that did; `eager` where it was plain matrix products."""
    return ", ".join(sorted({name for name in names if name.startswith(_ATTENTION)})) or "eager"


def residency_problem(
    device: str, tensors: Mapping[str, str], products: Mapping[str, float] | None = None
) -> str | None:
    """Why figures for CUDA would not be CUDA's: a tensor lay, or a product ran, elsewhere; None if they are.

    `products` are microseconds on CUDA by operator, once some have run.
    """
    if not device.startswith("cuda"):
        return None
    if elsewhere := [f"{name} on {where}" for name, where in tensors.items() if where != "cuda"]:
        return f"{len(elsewhere)} of {len(tensors)} tensors are not on CUDA, first {elsewhere[0]}"
    if products is not None and not products:
        return "no matrix product was seen"
    if idle := [name for name, microseconds in (products or {}).items() if not microseconds > 0]:
        return f"no CUDA kernels were seen for {', '.join(sorted(idle))}"
    return None
