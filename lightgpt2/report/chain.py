"""From ledgers to models: one for each row of the chain's table, each tied to the model that it was made of."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from lightgpt2.report.figures import number

Entry = dict[str, Any]
Kind = Literal["source", "stage", "half precision", "quantized", "packed", "exported"]

HALF = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16"}
_FULL = ("fp32", "float32")
_CONVERSIONS: dict[Any, Kind] = {
    "PostTrainingQuantization": "quantized",
    "PackedArtefact": "packed",
    "Export": "exported",
}
_SPENT = {"seconds": "seconds", "cpu": "cpu_seconds", "share": "cpu_percent"}
# What these do leaves the model that a stage scores before its first step the one that it was given.
_KEEPS_THE_START = ("lora", "global_l1", "remove", "movement", "merge", "nf4", "int8", "export")


@dataclass(frozen=True)
class Model:
    """One model of a chain.

    Attributes:
        name: What a reader calls it.
        kind: The untouched source, what a stage made, that loaded in half precision, or a quantized, packed or exported copy of
            it; an export that rounds the weights to integers is a quantized one.
        entry: The ledger entry of the stage that made it; for the source that of the first stage.
        parent: The model that it was made of; None for one that began with random weights.
        figures: What was measured, by the keys of `report.figures`.
        interval: 95 % interval of the perplexity.
        machine: Where and how speed and memory were measured; figures of two machines are not compared.
    """

    name: str
    kind: Kind
    entry: Entry
    parent: "Model | None" = None
    figures: dict[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    machine: str = ""

    @property
    def root(self) -> "Model":
        """The model that its chain began with."""
        return self if self.parent is None else self.parent.root

    @property
    def stage(self) -> "Model":
        """The stage that made it; for a quantized, packed or exported model the one whose weights it holds."""
        return self.parent if self.kind not in ("source", "stage") and self.parent else self


# -- one ledger entry ------------------------------------------------------------------------------------------------------


def part(entry: Entry, *keys: str) -> dict[str, Any]:
    """A nested dictionary of an entry, empty where it lacks that."""
    value: Any = entry
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def operations(entry: Entry) -> list[dict[str, Any]]:
    """The operations of an entry."""
    listed = entry.get("operations")
    return [o for o in listed if isinstance(o, dict)] if isinstance(listed, list) else []


def is_converted(entry: Entry) -> bool:
    """Whether an entry tells of a conversion and of no training."""
    return entry.get("method") in _CONVERSIONS


def _kind(entry: Entry) -> Kind:
    """What a conversion makes."""
    rounds = any(o.get("op") == "export" and _export_rounds(o) for o in operations(entry))
    return "quantized" if rounds else _CONVERSIONS[entry["method"]]


def _export_rounds(operation: dict[str, Any]) -> bool:
    """Whether an export has rounded weights to integers; those of a model that was trained with integers it has not."""
    form = operation.get("layers", operation.get("type"))
    return form in ("int8", "int4", "Q8_0", "Q4_0") and operation.get("scales") != "trained"


def start_quality(entry: Entry) -> dict[str, Any]:
    """The score of the model that a stage was given, as that stage measured it on its own text; empty where it did not."""
    if all(operation.get("op") in _KEEPS_THE_START for operation in operations(entry)):
        return part(entry, "quality", "before")
    teacher, parent = part(entry, "teacher"), part(entry, "parent")
    return part(entry, "quality", "teacher" if teacher and teacher == parent else "source")


def arms(entry: Entry) -> list[dict[str, Any]]:
    """The models that an entry's benchmark measured, or tried to."""
    listed = part(entry, "benchmark").get("arms")
    return [arm for arm in listed if isinstance(arm, dict)] if isinstance(listed, list) else []


def machine_of(entry: Entry) -> str:
    """Everything that two benchmarks must share for their figures to be compared."""
    machine = {k: v for k, v in part(entry, "benchmark", "machine").items() if k != "versions"}
    return json.dumps([machine, part(entry, "benchmark", "settings")], sort_keys=True) if machine else ""


def _numbers(named: Iterable[tuple[str, Any]]) -> dict[str, float]:
    return {key: value for key, raw in named if (value := number(raw)) is not None}


def _quality(scores: Mapping[str, Any]) -> tuple[dict[str, float], tuple[float, float] | None]:
    bounds = scores.get("interval_95")
    numbers = [number(b) for b in bounds] if isinstance(bounds, list) else []
    interval = (numbers[0], numbers[1]) if len(numbers) == 2 and None not in numbers else None
    return _numbers((key, scores.get(key)) for key in ("perplexity", "bits_per_byte")), interval  # type: ignore[return-value]


def _sizes(sizes: Mapping[str, Any]) -> dict[str, float]:
    disk = ("disk", sizes.get("megabytes"))
    return _numbers([*((key, sizes.get(key)) for key in ("parameters", "embedding", "nonzero")), disk])


def _speed(arm: dict[str, Any]) -> dict[str, float]:
    names = {"weights": "weights_mb", "embedding_memory": "embedding_mb", "peak": "peak_memory_mb"}
    figures = _numbers((key, arm.get(name)) for key, name in names.items())
    batches = [key for key in part(arm, "forward") if re.fullmatch(r"[0-9]+x[0-9]+", key)]
    figures |= _numbers((f"forward {key}", part(arm, "forward", key).get("p50_ms")) for key in batches)
    generate = part(arm, "generate")
    lengths = sorted((key for key in generate if re.fullmatch("[0-9]+", key)), key=int)
    figures |= _numbers((f"tokens {n}", part(generate, n).get("tokens_per_s")) for n in lengths)
    for n in lengths[:1]:  # the details have those of the others
        names = {"first token": "first_token_ms"} | {f"{kind} {n}": name for kind, name in _SPENT.items()}
        figures |= _numbers((key, part(generate, n).get(name)) for key, name in names.items())
    return figures


def _training(entry: Entry) -> dict[str, float]:
    memory = part(entry, "training").get("peak_memory_mb")
    return _numbers([("training seconds", entry.get("seconds")), ("training memory", memory)])


def _written(entry: Entry) -> dict[str, float]:
    """What was found of the text that it generated, in per cent."""
    named = {"well formed": "well_formed", "repeated": "repeated", "repeated text": "repeated_text"}
    found = _numbers((key, part(entry, "generation").get(name)) for key, name in named.items())
    return {key: 100 * share for key, share in found.items()}


def text_of(model: Model) -> tuple[Any, ...]:
    """What a perplexity depends on besides the model: those of two texts, or of two window lengths, are not compared."""
    data = part(model.entry, "data") or part(model.stage.entry, "data")
    windows = tuple(data.get(key) for key in ("sha256", "sequence_length", "stride", "mode"))
    score = "before" if model.kind == "source" else "after"
    tokens = part(model.entry, "quality", score).get(
        "tokens", part(model.stage.entry, "quality", "after").get("tokens")
    )
    return (*windows, tokens)


# -- all ledgers -----------------------------------------------------------------------------------------------------------


def _identity(history: Sequence[Entry]) -> str:
    """The same for a run's own ledger and its copy in a descendant's, which may lack a later benchmark.

    Or the last operation: what was made from an adapter folder descends from the run though nothing was merged there.
    """
    keys = ("stage", "method", "config_sha256", "parent", "seed", "steps", "seconds")
    parts = [
        [*(entry.get(key) for key in keys), [o for o in operations(entry) if o.get("op") != "merge"]]
        for entry in history
    ]
    return json.dumps(parts, sort_keys=True, default=str)


@dataclass
class _Node:
    """An entry, those before it, and the folder of its model if that was given."""

    entry: Entry
    ancestors: list[Entry]
    folder: str = ""

    @property
    def chain(self) -> str:
        """The same for all models that began with one: a source, or the first stage where that had random weights."""
        first = [*self.ancestors, self.entry][:1]
        parent = part(first[0], "parent")
        return _identity(first) if parent.get("source") == "config" else json.dumps(parent, sort_keys=True)

    @property
    def name(self) -> str:
        """The run's name; for a quantized model the stage's with what its folder or its operation says."""
        if not is_converted(self.entry) or not self.ancestors:
            return str(self.entry.get("stage", "unnamed"))
        suffix = PurePath(self.folder).name.removeprefix("model-") or "-".join(
            str(o.get("op")) for o in operations(self.entry)
        )
        return f"{self.ancestors[-1].get('stage', 'unnamed')} {suffix}"


def _nodes(ledgers: Mapping[str, list[Entry]]) -> dict[str, _Node]:
    """All entries by identity: first those of the folders' own models, then ancestors that have no folder here."""
    nodes: dict[str, _Node] = {}
    for folder, entries in ledgers.items():
        nodes.setdefault(_identity(entries), _Node(entries[-1], entries[:-1], folder))
    for entries in ledgers.values():
        for i, entry in enumerate(entries[:-1]):
            nodes.setdefault(_identity(entries[: i + 1]), _Node(entry, entries[:i]))
    return nodes


def _ordered(nodes: Mapping[str, _Node]) -> list[str]:
    """Chains one after the other; in each the stages by the number of stages before them, then by when they ended.

    A quantized model follows its stage, whatever was made of that stage besides.
    """
    chains = list(dict.fromkeys(node.chain for node in nodes.values()))

    def place(identity: str) -> tuple[Any, ...]:
        node = nodes[identity]
        after = is_converted(node.entry) and bool(node.ancestors)
        stage = nodes[_identity(node.ancestors)] if after else node
        finished = str(stage.entry.get("finished") or "")
        return chains.index(node.chain), len(stage.ancestors), finished, stage.name, id(stage), after, node.name

    return sorted(nodes, key=place)


def _unique_names(nodes: Mapping[str, _Node]) -> dict[str, str]:
    """Names without what they all begin with; where two are equal, with what tells them apart."""
    firsts = {node.name.split("/")[0] if "/" in node.name else "" for node in nodes.values()}
    prefix = f"{firsts.pop()}/" if len(firsts) == 1 else ""
    prefix = prefix if prefix != "/" else ""
    names: dict[str, str] = {}
    for identity, node in nodes.items():
        name = node.name.removeprefix(prefix)
        if name in names.values():
            name = f"{name} ({node.folder or 'an earlier fit'})"
        while name in names.values():
            name += "'"
        names[identity] = name
    return names


def _source(entry: Entry) -> Model | None:
    """The untouched source that a chain's first stage was given; None where it was given random weights."""
    source = str(part(entry, "parent").get("source", ""))
    if source in ("", "config"):
        return None
    scores = start_quality(entry)
    figures, interval = _quality(scores)
    measured = next((a for a in arms(entry) if a.get("source") == source and a.get("precision") in _FULL), {})
    figures |= _sizes(scores) | _speed(measured)
    name = f"{PurePath(source).name} (untouched)"
    return Model(name, "source", entry, None, figures, interval, machine_of(entry) if measured else "")


def _arms_of(stage: Entry, folder: str, precisions: Collection[str]) -> list[dict[str, Any]]:
    """What a stage's benchmark measured of one of its folders, `model` or `model-nf4`; what failed is left out."""
    own = PurePath("checkpoints", str(stage.get("stage", "")), folder).parts[-2:]
    return [
        arm
        for arm in arms(stage)
        if PurePath(str(arm.get("source", ""))).parts[-2:] == own
        and "error" not in arm
        and (not precisions or arm.get("precision") in precisions)
    ]


def _stage(node: _Node, name: str, parent: Model | None) -> Model:
    measured = next(iter(_arms_of(node.entry, "model", _FULL)), {})
    figures, interval = _quality(part(node.entry, "quality", "after"))
    figures |= _written(node.entry) | _sizes(part(node.entry, "sizes")) | _speed(measured) | _training(node.entry)
    return Model(name, "stage", node.entry, parent, figures, interval, machine_of(node.entry) if measured else "")


def _converted(node: _Node, name: str, parent: Model) -> Model:
    folder = PurePath(node.folder).name or "model-" + "-".join(str(o.get("op")) for o in operations(node.entry))
    measured = next(iter(_arms_of(parent.entry, folder, ())), {})
    figures, interval = _quality(part(node.entry, "quality", "after"))
    figures |= _written(node.entry) | _sizes(part(node.entry, "sizes")) | _speed(measured)
    return Model(
        name, _kind(node.entry), node.entry, parent, figures, interval, machine_of(parent.entry) if measured else ""
    )


def _halves(stage: Model) -> Iterator[Model]:
    """A stage's model as it was measured in half precision: the same file, fewer bytes in memory."""
    seen: set[str] = set()
    for arm in _arms_of(stage.entry, "model", HALF):
        precision = HALF[arm["precision"]]
        if precision not in seen:
            seen.add(precision)
            figures, interval = _quality(part(arm, "quality"))
            sizes = {k: v for k, v in stage.figures.items() if k in ("parameters", "embedding", "nonzero", "disk")}
            machine, name = machine_of(stage.entry), f"{stage.name} {precision}"
            yield Model(name, "half precision", stage.entry, stage, figures | sizes | _speed(arm), interval, machine)


def models(ledgers: Mapping[str, list[Entry]]) -> list[Model]:
    """The rows of the chain's table, in order: each source, its stages, and after each its half-precision and quantized ones.

    Ancestors that a ledger tells of are among them though their folders were not given.

    Args:
        ledgers: Entries by model folder (`checkpoints/RUN/model`, `checkpoints/RUN/model-nf4`).
    """
    nodes = _nodes(ledgers)
    names = _unique_names(nodes)
    rows: list[Model] = []
    made: dict[str, Model] = {}
    sources: dict[str, Model | None] = {}
    for identity in _ordered(nodes):
        node = nodes[identity]
        if node.ancestors:
            parent: Model | None = made[_identity(node.ancestors)]
        else:
            if node.chain not in sources:
                sources[node.chain] = _source(node.entry)
                rows += [source for source in (sources[node.chain],) if source]
            parent = sources[node.chain]
        if parent and is_converted(node.entry):
            made[identity] = _converted(node, names[identity], parent)
            rows.append(made[identity])
        else:
            made[identity] = _stage(node, names[identity], parent)
            rows += [made[identity], *_halves(made[identity])]
    return rows
