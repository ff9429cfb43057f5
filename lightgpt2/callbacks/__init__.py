"""One job a file. A configuration names these under `trainer.callbacks`; the others belong to every run."""

from lightgpt2.callbacks.pruning import GlobalL1Pruning
from lightgpt2.callbacks.quantization import PostTrainingQuantization

__all__ = ["GlobalL1Pruning", "PostTrainingQuantization"]
