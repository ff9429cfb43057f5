"""From ledgers and benchmarks to rows: one for each model, each tied to the model that it comes from."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

from lightgpt2.errors import UserError
from lightgpt2.models.operations import Operation, OperationKind, kind_of
from lightgpt2.models.quality import Metric, read_scores
from lightgpt2.report.figures import SIZES, dicts, number, numbers, part, primary, workloads

Entry = dict[str, Any]
Benchmark = dict[str, Any]
Kind = Literal["source", "baseline", "stage", "half precision", "measured", "quantized", "packed", "exported"]

_FULL = ("fp32", "float32")
_HALF = {"bf16": ("bf16", "bfloat16"), "fp16": ("fp16", "float16"), "dynamic-int8": ("dynamic-int8",)}
_COPIES: tuple[Kind, ...] = ("quantized", "packed", "exported")
MADE: tuple[Kind, ...] = ("stage", *_COPIES)  # what has an entry of a ledger to itself


@dataclass(frozen=True)
class Score:
    """What a model scored."""

    quality: dict[str, Any] = field(default_factory=dict)  # a ledger's, under one label
    text: tuple[str, ...] = ()  # what it depends on besides the model: scores on two texts are not compared
    folder: str = ""  # with the scores example by example
    label: str = "after"  # of them there

    @property
    def about(self) -> dict[str, Any]:
        """The primary metric as the ledger has it."""
        return part(self.quality, primary(self.quality))

    @property
    def value(self) -> float | None:
        return number(self.about.get("value"))

    def examples(self) -> Metric | None:
        """The primary metric example by example; None where that was not kept."""
        if not self.folder:
            return None
        return read_scores(Path(self.folder), self.label, self.quality).get(primary(self.quality))


@dataclass(frozen=True)
class Model:
    """One model of a chain, or one of which there is only a benchmark (`measured`)."""

    name: str
    kind: Kind
    entry: Entry  # of the stage that wrote it; for a source, of the chain's first stage
    parent: "Model | None" = None  # that it comes from; None for random weights
    score: Score = Score()
    figures: dict[str, float] = field(default_factory=dict)  # sizes, and the first of `speeds`
    speeds: dict[str, dict[str, float]] = field(default_factory=dict)  # and memory, by machine and settings
    benchmarks: list[Benchmark] = field(default_factory=list)  # each with the one arm that measured it

    @property
    def root(self) -> "Model":
        return self if self.parent is None else self.parent.root

    @property
    def start(self) -> Score:
        """What the model scored that the stage was given, on the stage's own text."""
        return _score(self.entry, _start(self.entry), self.score.folder)


def _kind(operation: Operation) -> OperationKind:
    try:
        return kind_of(operation)
    except (TypeError, UserError):  # neither registered nor described: nothing is known of it
        return OperationKind(str(operation.get("op")), changes_start=True)


def clause(operation: Operation) -> str:
    """What an operation did; its name where its record lacks something."""
    try:
        return _kind(operation).describe(operation)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return str(operation.get("op"))


def converted(entry: Entry) -> Kind:
    """What kind of copy an entry tells of; `stage` where it tells of training."""
    found = [_kind(operation).converted(operation) for operation in dicts(entry.get("operations"))]
    return next((kind for kind in _COPIES if kind in found), "stage")


def _start(entry: Entry) -> str:
    """The label of the model that a stage was given, where it differs from the one before its first step too."""
    if not any(_kind(operation).changes_start for operation in dicts(entry.get("operations"))):
        return "before"
    teacher = part(entry, "teacher")
    return "teacher" if teacher and teacher == part(entry, "parent") else "source"


def _score(entry: Entry, label: str, folder: str) -> Score:
    quality, data = part(entry, "quality", label), part(entry, "data")
    named = ("source", "licence")  # which do not decide what the text is
    plain = {key: value for key, value in data.items() if key not in named and not isinstance(value, dict | list)}
    text = (primary(quality), json.dumps([plain, numbers(quality)], sort_keys=True, default=str))
    return Score(quality, text, folder, label)


def _speed(arm: dict[str, Any]) -> dict[str, float]:
    """Memory, and of each setting the median latency and whatever was done a second."""
    found = numbers({"weights": arm.get("weights_mb"), "peak": arm.get("peak_memory_mb")})
    for workload, figures in workloads(arm).items():
        setting = workload.partition(" ")[2]
        for name, value in numbers(figures).items():
            key = workload if name == "p50_ms" else f"{name[:-6]}/s {setting}" if name.endswith("_per_s") else ""
            found |= {key: value} if key else {}
    return found


def _measured(benchmarks: Iterable[Benchmark], folders: Sequence[str], precisions: Sequence[str]) -> list[Benchmark]:
    """The benchmarks that have an arm of a folder, in one of the precisions if there are any, each with that arm alone.

    A path may be seen from another working directory: it is compared as far as both go, and in two parts at least.
    """

    def fits(arm: dict[str, Any]) -> bool:
        path = PurePath(str(arm.get("source"))).parts
        for other in (PurePath(folder).parts for folder in folders):
            shared = min(len(path), len(other))
            if path == other or (shared > 1 and path[-shared:] == other[-shared:]):
                return "error" not in arm and (not precisions or arm.get("precision") in precisions)
        return False

    found = ((benchmark, next(filter(fits, dicts(benchmark.get("arms"))), None)) for benchmark in benchmarks)
    return [{**benchmark, "arms": [arm]} for benchmark, arm in found if arm]


def _model(name: str, kind: Kind, entry: Entry, parent: Model | None, score: Score, benchmarks: list[Benchmark],
           sizes: Mapping[str, Any], **figures: Any) -> Model:  # fmt: skip
    known = {key: sizes.get("megabytes" if key == "disk" else key) for key in SIZES}
    speeds: dict[str, dict[str, float]] = {}
    for benchmark in benchmarks:  # two are compared if they share the machine and the settings
        machine = {key: value for key, value in part(benchmark, "machine").items() if key != "versions"}
        where = json.dumps([machine, part(benchmark, "settings")], sort_keys=True) if machine else ""
        speeds.setdefault(where, _speed(benchmark["arms"][0]))
    figures = numbers(known | figures) | next(iter(speeds.values()), {})
    return Model(name, kind, entry, parent, score, figures, speeds, benchmarks)


def _identity(history: Sequence[Entry]) -> str:
    """The same in a run's ledger and in a descendant's, which may lack a later benchmark, or the merge of adapters."""
    keys = ("stage", "method", "config_sha256", "parent", "seed", "steps", "seconds")
    kept = [[o for o in dicts(entry.get("operations")) if _kind(o).zeros != "merge"] for entry in history]
    parts = [[*(entry.get(key) for key in keys), done] for entry, done in zip(history, kept, strict=True)]
    return json.dumps(parts, sort_keys=True, default=str)


@dataclass(eq=False)
class _Node:
    """An entry, the one before it, the folder of its model if that was given, and its row."""

    entry: Entry
    folder: str
    before: "_Node | None"
    row: Model | None = None

    @property
    def history(self) -> "list[_Node]":
        return [*(self.before.history if self.before else []), self]

    @property
    def chain(self) -> str:
        """The same for all models that began with one: a source, or the first stage where that had random weights."""
        first = self.history[0].entry
        parent = part(first, "parent")
        return _identity([first]) if parent.get("source") == "config" else json.dumps(parent, sort_keys=True)

    @property
    def stage(self) -> "_Node":
        """The stage that trained the weights."""
        return self.before if self.before and converted(self.entry) != "stage" else self

    @property
    def model(self) -> str:
        """The name of its folder in the run."""
        done = "-".join(str(operation.get("op")) for operation in dicts(self.entry.get("operations")))
        return "model" if self.stage is self else PurePath(self.folder).name or f"model-{done}"

    @property
    def name(self) -> str:
        stage = str(self.stage.entry.get("stage", "unnamed"))
        return stage if self.stage is self else f"{stage} {self.model.removeprefix('model-')}"

    def measured(self, benchmarks: Iterable[Benchmark], precisions: Sequence[str]) -> list[Benchmark]:
        own = str(PurePath(str(self.stage.entry.get("stage", "")), self.model))
        return _measured(benchmarks, [own, *filter(None, [self.folder])], precisions)


def _nodes(ledgers: Mapping[str, list[Entry]]) -> list[_Node]:
    """All entries, ancestors that have no folder here too: chains one after the other, in each the stages by depth.

    Those of one depth stand in the order in which they ended, each with its copies.
    """
    own: dict[str, tuple[Entry, str]] = {}
    for folder, entries in ledgers.items():
        own.setdefault(_identity(entries), (entries[-1], folder))
    nodes: dict[str, _Node] = {}
    for entries in ledgers.values():
        node = None
        for i, entry in enumerate(entries, start=1):
            identity = _identity(entries[:i])
            node = nodes.setdefault(identity, _Node(*own.get(identity, (entry, "")), node))
    chains = list(dict.fromkeys(node.chain for node in nodes.values()))

    def place(node: _Node) -> tuple[Any, ...]:
        stage = node.stage
        ended = str(stage.entry.get("finished") or "")
        return chains.index(node.chain), len(stage.history), ended, stage.name, id(stage), node is not stage, node.name

    return sorted(nodes.values(), key=place)


def _unique_names(nodes: Iterable[_Node]) -> dict[_Node, str]:
    """Names without what they all begin with; where two are equal, with what distinguishes them."""
    groups = {node.name.rpartition("/")[0].partition("/")[0] for node in nodes}
    prefix = f"{groups.pop()}/" if len(groups) == 1 else ""
    names: dict[_Node, str] = {}
    for node in sorted(nodes, key=lambda node: not node.folder):
        name = node.name.removeprefix(prefix)
        if name in names.values():
            name += f" ({node.folder or 'an earlier fit'})"
        names[node] = name + "'" * sum(name == other.rstrip("'") for other in names.values())
    return names


def models(ledgers: Mapping[str, list[Entry]], benchmarks: Sequence[Benchmark] = ()) -> list[Model]:
    """The rows in order: each source, its stages, and after each its half-precision rows and copies.

    Ledgers are entries by model folder (`checkpoints/RUN/model-nf4`); ancestors that they tell of are rows though their folders
    were not given. Models of which there is only a benchmark, of `lightgpt2 benchmark`, come last.
    """
    nodes = _nodes(ledgers)
    known = [part(node.entry, "benchmark") for node in nodes]
    files = [benchmark for benchmark in benchmarks if benchmark not in known]  # a run keeps its own twice
    names, rows, sources = _unique_names(nodes), list[Model](), dict[str, Model | None]()
    for node in nodes:
        own = part(node.stage.entry, "benchmark")  # before those of other stages that measured it beside theirs
        measured = [*files, own, *(benchmark for benchmark in known if benchmark != own)]
        if node.chain not in sources:
            sources[node.chain] = _source(node, measured)
            rows += [*filter(None, [sources[node.chain]]), *_baselines(node)]
        node.row = _own(node, names[node], node.before.row if node.before else sources[node.chain], measured)
        rows += [node.row, *(_halves(node, node.row, measured) if node.row.kind == "stage" else ())]
    return [*rows, *_others(rows, files)]


def _source(node: _Node, benchmarks: list[Benchmark]) -> Model | None:
    """The untouched source that a chain's first stage was given; None where it was given random weights."""
    source, label = str(part(node.entry, "parent").get("source", "")), _start(node.entry)
    if source in ("", "config"):
        return None
    score, sizes = _score(node.entry, label, node.folder), part(node.entry, "reference_sizes", label)
    name, found = f"{PurePath(source).name} (untouched)", _measured(benchmarks, [source], _FULL)
    return _model(name, "source", node.entry, None, score, found, sizes)


def _baselines(node: _Node) -> Iterator[Model]:
    """What was scored without a model, on the text of a chain's first stage."""
    for label, scored in part(node.entry, "quality").items():
        if part(scored).get("baseline") is True:
            yield _model(label, "baseline", node.entry, None, _score(node.entry, label, node.folder), [], {})


def _own(node: _Node, name: str, parent: Model | None, benchmarks: list[Benchmark]) -> Model:
    kind = converted(node.entry) if parent else "stage"
    found, score = node.measured(benchmarks, _FULL if kind == "stage" else ()), _score(node.entry, "after", node.folder)
    if parent and kind != "stage" and score.quality == parent.score.quality:
        score = parent.score  # of the same weights
    seconds = node.entry.get("seconds") if kind == "stage" else None
    return _model(name, kind, node.entry, parent, score, found, part(node.entry, "sizes"), training=seconds)


def _halves(node: _Node, stage: Model, benchmarks: list[Benchmark]) -> Iterator[Model]:
    """A stage's model as it was measured in half precision: the same file, fewer bytes in memory."""
    for name, precisions in _HALF.items():
        if found := node.measured(benchmarks, precisions):
            score, sizes = _score(node.entry, name, node.folder), part(node.entry, "sizes")
            yield _model(f"{stage.name} {name}", "half precision", node.entry, stage, score, found, sizes)


def _others(rows: Sequence[Model], files: Sequence[Benchmark]) -> Iterator[Model]:
    """What was measured of models that have no ledger here."""
    used = [id(benchmark["arms"][0]) for row in rows for benchmark in row.benchmarks]
    for benchmark in files:
        for arm in dicts(benchmark.get("arms")):
            if id(arm) not in used and "error" not in arm:
                name = str(arm.get("name", arm.get("source")))
                yield _model(name, "measured", {}, None, Score(), [{**benchmark, "arms": [arm]}], {})
