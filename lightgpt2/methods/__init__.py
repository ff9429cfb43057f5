"""Training methods: one algorithm a file, each a LightningModule."""

from lightgpt2.methods.distill import Distill
from lightgpt2.methods.finetune import FineTune
from lightgpt2.methods.lora import LoRA
from lightgpt2.methods.movement import MovementPruning
from lightgpt2.methods.qat import QAT
from lightgpt2.methods.qlora import QLoRA
from lightgpt2.methods.trim import Trim

__all__ = ["QAT", "Distill", "FineTune", "LoRA", "MovementPruning", "QLoRA", "Trim"]
