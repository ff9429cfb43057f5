"""Objectives: what is minimized."""

from lightgpt2.objectives.base import Binding, Objective
from lightgpt2.objectives.cross_entropy import CrossEntropy
from lightgpt2.objectives.distillation import Distillation, DistillLoss

__all__ = ["Binding", "CrossEntropy", "DistillLoss", "Distillation", "Objective"]
