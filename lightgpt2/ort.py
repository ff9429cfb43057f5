"""ONNX Runtime, with what has to be said before it is imported, and how this project opens its graphs."""

import contextlib
import ctypes
import mmap
import os
from pathlib import Path

# It would keep a device id and a database of events under ~/.cache, to be sent.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Its flash attention took 1.4 to 1.8 times as long as the plain one with 128 to 1024 tokens (version 1.32, on a processor).
os.environ.setdefault("ORT_GQA_DISABLE_FLASH_ATTENTION", "1")

import onnxruntime as runtime

__all__ = ["open_session", "runtime"]


def open_session(graph: Path, threads: int, profile: str | None = None) -> runtime.InferenceSession:
    """Loads a graph to be run on the processor.

    Args:
        graph: The `.onnx` file.
        threads: Threads that compute.
        profile: What the file of a profile is called, up to its number; None: nothing is profiled.
    """
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # that a cache is longer than what is used of it is no news
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    session = runtime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    with contextlib.suppress(OSError):  # where there is no such file: not on Linux, or not in every sandbox
        _forget_pages(f"{graph.parent.resolve()}{os.sep}")
    return session


def _forget_pages(folder: str) -> None:
    """Lets go of the memory that mappings of a folder's files take.

    ONNX Runtime keeps the scales mapped that it has packed together with their integers, and does not read them again. What is
    read again comes from the file again; a mapping that was written to (it has pages of no file) is left alone.
    """
    mappings = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    system = ctypes.CDLL(None)
    first, last = 0, 0
    for line in mappings.splitlines():
        key, *values = line.split(maxsplit=5)
        if not key.endswith(":"):  # a mapping: addresses, access, offset, device, inode and, of a file, its path
            ours = len(values) == 5 and values[4].startswith(folder)
            first, last = (int(address, 16) for address in key.split("-")) if ours else (0, 0)
        elif key == "Anonymous:" and values[0] == "0" and last:
            system.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)
