"""What is computed a second time is what it was the first time, dropout included, and is not kept meanwhile."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lightgpt2.methods import Distill, FineTune, LoRA
from lightgpt2.methods.method import Method
from tests.support.mistakes import Bench
from tests.support.models import write_model

_LORA = {"target_modules": "all-linear", "dropout": 0.2}
SETTINGS: dict[str, tuple[type[Method], dict[str, Any]]] = {
    "distill": (Distill, {"teacher": "teacher", "layers": 2}),
    "finetune": (FineTune, {"model": "llama"}),
    "lora": (LoRA, {"model": "teacher", "lora": _LORA}),
    "lora-llama": (LoRA, {"model": "llama", "lora": _LORA}),
}


@pytest.mark.parametrize(("method", "init"), SETTINGS.values(), ids=SETTINGS)
def test_the_same_weights_from_fewer_kept_activations(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, method: type[Method], init: dict[str, Any]
) -> None:
    write_model(Path("llama"), "llama", attention_dropout=0.1)
    kept = dict[int, int]()
    losses = method.losses

    def counted(self: Method, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            return losses(self, batch)

    monkeypatch.setattr(method, "losses", counted)
    weights, sizes = list[bytes](), list[int]()
    for checkpointing in (False, True):
        model = {"class_path": f"lightgpt2.methods.{method.__name__}", "init_args": dict(init)}
        bench.configure({"model": model, "model.activation_checkpointing": checkpointing, "trainer.max_steps": 2})
        kept.clear()
        bench.succeed("fit")
        weights.append(Path("checkpoints/r/model/model.safetensors").read_bytes())
        sizes.append(sum(kept.values()))
        shutil.rmtree("checkpoints/r")
    assert weights[0] == weights[1]
    assert sizes[1] < 0.5 * sizes[0]
