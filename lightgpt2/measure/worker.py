"""The process of one arm: `python -m lightgpt2.measure.worker`. Between two requests it takes no time from the others."""

import logging
from collections.abc import Sequence
from typing import Any

import transformers

from lightgpt2.measure.arms import GRAPH, Arm
from lightgpt2.measure.base import Worker
from lightgpt2.measure.benchmark import machine
from lightgpt2.measure.child import serve
from lightgpt2.models.workloads import Workload


def worker_of(arm: Arm, workloads: Sequence[Workload], device: str) -> Worker:
    """What runs an arm; each imports only its own libraries, whose memory the other arms do not pay."""
    if arm.attention == GRAPH:
        from lightgpt2.measure.onnx_worker import OnnxWorker

        return OnnxWorker(arm, workloads, device)
    from lightgpt2.measure.torch_worker import TorchWorker

    return TorchWorker(arm, workloads, device)


def main() -> None:
    """Answer `load`, then `round` and `profile`."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would write a line in every layer of every pass
    loaded: list[Worker] = []

    def load(arm: Arm, workloads: Sequence[Workload], device: str) -> dict[str, Any]:
        loaded.append(worker_of(arm, workloads, device))
        return {"sizes": loaded[0].load(), "machine": machine(device)}

    serve({"load": load, "round": lambda: loaded[0].round(), "profile": lambda trace: loaded[0].profile(trace)})


if __name__ == "__main__":
    main()
