"""`ledger.json`: what was done to a model since its source, in order, with the evidence."""

import contextlib
import hashlib
import json
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightgpt2 import __version__
from lightgpt2.errors import UserError
from lightgpt2.models import adapters
from lightgpt2.models.files import sha256_file, write_json
from lightgpt2.models.operations import Operation, kind_of

FILE = "ledger.json"
_OF_ONE_FOLDER = ("curve", "training", "benchmark", "sweeps", "generation", "samples")  # no copy has these


def config_hash(config: Any) -> str:
    """Hex digest of a configuration, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what computes the figures."""
    found = {"lightgpt2": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "lightning", "tokenizers", "datasets"):
        with contextlib.suppress(PackageNotFoundError):  # text from files needs no `datasets`
            found[name] = version(name)
    return found


@dataclass(frozen=True)
class Parent:
    """The model that a stage started from.

    Attributes:
        source: Hub id or path, or `config` for a model that started from random weights.
        sha256: Digest of its weight file; empty where it has none here (a hub model, random weights).
    """

    source: str
    sha256: str = ""

    @classmethod
    def of(cls, source: str | dict[str, Any]) -> "Parent":
        """The parent that a source names, with the hash of its weights where they lie in one local file."""
        if isinstance(source, dict):
            return cls("config")
        path = Path(source).expanduser()
        files = [path / "model.safetensors", path / adapters.WEIGHTS] if path.is_dir() else [path]
        found = next((file for file in files if file.is_file()), None)
        return cls(source, sha256_file(found) if found else "")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass
class Entry:
    """One stage's entry.

    Attributes:
        stage: Name of the run.
        method: Class of the training method.
        config: The resolved configuration.
        parent: The model that it started from.
        operations: Changes of shape, replayable by `models.surgery.replay`.
        data: The corpus: its source, fingerprint, and documents and tokens per split.
        seed: Seed of the run.
        steps: Optimizer steps taken.
        seconds: Wall time of the training, in seconds, over all its sessions.
        quality: Scores by the name of the model that was scored.
        sizes: Parameters and megabytes of the artefact.
        curve: The primary metric on the validation split by optimizer step, `[[step, value], ...]`.
        training: What the training took: `peak_memory_mb`, in units of 10^6 bytes.
        teacher: The model it was distilled from, if any.
        samples: Outputs side by side: `prompt`, `before` and `after`.
        reference_sizes: Sizes of the other models that were scored, by label.
        versions: Versions of the libraries.
        finished: When the entry was written, ISO 8601.
        config_sha256: Digest of `config`.
    """

    stage: str
    method: str
    config: dict[str, Any]
    parent: Parent
    operations: list[Operation]
    data: dict[str, Any]
    seed: int
    steps: int
    seconds: float
    quality: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    curve: list[list[float]] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    teacher: Parent | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
    reference_sizes: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)
    finished: str = field(default_factory=_now)
    config_sha256: str = ""

    def __post_init__(self) -> None:
        self.config_sha256 = config_hash(self.config)


class Ledger(list[dict[str, Any]]):
    """The entries of a model's ledger, oldest first; empty for a model that LightGPT2 did not make."""

    @classmethod
    def read(cls, source: str | Path | dict[str, Any]) -> "Ledger":
        """The ledger of a model folder; an empty one of any other source.

        Raises:
            UserError: It is damaged, or was written by a version that this one cannot read.
        """
        path = Path(source).expanduser() / FILE if isinstance(source, str | Path) else None
        if path is None or not path.is_file():
            return cls()
        try:
            entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise ValueError("no list of entries")
        except ValueError as error:
            raise UserError(
                f"{path}: damaged ({error}); restore it, or remove it and lose the model's history"
            ) from error
        if any("primary" not in scored for entry in entries for scored in entry.get("quality", {}).values()):
            raise UserError(
                f"{path}: written by lightgpt2 0.1, whose figures this version does not read; fit the model again, or remove "
                "the file and lose the model's history"
            )
        return cls(entries)

    @property
    def last(self) -> dict[str, Any]:
        """The entry of the stage that made the model; empty where there is none."""
        return self[-1] if self else {}

    def extended(self, entry: Entry) -> "Ledger":
        """The ledger with one more stage."""
        return Ledger([*self, asdict(entry)])

    def amended(self, **values: Any) -> "Ledger":
        """The ledger with values added to its last entry; a dictionary is merged into the one that is there."""
        last = dict(self.last)
        for key, value in values.items():
            both = isinstance(value, dict) and isinstance(last.get(key), dict)
            last[key] = {**last[key], **value} if both else value
        return Ledger([*self[:-1], last])

    def derived(self, method: str, source: Path, operation: Operation, quality: Any, sizes: Any) -> "Ledger":
        """The ledger of a copy of this model in another format.

        Args:
            method: What made the copy, the class of the conversion.
            source: The folder that it was made from.
            operation: What was done.
            quality: What the copy scored: `{"after": ...}`.
            sizes: What it takes on disk and in memory.
        """
        kept = {key: value for key, value in self.last.items() if key not in _OF_ONE_FOLDER}
        parent, done = asdict(Parent.of(str(source))), {"method": method, "operations": [operation]}
        return Ledger([*self, {**kept, **done, "parent": parent, "quality": quality, "sizes": sizes}])

    def held_prunings(self) -> list[Operation]:
        """The prunings whose zeros the model still has, by targets the last; those of adapters end where they are merged."""
        held: dict[str, Operation] = {}
        whole: list[str] = []  # modules that PEFT keeps under other names beside adapters, until they are merged
        for operation in (operation for entry in self for operation in entry["operations"]):
            zeros = kind_of(operation).zeros
            whole = operation.get("modules_to_save", whole)
            if zeros == "hold":
                held[operation["targets"]] = operation
            elif zeros == "merge":
                kept = {targets: pruning for targets, pruning in held.items() if not pruning["adapters"]}
                held = {targets: {**pruning, "whole": whole} if whole else pruning for targets, pruning in kept.items()}
        return list(held.values())

    def write(self, folder: Path) -> None:
        """Writes the ledger into a model folder, atomically."""
        write_json(folder / FILE, self)
