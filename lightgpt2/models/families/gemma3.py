"""Gemma 3, text models: scaled embeddings, norms of `1 + weight` before and after layers, two kinds of attention."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.families.llama import Llama

_PERIOD = 6  # llama.cpp: all layers but every sixth one have the window


class Gemma3(Llama):
    """Gemma 3; most layers see a window of tokens, and turn queries and keys faster than those that see all."""

    model_types, gguf = ("gemma3_text",), "gemma3"
    axes: ClassVar = {r"model\.layers\.\d+\.self_attn\.[qk]_norm": ("channel",), **Llama.axes}

    def config_problems(self, config: PretrainedConfig) -> Iterator[str]:
        if config.use_bidirectional_attention:
            yield "a Gemma 3 that sees the tokens behind too is no language model; use one with causal attention"
        if config.final_logit_softcapping is not None:
            yield "a Gemma 3 that caps its logits is not supported; use one without final_logit_softcapping"

    def rope(self, config: PretrainedConfig) -> dict[str, Any]:
        return config.rope_parameters["full_attention"]

    def activation(self, config: PretrainedConfig) -> str:
        return config.hidden_activation

    def norm(self, module: Any) -> tuple[Tensor, float]:
        return 1 + module.weight, module.eps

    def attended(self, attention: Any) -> dict[str, Any]:
        return {"norms": (attention.q_norm, attention.k_norm), "window": attention.sliding_window}

    def narrowed(self, model: PreTrainedModel, width: int) -> None:
        """Keep the scale of the embeddings, which Gemma multiplies by the square root of the width.

        The stored embeddings take the ratio of the old root to the new one. A tied head would take it too: the last norm undoes
        it there.
        """
        ratio = (width / model.config.hidden_size) ** 0.5
        if ratio != 1:
            embedding, gain = model.get_input_embeddings().weight, model.base_model.get_submodule("norm").weight
            embedding.mul_(ratio)
            if model.get_output_embeddings().weight is embedding:
                gain.copy_((1 + gain) / ratio - 1)

    def graph(self, writer: Any, model: PreTrainedModel) -> Any:
        base: Any = model.base_model
        kinds = model.config.layer_types
        rotary = {kind: writer.rotary(base.rotary_emb, kind) for kind in dict.fromkeys(kinds)}
        writer.scale(float(base.embed_tokens.embed_scale))
        for layer, block in enumerate(base.layers):
            x = writer.rms_norm(block.input_layernorm)
            context = self._context(writer, layer, block.self_attn, x, rotary[kinds[layer]])
            writer.add(context, block.self_attn.o_proj, block.post_attention_layernorm)
            x = writer.rms_norm(block.pre_feedforward_layernorm)
            writer.add(self._neurons(writer, block.mlp, x), block.mlp.down_proj, block.post_feedforward_layernorm)
        return writer.rms_norm(base.norm)

    def old_rope(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        local = {"rope_local_base_freq": rope["sliding_attention"]["rope_theta"]} if "sliding_attention" in rope else {}
        return super().old_rope(rope["full_attention"]) | local

    def gguf_problems(self, config: PretrainedConfig) -> Iterator[str]:
        windows, score = [kind == "sliding_attention" for kind in config.layer_types], self._score(config)
        local, whole = config.rope_parameters["sliding_attention"], self.rope(config)
        if config.hidden_activation != "gelu_pytorch_tanh":
            yield f"llama.cpp computes Gemma 3 with gelu_pytorch_tanh, not {config.hidden_activation}; export to onnx"
        if config.attention_bias:
            yield "llama.cpp's Gemma 3 has no biases; export to onnx"
        if config.query_pre_attn_scalar != score:
            yield f"llama.cpp divides attention scores by the root of {score} here; export to onnx"
        if any(windows) and windows != [bool((layer + 1) % _PERIOD) for layer in range(len(windows))]:
            yield "llama.cpp's Gemma 3 has a window in all layers but every sixth; export to onnx"
        if any(windows) and (local["rope_type"], local["rope_theta"]) != ("default", 10_000):
            yield "llama.cpp's Gemma 3 turns by a base of 10000 in layers with a window; export to onnx"
        if whole["rope_type"] not in ("default", "linear"):
            yield f"rotary positions of type {whole['rope_type']} are not written for Gemma 3; export to onnx"

    def gguf_metadata(self, config: PretrainedConfig) -> dict[str, Any]:
        return super().gguf_metadata(config) | (
            {"sliding_window": config.sliding_window} if "sliding_attention" in config.layer_types else {}
        )

    def gguf_stored(self, name: str, value: Tensor, config: PretrainedConfig) -> Tensor:
        return 1 + value if name.endswith("norm.weight") else value

    def gguf_tensors(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        yield from ()

    def correct_gguf(self, config: PretrainedConfig) -> None:
        config.query_pre_attn_scalar = self._score(config)

    def _score(self, config: PretrainedConfig) -> int:
        """What llama.cpp divides attention scores by the root of; 62 layers are the model of 27B to it."""
        shape = self.shape(config)
        return shape.width // shape.heads if config.num_hidden_layers == 62 else shape.head
