"""What is computed a second time is what it was the first time, dropout included, and is not kept meanwhile."""

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lightgpt2.adaptations import Adaptation, FakeQuantize, Lora, LoraAdapters
from lightgpt2.functional.schedules import Progress
from lightgpt2.methods import Method
from lightgpt2.objectives import CrossEntropy, Distillation, DistillLoss, Objective
from lightgpt2.starts import Pretrained
from lightgpt2.teachers import ModelTeacher
from tests.support.models import make_model

_IDS = torch.randint(300, (4, 33), generator=torch.Generator().manual_seed(0))
_BATCH = {"input_ids": _IDS[:, :-1], "labels": _IDS[:, 1:]}


@pytest.mark.parametrize("name", ["all weights", "distilled", "adapters", "rounded"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_same_gradients_from_fewer_kept_activations(family: str, name: str) -> None:
    dropout = {"attention_dropout": 0.1} if family == "llama" else {}
    gradients, sizes = list[list[Tensor]](), list[int]()
    for checkpointing in (False, True):
        parts: dict[str, list[Adaptation]] = {
            "adapters": [Lora(LoraAdapters(dropout=0.2, target_modules="all-linear"))],
            "rounded": [FakeQuantize()],
        }
        teacher = ModelTeacher(make_model(family, seed=1), "teacher")
        objective: Objective = Distillation(teacher, DistillLoss()) if name == "distilled" else CrossEntropy()
        method = Method(Pretrained("unused"), objective, parts.get(name, []))
        method.model = make_model(family, **dropout)
        torch.manual_seed(1)
        method.assemble(total_steps=10)
        if checkpointing:
            method.model.activation_checkpointing_enable()
        weights, kept = {each.untyped_storage().data_ptr() for each in method.parameters()}, dict[int, int]()

        def keep(tensor: Tensor, weights: set[int] = weights, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            torch.manual_seed(2)
            loss, _ = method.objective(method.model, _BATCH, Progress(0, 10))
        loss.backward()
        gradients.append([each.grad for each in method.parameters() if each.grad is not None])
        sizes.append(sum(kept.values()))
    assert len(gradients[0]) > 8
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert sizes[1] < 0.7 * sizes[0]
