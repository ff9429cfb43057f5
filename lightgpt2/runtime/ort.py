"""ONNX Runtime, with what must be set before its import, and the sessions of this project."""

import contextlib
import ctypes
import functools
import os
from pathlib import Path

import numpy as np

# It would keep a device id and a database of events under ~/.cache, to be sent.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Its flash attention took 1.4 to 1.8 times as long as the plain one with 128 to 1024 tokens (version 1.32, on a processor).
os.environ.setdefault("ORT_GQA_DISABLE_FLASH_ATTENTION", "1")

import onnxruntime as runtime

from lightgpt2.errors import UserError

__all__ = ["clips_products", "line_of", "load_session", "open_session", "runtime", "session_options"]

_CPU = ["CPUExecutionProvider"]
_MADV_PAGEOUT = 21  # of Linux, from 5.4 on

# An ONNX model of one node: `y [1, 1] = MatMulInteger(a [1, 4] uint8, b [4, 1] int8)`.
_PROBE = (
    b'\x08\x05:`\n\x18\n\x01a\n\x01b\x12\x01y"\rMatMulInteger\x12\x05probeZ\x13\n\x01a\x12\x0e\n\x0c\x08\x02\x12\x08\n'
    b"\x02\x08\x01\n\x02\x08\x04Z\x13\n\x01b\x12\x0e\n\x0c\x08\x03\x12\x08\n\x02\x08\x04\n\x02\x08\x01b\x13\n\x01y\x12"
    b"\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x01\n\x02\x08\x01B\x04\n\x00\x10\n"
)


@functools.cache
def clips_products() -> bool:
    """True if this processor clips the sum of two products of 8-bit numbers to 16 bits, as x86 without VNNI does.

    ONNX Runtime's kernels for unsigned inputs with signed weights (`DynamicQuantizeMatMul`, `QGemm`) are built on such
    sums (vpmaddubsw): two inputs of 255 with two weights of 127 lose half. `MatMulNBits` is exact everywhere.
    """
    probe = runtime.InferenceSession(_PROBE, providers=_CPU)
    (found,) = probe.run(None, {"a": np.full((1, 4), 255, np.uint8), "b": np.full((4, 1), 127, np.int8)})
    return bool(found[0, 0] != 4 * 255 * 127)


def session_options(threads: int) -> runtime.SessionOptions:
    """The options of a session whose products are exact on every processor."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # that a cache is longer than what is used of it is no news
    if clips_products():
        # Weights become unsigned at loading, for kernels that add in 32 bits: exact, in 1.2 to 1.8 times the time of the
        # others. Not unless it is needed: ONNX Runtime does it on every x86 with AVX2, and VNNI would be left unused.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def open_session(graph: Path, threads: int, profile: str | None = None) -> runtime.InferenceSession:
    """Load a graph to be run on the processor; `profile` is the prefix of its profile's file (None: no profile)."""
    options = session_options(threads)
    # Its threads would look for work for 33 ms after each run, on the cores that another session may want by then: with two
    # sessions in turn, prompts took up to 2.5 times as long and the first ten tokens up to twice.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    session = runtime.InferenceSession(str(graph), options, providers=_CPU)
    with contextlib.suppress(OSError):  # where there is no such file: not on Linux, or not in every sandbox
        _page_out(f"{graph.parent.resolve()}{os.sep}")
    return session


def load_session(graph: Path, threads: int, name: str, profile: str | None = None) -> runtime.InferenceSession:
    """As `open_session`; a `UserError` under `name` if the graph cannot be loaded."""
    try:
        return open_session(graph, threads, profile)
    except Exception as error:  # ONNX Runtime has a class for each error code, and no common base
        raise UserError(f"{name}: {graph} could not be loaded ({line_of(error)}); export it again") from error


def line_of(error: Exception) -> str:
    """The beginning of what an error says, in one line."""
    return " ".join(str(error).split())[:200]


def _page_out(folder: str) -> None:
    """Return the memory of mapped files in a folder to the system.

    ONNX Runtime keeps the scales mapped that it has packed together with their integers, and does not read them again. What is
    read again comes from the file again. Nothing can be lost, even if a mapping is gone by then and another is in its place.
    """
    mappings = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    system = ctypes.CDLL(None)
    for line in mappings.split("\n"):
        addresses, *rest = line.split(maxsplit=5) or [""]  # access, offset, device, inode and, of a file, its path
        if len(rest) == 5 and rest[4].startswith(folder):
            first, last = (int(address, 16) for address in addresses.split("-"))
            system.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_PAGEOUT)
