"""The kinds of operations that a ledger records: one registry for the ledger, the replay of shapes and the report.

Imports nothing heavy: the report reads it without torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Operation = dict[str, Any]
Zeros = Literal["", "hold", "merge"]


@dataclass(frozen=True)
class OperationKind:
    """What has to be known of a kind of operation.

    An operation of a kind that another package defines carries these facts in its record, so that it is understood where
    that package is not imported.

    Attributes:
        name: The value of `op` in records.
        changes_shape: Whether it changes the model's shape, and is replayed by `models.surgery`.
        changes_start: Whether the model before the stage's first step is another than the one that the stage was given.
        zeros: `hold` where weights at zero stay so in later stages; `merge` where pruned adapters end.
        describe: What it did, as a clause: "80.0 % of the linear weights pruned (l1)".
    """

    name: str
    changes_shape: bool = False
    changes_start: bool = False
    zeros: Zeros = ""
    describe: Callable[[Operation], str] = lambda operation: str(operation["op"])

    def record(self, **values: Any) -> Operation:
        """An operation of this kind, as a ledger keeps it."""
        operation = {"op": self.name, **values}
        if self.name in KINDS:
            return operation
        facts = {"changes_shape": self.changes_shape, "changes_start": self.changes_start, "zeros": self.zeros}
        return {**operation, "kind": {**facts, "description": self.describe(operation)}}


def _kinds(*kinds: OperationKind) -> dict[str, OperationKind]:
    return {kind.name: kind for kind in kinds}


KINDS: dict[str, OperationKind] = _kinds(
    OperationKind("extract_layers", changes_shape=True, changes_start=True),
    OperationKind("trim", changes_shape=True, changes_start=True),
    OperationKind("trim_vocabulary", changes_shape=True, changes_start=True),
    OperationKind("remove", changes_shape=True),
    OperationKind("lora"),
    OperationKind("merge", zeros="merge"),
    OperationKind("dequantize", changes_start=True),
    OperationKind("global_l1", zeros="hold"),
    OperationKind("movement", zeros="hold"),
    OperationKind("integers", changes_start=True),
    OperationKind("nf4"),
    OperationKind("int8"),
    OperationKind("packed"),
    OperationKind("export"),
)


def kind_of(operation: Operation) -> OperationKind:
    """The kind of a recorded operation: a registered one, or what the record itself says.

    Raises:
        ValueError: It is neither.
    """
    name = str(operation.get("op"))
    if name in KINDS:
        return KINDS[name]
    facts = operation.get("kind")
    if not isinstance(facts, dict):
        raise ValueError(f"unknown operation {name!r}; known: {', '.join(KINDS)}")
    description = str(facts.get("description", name))
    kind = {key: facts[key] for key in ("changes_shape", "changes_start", "zeros") if key in facts}
    return OperationKind(name, **kind, describe=lambda _: description)
