"""Teachers: where the targets of distillation come from."""

from lightgpt2.teachers.base import Targets, Teacher
from lightgpt2.teachers.mixture import Mixture, WeightedTeacher
from lightgpt2.teachers.model import ModelTeacher, PretrainedTeacher

__all__ = ["Mixture", "ModelTeacher", "PretrainedTeacher", "Targets", "Teacher", "WeightedTeacher"]
