"""Starts: where the model that is trained comes from."""

from lightgpt2.starts.base import Start
from lightgpt2.starts.chosen_layers import ChosenLayers
from lightgpt2.starts.fresh import Fresh
from lightgpt2.starts.pretrained import Pretrained
from lightgpt2.starts.trimmed import Trimmed

__all__ = ["ChosenLayers", "Fresh", "Pretrained", "Start", "Trimmed"]
