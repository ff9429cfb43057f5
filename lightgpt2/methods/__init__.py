"""Training methods: one algorithm a file, each a LightningModule."""

from lightgpt2.methods.distill import Distill
from lightgpt2.methods.finetune import FineTune
from lightgpt2.methods.lora import LoRA

__all__ = ["Distill", "FineTune", "LoRA"]
