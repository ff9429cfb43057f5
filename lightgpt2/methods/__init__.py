"""Training methods: `Method`, and presets of what is put together in it."""

from lightgpt2.methods.distill import Distill
from lightgpt2.methods.finetune import FineTune
from lightgpt2.methods.lora import LoRA
from lightgpt2.methods.method import Method
from lightgpt2.methods.movement import MovementPruning
from lightgpt2.methods.optimizer import OptimizerConfig
from lightgpt2.methods.qat import QAT
from lightgpt2.methods.qlora import QLoRA
from lightgpt2.methods.trim import Trim

__all__ = ["QAT", "Distill", "FineTune", "LoRA", "Method", "MovementPruning", "OptimizerConfig", "QLoRA", "Trim"]
