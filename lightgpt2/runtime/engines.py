"""The interfaces of what runs a decoder and a classifier, and what all engines need."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

# Key of an exported graph's metadata: a JSON list of the matrices that keep their 4 bits where prompts are read with 8.
PREFILL = "prefill"
CONTEXT = "context"  # key likewise, of a classifier: how many positions it has

# The graphs of an exported encoder-decoder.
ENCODER, DECODER, DECODER_WITH_PAST = "encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class Engine(Protocol):
    """A decoder with a cache of keys and values, or with states, for one batch at a time.

    Attributes:
        vocabulary: V, the number of logits.
        context: How many positions it has.
    """

    vocabulary: int
    context: int

    def prefill(self, ids: Ints, mask: Ints, new_tokens: int) -> Floats:
        """Read the prompts `[B, T]` of a new batch, padded on the left, with 0 at pads in `mask`.

        `decode` may add `new_tokens` tokens. Returns logits of the next token `[B, V]`: the caller's until the next call.
        """

    def decode(self, tokens: Ints) -> Floats:
        """Add a token `[B]` to each sequence; the logits of the next one `[B, V]`, as in `prefill`."""

    def logits(self, ids: Ints, mask: Ints) -> Floats:
        """The logits `[B, T, V]` at all positions of a batch, valid until the next call; `decode` does not go on from here."""

    def resume(self, ids: Ints, kept: int) -> Floats:
        """Read tokens `[T]`, at least one, behind the first `kept` positions of the sequence that this method has read.

        That sequence is apart from the batches of the other methods. What is behind `kept` is dropped; 0 begins anew, as the
        caller must after an exception. Returns the logits of the next token `[V]`: the caller's until the next call.
        """


class Classifier(Protocol):
    """A classifier of texts, for one batch at a time.

    Attributes:
        context: How many positions it has; None: there is no limit.
    """

    context: int | None

    def logits(self, batch: Mapping[str, Ints]) -> Floats:
        """The logits of the classes `[B, C]` for `input_ids`, `attention_mask` and perhaps `token_type_ids`, `[B, T]`."""


class EncoderDecoder(Protocol):
    """An encoder-decoder with a cache of keys and values, for one batch at a time.

    Attributes:
        vocabulary: V, the number of logits.
        context: How many positions sources and targets have; None: there is no limit.
    """

    vocabulary: int
    context: int | None

    def prefill(self, ids: Ints, mask: Ints, start: Ints) -> Floats:
        """Read the sources `[B, S]` of a new batch, with 0 at pads in `mask`, and the beginning of each target `[B, T]`.

        Returns logits of the next token `[B, V]`: the caller's until the next call.
        """

    def decode(self, tokens: Ints, rows: Ints | None = None) -> Floats:
        """Add a token `[N]` to each sequence; the logits of the next one `[N, V]`, as in `prefill`.

        `rows` `[N]` says which sequences of the call before go on, in this order: several may go on from one. Those of a source
        stay side by side, sources stay in order, and all that are left have as many; one of which none goes on is dropped.
        None: all go on as they are.
        """

    def logits(self, ids: Ints, mask: Ints, targets: Ints) -> Floats:
        """The logits `[B, T, V]` behind each token of targets `[B, T]`, without a cache; `decode` does not go on from here."""


def positions(mask: Ints) -> Ints:
    """Each token's position in its sequence `[B, T]`, counted without pads; 0 at pads."""
    return np.maximum(mask.cumsum(axis=1) - 1, 0)


def physical_cores() -> int:
    """How many cores this process may use; two hardware threads of one core are one, and a container's quota counts."""
    every = os.cpu_count() or 1
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not on Linux
        return every
    siblings = {_read(Path(_TOPOLOGY.format(cpu))) or str(cpu) for cpu in allowed}
    quota, _, period = _read(_QUOTA).partition(" ")  # empty without a control group, or `max 100000`
    limit = math.ceil(int(quota) / int(period)) if quota.isdigit() else every
    return max(1, min(len(siblings), limit))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
