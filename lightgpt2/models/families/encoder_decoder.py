"""Encoder-decoders: a stack that reads the source, and one that writes the target and attends to what was read."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.architectures import SEQ2SEQ
from lightgpt2.models.families.base import Family, Head

_STACKS = ("encoder", "decoder")


class EncoderDecoder(Family):
    """An encoder-decoder; each subclass says where its modules are.

    `blocks` is the path of the list of blocks, the same in both stacks. The roles of cross-attention are `cross_query`,
    `cross_key`, `cross_value` and `cross_context`.
    """

    auto_classes = (SEQ2SEQ,)
    text_inputs = ("input_ids", "decoder_input_ids")
    model_inputs = ("input_ids", "attention_mask", "decoder_input_ids")
    layer_counts: ClassVar[Mapping[str, str]]  # the configuration key of each stack's number of blocks

    def stacks(self, model: PreTrainedModel) -> dict[str, nn.ModuleList]:
        return {stack: _part(model, stack).get_submodule(self.blocks) for stack in _STACKS}  # type: ignore[misc]

    def depths(self, config: PretrainedConfig) -> dict[str, int]:
        return {stack: int(getattr(config, self.layer_counts[stack])) for stack in _STACKS}

    def attentions(self, config: PretrainedConfig) -> dict[str, int]:
        depths = self.depths(config)
        return {**depths, "decoder.cross": depths["decoder"]}

    def keep_layers(self, config: PretrainedConfig, layers: Mapping[str, Sequence[int]]) -> None:
        for stack, chosen in layers.items():
            setattr(config, self.layer_counts[stack], len(chosen))

    def special_tokens(self, tokenizer: Any) -> dict[str, int | None]:
        started = {"pad_token_id": tokenizer.pad_token_id, "decoder_start_token_id": tokenizer.eos_token_id}
        return super().special_tokens(tokenizer) | started

    def called(self, model: PreTrainedModel) -> list[nn.Module]:
        return [_part(model, stack) for stack in _STACKS]

    def final_states(self, model: PreTrainedModel, **inputs: Any) -> Tensor:
        """What the head reads of each target token `[B, T, D]`."""
        encoder, decoder = self.called(model)
        mask, targets = inputs.get("attention_mask"), inputs["decoder_input_ids"]
        read = encoder(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
        seen = {"encoder_hidden_states": read, "encoder_attention_mask": mask}
        found: Tensor = decoder(input_ids=targets, **seen, use_cache=False).last_hidden_state
        return found

    def head(self, model: PreTrainedModel) -> Head:
        """The vocabulary head with the bias that lies beside it, if there is one."""
        weight, bias, scale = super().head(model)
        added: Tensor | None = getattr(model, "final_logits_bias", None)
        if added is not None:
            bias = added[0] if bias is None else bias + added[0]
        return Head(weight, bias, scale)

    def graph(self, writer: Any, model: PreTrainedModel) -> Any:
        """Write the graph of one of the two stacks with a writer of `conversions.onnx.encoder_decoder`."""
        return self.stack_graph(writer, _part(model, writer.stack))

    @abstractmethod
    def stack_graph(self, writer: Any, stack: Any) -> Any:
        """Write the blocks of a stack; returns the final hidden state."""


def _part(model: PreTrainedModel, stack: str) -> nn.Module:
    """The encoder or the decoder of a model."""
    found: nn.Module = model.get_encoder() if stack == "encoder" else model.get_decoder()
    return found
