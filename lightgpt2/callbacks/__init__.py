"""One job a file. A configuration names these under `trainer.callbacks`; the others belong to every run."""

from lightgpt2.callbacks.base import RunCallback
from lightgpt2.callbacks.benchmark import InferenceBenchmark
from lightgpt2.callbacks.convert import Convert
from lightgpt2.callbacks.export import Export
from lightgpt2.callbacks.generation import GenerationCheck
from lightgpt2.callbacks.packing import PackedArtefact
from lightgpt2.callbacks.pruning import GlobalL1Pruning, PruningCallback
from lightgpt2.callbacks.python import run_callbacks
from lightgpt2.callbacks.quantization import PostTrainingQuantization
from lightgpt2.callbacks.report import Report
from lightgpt2.callbacks.sweep import SparsitySweep

__all__ = [
    "Convert",
    "Export",
    "GenerationCheck",
    "GlobalL1Pruning",
    "InferenceBenchmark",
    "PackedArtefact",
    "PostTrainingQuantization",
    "PruningCallback",
    "Report",
    "RunCallback",
    "SparsitySweep",
    "run_callbacks",
]
