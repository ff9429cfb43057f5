"""ONNX Runtime, with what has to be said before it is imported, and how this project opens its graphs."""

import contextlib
import ctypes
import os
from pathlib import Path

# It would keep a device id and a database of events under ~/.cache, to be sent.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Its flash attention took 1.4 to 1.8 times as long as the plain one with 128 to 1024 tokens (version 1.32, on a processor).
os.environ.setdefault("ORT_GQA_DISABLE_FLASH_ATTENTION", "1")

import onnxruntime as runtime

__all__ = ["open_session", "runtime"]

_MADV_PAGEOUT = 21  # of Linux, from 5.4 on


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
    # Its threads would look for work for 33 ms after each run, on the cores that another session may want by then: with two
    # sessions in turn, prompts took up to 2.5 times as long and the first ten tokens up to twice.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    session = runtime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    with contextlib.suppress(OSError):  # where there is no such file: not on Linux, or not in every sandbox
        _page_out(f"{graph.parent.resolve()}{os.sep}")
    return session


def _page_out(folder: str) -> None:
    """Hands the memory that mappings of a folder's files take back to the system.

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
