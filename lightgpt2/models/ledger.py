"""`ledger.json`: what was done to a model since its source, in order, with the evidence."""

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightgpt2 import __version__
from lightgpt2.errors import UserError
from lightgpt2.models import adapters
from lightgpt2.models.files import sha256_file

if TYPE_CHECKING:  # the report reads ledgers, and needs no torch for it
    from lightgpt2.models.surgery import Operation

FILE = "ledger.json"
QUALITY = ("perplexity", "interval_95", "bits_per_byte", "tokens", "documents")


def config_hash(config: Any) -> str:
    """Hex digest of a configuration, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what computes the figures."""
    packages = ("torch", "transformers", "lightning", "tokenizers", "datasets")
    return {"lightgpt2": __version__, "python": platform.python_version()} | {name: version(name) for name in packages}


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
        curve: Validation perplexity by optimizer step, `[[step, perplexity], ...]`.
        training: What the training took: `peak_memory_mb`, in units of 10^6 bytes.
        teacher: The model it was distilled from, if any.
        versions: Versions of the libraries.
        finished: When the entry was written, ISO 8601.
        config_sha256: Digest of `config`.
    """

    stage: str
    method: str
    config: dict[str, Any]
    parent: Parent
    operations: "list[Operation]"
    data: dict[str, Any]
    seed: int
    steps: int
    seconds: float
    quality: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    curve: list[list[float]] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    teacher: Parent | None = None
    versions: dict[str, str] = field(default_factory=versions)
    finished: str = field(default_factory=_now)
    config_sha256: str = ""

    def __post_init__(self) -> None:
        self.config_sha256 = config_hash(self.config)


def read(source: str | dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a model's ledger, oldest first; none for a model that LightGPT2 did not make.

    Raises:
        UserError: It is damaged.
    """
    path = Path(source).expanduser() / FILE if isinstance(source, str) else None
    if path is None or not path.is_file():
        return []
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError("no list of entries")
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); restore it, or remove it and lose the model's history") from error
    return entries


def extended(source: str | dict[str, Any], entry: Entry) -> list[dict[str, Any]]:
    """The ledger of `source` with one more entry."""
    return [*read(source), asdict(entry)]


def held_prunings(entries: list[dict[str, Any]]) -> "list[Operation]":
    """The prunings whose zeros a model still has, by targets the last; those of adapters end where they are merged.

    Args:
        entries: The model's ledger.
    """
    held: dict[str, Operation] = {}
    for operation in (operation for entry in entries for operation in entry["operations"]):
        if operation["op"] in ("global_l1", "movement"):
            held[operation["targets"]] = operation
        elif operation["op"] == "merge":
            held = {targets: pruning for targets, pruning in held.items() if not pruning["adapters"]}
    return list(held.values())
