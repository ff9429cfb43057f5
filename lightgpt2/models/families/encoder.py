"""Encoders: every token sees the whole text, and a head classifies it by what stands for all of it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.families.base import CLASSIFICATION, Family


class Encoder(Family):
    """An encoder; each subclass says where its modules are.

    `parts` are the paths of a block's modules: query, key, value, attended, first norm, up, down, second norm.
    """

    auto_classes = (CLASSIFICATION,)
    stack = "encoder"
    heads_share_width = heads_narrow = True
    parts: ClassVar[tuple[str, ...]]
    pooler: ClassVar[str]  # the layer between the first token and the classifier
    pooled: ClassVar[str]  # its activation

    def classifier(self, model: PreTrainedModel) -> nn.Module:
        return model.get_submodule("classifier")

    def pooled_states(self, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
        """What the classifier reads, caught where it reads it: families pool in their own ways."""
        caught: list[Tensor] = []
        hook = self.classifier(model).register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            model(**{name: batch[name] for name in self.model_inputs if name in batch})
        finally:
            hook.remove()
        return caught[0]

    def block_parts(self, model: PreTrainedModel) -> list[list[nn.Module]]:
        """The modules of each block that `parts` names."""
        return [[block.get_submodule(path) for path in self.parts] for block in self.stacks(model)[self.stack]]

    def graph(self, writer: Any, model: PreTrainedModel) -> Any:
        raise NotImplementedError("conversions.onnx.encoder writes encoders")

    def positions(self, config: PretrainedConfig) -> int | None:
        return config.max_position_embeddings
