"""ModernBERT: rotary positions, windows in most layers, gated neurons, norms before each part."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.families.encoder import Encoder

_ROPES = ("default", "linear", "llama3", "yarn")  # whose angles do not change with the length of the text


class ModernBert(Encoder):
    """ModernBERT; its first block has no norm before its attention."""

    model_types, blocks = ("modernbert",), "layers"
    head_parts = ("classifier", "head")
    heads_narrow, first_differs = False, True
    adapted = ["Wqkv"]  # noqa: RUF012 - declared in `Family`
    axes: ClassVar = {
        r"model\.embeddings\.tok_embeddings": ("vocabulary", "width"),
        r"model\.(embeddings\.norm|layers\.\d+\.(attn|mlp)_norm|final_norm)": ("width",),
        r"model\.layers\.\d+\.attn\.Wqkv": ("query+key+value", "width"),
        r"model\.layers\.\d+\.attn\.Wo": ("width", "context"),
        r"model\.layers\.\d+\.mlp\.Wi": ("ffn+ffn", "width"),
        r"model\.layers\.\d+\.mlp\.Wo": ("width", "ffn"),
        r"head\.dense": ("width", "width"),
        r"head\.norm": ("width",),
        r"classifier": ("class", "width"),
    }

    def activation(self, config: PretrainedConfig) -> str:
        return config.hidden_activation

    def activations(self, config: PretrainedConfig) -> tuple[str, ...]:
        return config.hidden_activation, config.classifier_activation

    def graph(self, writer: Any, model: PreTrainedModel) -> Any:
        base: Any = model.base_model
        kinds = model.config.layer_types
        rotary = {kind: writer.rotary(base.rotary_emb, kind) for kind in dict.fromkeys(kinds)}
        window = {"full_attention": None, "sliding_attention": model.config.sliding_window}
        words = writer.normalize(base.embeddings.norm, writer.words(base.embeddings.tok_embeddings))
        x = writer.tokens(words, model.config.hidden_size)
        for block, kind in zip(base.layers, kinds, strict=True):
            attention, mlp, context, neurons = block.attn, block.mlp, None, None
            if hasattr(attention.Wo, "weight"):
                normal = writer.normalize(block.attn_norm, x) if hasattr(block.attn_norm, "weight") else x
                context = writer.attend(normal, attention.Wqkv, rotary=rotary[kind], window=window[kind])
            x = writer.added(x, context, attention.Wo)
            if hasattr(mlp.Wo, "weight"):
                up, gate = writer.split(writer.project(writer.normalize(block.mlp_norm, x), mlp.Wi), 2)
                neurons = writer.graph.op("Mul", writer.activate(up), gate)
            x = writer.added(x, neurons, mlp.Wo)
        return writer.normalize(base.final_norm, x)

    def pool(self, writer: Any, model: PreTrainedModel, hidden: Any) -> Any:
        head: Any = model.get_submodule("head")
        pooled = writer.mean(hidden) if model.config.classifier_pooling == "mean" else writer.first(hidden)
        return writer.normalize(
            head.norm, writer.activate(writer.whole(pooled, head.dense), model.config.classifier_activation)
        )

    def onnx_problems(self, config: PretrainedConfig) -> Iterator[str]:
        for rope in config.rope_parameters.values():
            if rope["rope_type"] not in _ROPES:
                yield f"rotary positions of type {rope['rope_type']} are not written; use the model's folder"

    def old_settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        whole = [kind == "full_attention" for kind in config["layer_types"]]
        every = next((index for index, each in enumerate(whole) if index and each), len(whole))
        if whole != [index % every == 0 for index in range(len(whole))]:
            every = 0  # with which transformers 4 ends: it knows no other order of layers
        return {**super().old_settings(config), "global_attn_every_n_layers": every}

    def old_rope(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        names = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
        return {old: rope[kind]["rope_theta"] for kind, old in names.items() if kind in rope}
