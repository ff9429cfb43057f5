"""What the writers of decoders and of encoders share: how weights are stored, norms, activations, masks."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightgpt2.conversions.onnx.graph import GRAPH, MICROSOFT, OPSET, Graph, Weights
from lightgpt2.conversions.onnx.weights import GROUP, Form, Matrix, Vocabulary, linear
from lightgpt2.errors import Problem
from lightgpt2.models.families import family_of, head, is_tied
from lightgpt2.models.standalone import stored_weights
from lightgpt2.runtime.engines import CONTEXT

_FLOAT, _INT = ir.DataType.FLOAT, ir.DataType.INT64
MASKED = -1e9  # added to the scores of what must not be seen; with infinity, a row that sees nothing would have no sum

# transformers' activations, as operators: (kind, domain, attributes)
ACTIVATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gelu_new": ("FastGelu", MICROSOFT, {}),
    "gelu_pytorch_tanh": ("FastGelu", MICROSOFT, {}),
    "gelu_fast": ("FastGelu", MICROSOFT, {}),
    "gelu": ("Gelu", MICROSOFT, {}),
    "silu": ("QuickGelu", MICROSOFT, {"alpha": 1.0}),
    "relu": ("Relu", "", {}),
    "tanh": ("Tanh", "", {}),
}

Stored = tuple[dict[str, Tensor], stored_weights.Table]  # as `stored_weights.read_stored` gives it


@dataclass(frozen=True)
class Forms:
    """How the weights of a graph are stored."""

    layers: Form = "fp32"  # those of the blocks
    embeddings: Form = "fp32"  # the token embedding and the vocabulary head
    others: Mapping[str, Form] = field(default_factory=dict)  # layers, by name, that are stored in another way
    # Layers, by name, that keep their 4 bits where all others' become 8 to read prompts with; None: all do.
    prefill: list[str] | None = None
    group: int = GROUP  # inputs that share a scale in INT4, if the model does not have its integers yet
    powers: Mapping[str, Tensor] = field(default_factory=dict)  # mean squares of layers' inputs, for rounding to INT4

    def of(self, names: list[str]) -> Form:
        """How layers of the same inputs are stored."""
        return next((self.others[name] for name in names if name in self.others), self.layers)


class ModelWriter(ABC):
    """Writes a model's graph; families write their blocks with its public methods.

    `stored` are the integers in the model's own file: tensors, and what is said about them by name.
    """

    int8: ClassVar[Form]  # how layers are stored in INT8
    int8_vocabulary: ClassVar[Form] = "int8"  # how embedding and vocabulary head are
    layer_forms: ClassVar[tuple[Form, ...]] = ("fp32", "int8", "int4")  # how layers can be stored, but for their inputs
    opset: ClassVar[int] = OPSET  # of the standard

    def __init__(self, graph: Graph, model: PreTrainedModel, forms: Forms, stored: Stored | None = None) -> None:
        self.graph, self.model, self.forms, self.config = graph, model, forms, model.config
        self._names = {id(module): name for name, module in model.named_modules()}
        self._tensors, self._table = stored or ({}, {})
        self._family: Any = family_of(model)

    @classmethod
    def parts(cls) -> "dict[str, type[ModelWriter]]":
        """The writers of a model's graphs, by the names of their files."""
        return {GRAPH: cls}

    @classmethod
    def into(cls, folder: Path, model: PreTrainedModel, forms: Forms, stored: Stored | None = None) -> Weights:
        """Write the graphs and `model.onnx_data` into a folder."""
        with torch.no_grad(), Weights(folder) as weights:
            for name, part in cls.parts().items():
                graph = Graph(folder, weights, part.opset, name)
                part(graph, model, forms, stored).write()
                graph.save()
        return weights

    @classmethod
    @abstractmethod
    def problems(cls, config: PretrainedConfig) -> Iterator[Problem]:
        """Why a model of this configuration has no graph; keys as for `Conversion.problems`."""

    @abstractmethod
    def write(self) -> None:
        """Write inputs, nodes and outputs."""

    def _inputs(self, length: str = "sequence") -> tuple[ir.Value, ir.Value]:
        """The tokens, and the mask of what is no pad."""
        ids = self.graph.input("input_ids", _INT, ["batch", "sequence"])
        return ids, self.graph.input("attention_mask", _INT, ["batch", length])

    def _classify(self, pooled: ir.Value) -> None:
        """The logits of what a classification head reads of each text `[B, D]`, as the output."""
        self.graph.metadata[CONTEXT] = str(self._family.positions(self.config))
        module = self._family.classifier(self.model)
        self.graph.output("logits", self.whole(pooled, module), _FLOAT, ["batch", len(module.weight)])

    def whole(self, x: ir.Value, module: Any) -> ir.Value:
        """`x` through a linear layer in FP32."""
        (name,), matrix, bias = self._joined([module])
        return linear(self.graph, name, x, matrix, "fp32", bias)

    def _parameter(self, module: Any, name: str) -> ir.Value:
        return self.graph.weight(getattr(module, name).detach().numpy(), f"{self._names[id(module)]}.{name}")

    def normalize(self, module: Any, x: ir.Value) -> ir.Value:
        """`x` through a layer norm."""
        # ONNX Runtime 1.32 dies of a normalization without a bias.
        gamma, beta = (self._norm_part(module, *part) for part in (("weight", 1), ("bias", 0)))
        return self.graph.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=module.eps)

    def _norm_part(self, module: Any, name: str, missing: float) -> ir.Value:
        """A norm's weight or bias; a constant if it has none."""
        if getattr(module, name) is not None:
            return self._parameter(module, name)
        width = module.normalized_shape[0]
        return self.graph.constant(np.full(width, missing, np.float32), f"norms_{name}_{width}")

    def normalize_rms(self, module: Any, x: ir.Value) -> ir.Value:
        """`x` through a norm without mean and bias."""
        return self.graph.rms_norm(x, *self._rms_parts(module))

    def _rms_parts(self, module: Any) -> tuple[ir.Value, float]:
        gamma, epsilon = self._family.norm(module)
        return self.graph.weight(gamma.detach().numpy(), f"{self._names[id(module)]}.weight"), epsilon

    def _embedding(self) -> Vocabulary:
        """The token embedding, which is the vocabulary head too where the two are tied."""
        module = self.model.get_input_embeddings()
        return self._vocabulary(module, self.model.get_output_embeddings() if is_tied(self.model) else module)

    def _vocabulary(self, module: Any, user: Any) -> Vocabulary:
        """A table `[V, D]`, rounded for the inputs of the layer that multiplies with it."""
        matrix = self._matrix(module, self._names[id(user)])
        return Vocabulary(self.graph, self._names[id(module)], matrix, self.forms.embeddings, self.forms.group)

    def _logits(self, tokens: Vocabulary, hidden: ir.Value) -> ir.Value:
        """The logits `[B, S, V]` of final hidden states `[B, S, D]`, with the head's scale and bias."""
        graph, (_, bias, scale) = self.graph, head(self.model)
        logits = tokens.scores(hidden)
        if scale != 1:
            logits = graph.op("Mul", logits, graph.constant(np.float32(scale), "logit_scale"))
        if bias is not None:
            logits = graph.op("Add", logits, graph.weight(bias.detach().numpy(), "logit_bias"))
        return logits

    def _activate(self, x: ir.Value, name: str) -> ir.Value:
        kind, domain, settings = ACTIVATIONS[name]
        return self.graph.op(kind, x, domain=domain, **settings)

    def _joined(self, modules: Sequence[Any]) -> tuple[list[str], Matrix, Tensor | None]:
        """Of linear layers of the same inputs: their names, and their weights and biases below each other."""
        biases = [module.bias.detach() for module in modules if module.bias is not None]
        matrix = Matrix.joined([self._matrix(module) for module in modules])
        return [self._names[id(module)] for module in modules], matrix, torch.cat(biases) if biases else None

    def _matrix(self, module: Any, user: str = "") -> Matrix:
        """A layer's weight; `user` names the layer that multiplies with it, if that is another one."""
        layer = self._names[id(module)]
        name = f"{layer}.weight"
        weight: Tensor = module.weight.detach()
        rows = weight.T if isinstance(module, Conv1D) else weight
        if about := self._table.get(name):
            whole = stored_weights.whole(self._tensors[name], about["bits"], about["group"])
            return Matrix(whole, self._tensors[f"{name}_scale"], None, rows.shape[1])
        return Matrix.of(rows, self.forms.powers.get(user or layer))

    def _hidden(self, mask: ir.Value) -> ir.Value:
        """What is added to the scores of keys, `[B, 1, 1, S]`."""
        graph = self.graph
        hidden = graph.op("Sub", graph.constant(np.float32(1), "seen"), graph.op("Cast", mask, to=_FLOAT))
        row = graph.op("Mul", hidden, graph.constant(np.float32(MASKED), "masked"))
        return graph.op("Unsqueeze", row, graph.constant([1, 2], "heads_and_queries"))

    def _for_each_query(self, row: ir.Value, length: ir.Value) -> ir.Value:
        one = self.graph.constant([1], "one")
        return self.graph.op("Expand", row, self.graph.op("Concat", one, one, length, one, axis=0))

    def rotary(self, module: Any, kind: str | None = None) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines of the angles at every position, `[P, size / 2]`, as the model's own module gives them.

        `kind` names the kind of layer, in a model whose kinds of layers have different angles.
        """
        places = torch.arange(self._family.positions(self.config) or 0)[None]
        tables = module(torch.zeros(1), places, *([kind] if kind else []))
        size, name = tables[0].shape[-1] // 2, f"rotary.{kind}" if kind else "rotary"
        cosines, sines = (np.ascontiguousarray(table[0, :, :size].numpy()) for table in tables)
        return self.graph.weight(cosines, f"{name}.cosines"), self.graph.weight(sines, f"{name}.sines")
