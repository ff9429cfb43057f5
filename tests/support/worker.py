"""A process of an arm that measures nothing and imports nothing that takes long: `python -m tests.support.worker`."""

from lightgpt2.measure.child import serve

_LOADED = {
    "sizes": {"weights_mb": 1.0, "load_mb": 1.0, "load_seconds": 0.1},
    "machine": {"name": "a machine", "device": "cpu", "threads": 1, "versions": {"torch": "2"}},
}
_ROUND = {
    "forward 1x16": [1.0, 2.0],
    "peaks": {"peak_memory_mb": 2.0, "peak_above_start_mb": 1.0, "peak_reserved_mb": None},
}

if __name__ == "__main__":
    serve({"load": lambda: _LOADED, "round": lambda: _ROUND, "profile": lambda trace: {}})
