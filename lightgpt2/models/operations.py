"""The kinds of operations that a ledger records: one registry for the ledger, the replay of shapes and the report.

Imports nothing heavy: the report reads it without torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lightgpt2.errors import UserError

Operation = dict[str, Any]
Zeros = Literal["", "hold", "merge"]
Conversion = Literal["", "quantized", "packed", "exported"]


@dataclass(frozen=True)
class OperationKind:
    """What has to be known of a kind of operation.

    An operation of a kind that another package defines carries these facts in its record, so that it is understood where
    that package is not imported.
    """

    name: str  # the value of `op` in records
    changes_shape: bool = False  # it changes the model's shape, and is replayed by `models.surgery`
    changes_start: bool = (
        False  # the model before the stage's first step is another than the one that the stage was given
    )
    zeros: Zeros = ""  # `hold`: weights at zero stay so in later stages; `merge`: pruned adapters end
    # What the copy of a model is that it wrote, or a function of the operation; empty for a stage's work.
    conversion: Conversion | Callable[[Operation], Conversion] = ""
    # What it did, as a clause: "80.0 % of the linear weights pruned (l1)".
    describe: Callable[[Operation], str] = lambda operation: str(operation["op"])

    def record(self, **values: Any) -> Operation:
        """An operation of this kind, as a ledger keeps it."""
        operation = {"op": self.name, **values}
        if self.name in KINDS:
            return operation
        facts = {"changes_shape": self.changes_shape, "changes_start": self.changes_start, "zeros": self.zeros}
        said = {"conversion": self.converted(operation), "description": self.describe(operation)}
        return {**operation, "kind": {**facts, **said}}

    def converted(self, operation: Operation) -> Conversion:
        """What the copy is that an operation wrote; empty where it is part of a stage."""
        return self.conversion(operation) if callable(self.conversion) else self.conversion


_ROUNDED = ("int8", "int4", "Q8_0", "Q4_0")


def _export_kind(operation: Operation) -> Conversion:
    """Weights that were trained as integers are not rounded once more."""
    rounds = operation.get("layers", operation.get("type")) in _ROUNDED and operation.get("scales") != "trained"
    return "quantized" if rounds else "exported"


def _describe_export(operation: Operation) -> str:
    layers, embeddings = operation.get("layers"), operation.get("embeddings")
    text = "exported as " + (f"ONNX {layers.upper()}" if layers else f"GGUF {operation['type']}")
    if embeddings not in (None, layers):
        text += f", embeddings in {embeddings.partition('-')[0].upper()}"
    if operation.get("scales") == "trained":
        text += ", with the trained scales"
    if "source" in operation.get("agreement", {}):
        text += f", {100 * operation['agreement']['source']:.1f} % of outputs as in PyTorch"
    return text


def _describe_integers(operation: Operation) -> str:
    group = operation.get("group")
    text = f"stored as INT{operation['bits']}, a scale for each {f'group of {group} inputs' if group else 'output channel'}"
    text += ", embeddings included" if operation.get("embeddings") else ""
    return text + (", inputs in INT8" if operation.get("activations") else "")


def _describe_pruning(operation: Operation) -> str:
    share = f"{100 * operation['achieved']:.1f} % of the {operation['targets']} weights"
    return f"{share} held at zero" if operation.get("held") else f"{share} pruned ({operation['criterion']})"


def _describe_removal(operation: Operation) -> str:
    counts = ((operation.get(kind, {}), word) for kind, word in (("heads", "heads"), ("ffn", "neurons")))
    gone = [f"{count['removed']:,} of {count['of']:,} {word}" for count, word in counts if count.get("removed")]
    criterion = f" ({operation['criterion']})" if operation.get("criterion") else ""
    return f"{' and '.join(gone) or 'no units'} removed{criterion}"


def _describe_trim(operation: Operation) -> str:
    size = f"{operation['width']:,} wide, {operation['heads']:,} heads, {operation['ffn']:,} neurons a layer"
    return f"cut to {size} (by {operation['importance']})"


def _describe_rounding(operation: Operation) -> str:
    return f"{operation['op'].upper()} in {operation['matched']} of {operation['linears']} linear layers"


def _describe_layers(operation: Operation) -> str:
    layers = operation["layers"]  # of each stack, if there are several
    stacks = layers.items() if isinstance(layers, dict) else [("", layers)]
    return " and ".join(f"{stack} layers {', '.join(map(str, kept))}".strip() for stack, kept in stacks) + " kept"


def _describe_vocabulary(operation: Operation) -> str:
    return f"vocabulary cut to {operation['after']:,} of {operation['before']:,} tokens"


_KINDS = (
    OperationKind("extract_layers", changes_shape=True, changes_start=True, describe=_describe_layers),
    OperationKind("trim", changes_shape=True, changes_start=True, describe=_describe_trim),
    OperationKind("trim_vocabulary", changes_shape=True, changes_start=True, describe=_describe_vocabulary),
    OperationKind("remove", changes_shape=True, describe=_describe_removal),
    OperationKind("lora", describe=lambda o: f"adapters of rank {o['r']}"),
    OperationKind("merge", zeros="merge", describe=lambda o: "adapters merged into dense weights"),
    OperationKind("dequantize", changes_start=True, describe=lambda o: f"base dequantized from {o['from'].upper()}"),
    OperationKind("global_l1", zeros="hold", describe=_describe_pruning),
    OperationKind("movement", zeros="hold", describe=_describe_pruning),
    OperationKind("integers", changes_start=True, describe=_describe_integers),
    OperationKind("nf4", conversion="quantized", describe=_describe_rounding),
    OperationKind("int8", conversion="quantized", describe=_describe_rounding),
    OperationKind("packed", conversion="packed"),
    OperationKind("export", conversion=_export_kind, describe=_describe_export),
)
KINDS = {kind.name: kind for kind in _KINDS}


def kind_of(operation: Operation) -> OperationKind:
    """The kind of a recorded operation: a registered one, or what the record itself says; a `UserError` if it is neither."""
    name = str(operation.get("op"))
    if name in KINDS:
        return KINDS[name]
    facts = operation.get("kind")
    if not isinstance(facts, dict):
        raise UserError(f"ledger.json: unknown operation {name!r}; use the version of lightgpt2 that wrote it")
    description = str(facts.get("description", name))
    kind = {key: facts[key] for key in ("changes_shape", "changes_start", "zeros", "conversion") if key in facts}
    return OperationKind(name, **kind, describe=lambda _: description)
