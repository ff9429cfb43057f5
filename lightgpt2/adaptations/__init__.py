"""Adaptations: what of a model is trained, how, and how it is saved."""

from lightgpt2.adaptations.base import Adaptation, Context, Result
from lightgpt2.adaptations.fake_quantize import FakeQuantize
from lightgpt2.adaptations.lora import Lora, LoraAdapters
from lightgpt2.adaptations.masks import HeldMasks
from lightgpt2.adaptations.movement_gates import MovementGates

__all__ = ["Adaptation", "Context", "FakeQuantize", "HeldMasks", "Lora", "LoraAdapters", "MovementGates", "Result"]
