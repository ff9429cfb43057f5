"""Encoders: every token sees the whole text, and a head classifies it by what stands for all of it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.architectures import CLASSIFICATION
from lightgpt2.models.families.base import Family


class Encoder(Family):
    """An encoder; each subclass says where its modules are.

    `parts` are the paths of a block's modules: query, key, value, attended, first norm, up, down, second norm.
    """

    auto_classes = (CLASSIFICATION,)
    stack = "encoder"
    heads_share_width = heads_narrow = pads_behind = True
    parts: ClassVar[tuple[str, ...]]
    pooler: ClassVar[str]  # the layer between the first token and the classifier
    pooled: ClassVar[str]  # its activation
    counts_tokens: ClassVar[bool] = False  # whether positions count tokens, from behind the padding token's id

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

    def activations(self, config: PretrainedConfig) -> tuple[str, ...]:
        """The activations that a graph needs, by transformers' names."""
        return self.activation(config), self.pooled

    def block_parts(self, model: PreTrainedModel) -> list[list[Any]]:
        """The modules of each block that `parts` names; None for those that a block without heads or neurons lacks."""
        found = []
        for block in self.stacks(model)[self.stack]:
            modules = dict(block.named_modules())
            found.append([modules.get(path) for path in self.parts])
        return found

    def graph(self, writer: Any, model: PreTrainedModel) -> Any:
        """Write norms behind each part, as BERT has them."""
        parts: Any = model.base_model.embeddings
        places = writer.positions(parts.position_embeddings, model.config.pad_token_id if self.counts_tokens else None)
        x = writer.graph.op("Add", writer.words(parts.word_embeddings), places)
        if hasattr(parts, "token_type_embeddings"):
            x = writer.graph.op("Add", x, writer.segments(parts.token_type_embeddings))
        x = writer.tokens(writer.normalize(parts.LayerNorm, x), model.config.hidden_size)
        for query, key, value, attended, first_norm, up, down, second_norm in self.block_parts(model):
            context = writer.attend(x, query, key, value) if query else None
            x = writer.normalize(first_norm, writer.added(x, context, attended))
            neurons = writer.activate(writer.project(x, up)) if hasattr(up, "weight") else None
            x = writer.normalize(second_norm, writer.added(x, neurons, down))
        return x

    def pool(self, writer: Any, model: PreTrainedModel, hidden: Any) -> Any:
        """Write what the classifier reads of the final hidden states."""
        return writer.activate(writer.whole(writer.first(hidden), model.get_submodule(self.pooler)), self.pooled)

    def positions(self, config: PretrainedConfig) -> int | None:
        return config.max_position_embeddings
