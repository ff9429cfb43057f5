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
from lightgpt2.errors import Problem, UserError
from lightgpt2.models import adapters
from lightgpt2.models.files import digest, write_json
from lightgpt2.models.operations import Operation, kind_of

FILE, SCORES = "ledger.json", "scores.npz"
# No copy has these.
_OF_ONE_FOLDER = ("curve", "training", "benchmark", "sweeps", "generation", "samples", "files", "sha256")


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
    """The model that a stage started from."""

    source: str  # hub id or path; `config` for a model that started from random weights
    sha256: str = ""  # of its weight file; empty if it has none here (a hub model, random weights)

    @classmethod
    def of(cls, source: str | dict[str, Any]) -> "Parent":
        """The parent that a source names, with the hash of its weights if they lie in one local file."""
        if isinstance(source, dict):
            return cls("config")
        path = Path(source).expanduser()
        files = [path / "model.safetensors", path / adapters.WEIGHTS] if path.is_dir() else [path]
        found = next((file for file in files if file.is_file()), None)
        return cls(source, digest(found) if found else "")


@dataclass
class Entry:
    """One stage's entry."""

    stage: str  # name of the run
    method: str  # class of the training method
    config: dict[str, Any]  # the resolved configuration
    parent: Parent
    operations: list[Operation]  # those that change shapes are replayable by `models.surgery.replay`
    data: dict[str, Any]  # the corpus: its source, fingerprint, and documents and tokens per split
    seed: int
    steps: int  # optimizer steps taken
    seconds: float  # wall time of the training, over all its sessions
    quality: dict[str, Any] = field(default_factory=dict)  # scores by the label of the model that was scored
    sizes: dict[str, Any] = field(default_factory=dict)  # parameters and megabytes of the artefact
    curve: list[list[float]] = field(
        default_factory=list
    )  # primary metric on the validation split: [[step, value], ...]
    training: dict[str, Any] = field(default_factory=dict)  # what it took: `peak_memory_mb`, in units of 10^6 bytes
    teacher: Parent | None = None  # the model it was distilled from, if any
    samples: list[dict[str, Any]] = field(default_factory=list)  # outputs side by side: `prompt`, `before` and `after`
    reference_sizes: dict[str, Any] = field(default_factory=dict)  # of the other models that were scored, by label
    versions: dict[str, str] = field(default_factory=versions)  # of the libraries
    finished: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    config_sha256: str = ""  # digest of `config`

    def __post_init__(self) -> None:
        self.config_sha256 = config_hash(self.config)


class Ledger(list[dict[str, Any]]):
    """The entries of a model's ledger, oldest first; empty for a model that LightGPT2 did not make.

    The last entry says what is in the folder: `files` has the SHA-256 of each file that was there when the ledger was first
    written, and `sha256` that of the ledger itself.
    """

    @classmethod
    def read(cls, source: str | Path | dict[str, Any]) -> "Ledger":
        """The ledger of a model folder, empty for any other source; a `UserError` if it is damaged or too old."""
        path = Path(source).expanduser() / FILE if isinstance(source, str | Path) else None
        if path is None or not path.is_file():
            return cls()
        lost = "it and lose the model's history"
        try:
            entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise ValueError("no list of entries")
            ledger = cls(entries)
            if ledger.last.get("sha256") not in (None, ledger._sha256()):
                raise ValueError("its checksum differs")
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}); restore it, or remove {lost}") from error
        if any("primary" not in scored for entry in entries for scored in entry.get("quality", {}).values()):
            what = "written by lightgpt2 0.1, whose figures this version does not read"
            raise UserError(f"{path}: {what}; fit the model again, or remove {lost}")
        return ledger

    @property
    def last(self) -> dict[str, Any]:
        """The entry of the stage that made the model; empty where there is none."""
        return self[-1] if self else {}

    def extended(self, entry: Entry) -> "Ledger":
        return Ledger([*self, asdict(entry)])

    def amended(self, **values: Any) -> "Ledger":
        """The ledger with values added to its last entry; a dictionary is merged into the one that is there."""
        last = dict(self.last)
        for key, value in values.items():
            both = isinstance(value, dict) and isinstance(last.get(key), dict)
            last[key] = {**last[key], **value} if both else value
        return Ledger([*self[:-1], last])

    def derived(self, method: str, source: Path, operation: Operation, quality: Any, sizes: Any) -> "Ledger":
        """The ledger of a copy in another format: by which class it was made, from which folder, what it scores and takes."""
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

    @property
    def files(self) -> dict[str, str]:
        """The SHA-256 of each file of the folder as it was written; empty where nothing was recorded."""
        found: dict[str, str] = self.last.get("files", {})
        return found

    def altered(self, folder: Path, whole: bool = True) -> list[str]:
        """The files of the folder that are missing; and, if they are read `whole`, those that are not as they were written."""
        paths = {name: folder / name for name in self.files}
        return [n for n, p in paths.items() if not p.is_file() or (whole and _digest(p) != self.files[n])]

    def check(self, folder: Path, key: str, whole: bool = True) -> None:
        """Raise a `UserError` naming `key` if files of the folder are `altered`."""
        if altered := self.altered(folder, whole):
            what = f"{', '.join(altered)} in {folder} is not what was written (its checksum differs, or it is missing)"
            raise UserError([Problem(key, what, f"restore it, or remove {folder} and make it again")])

    def write(self, folder: Path) -> None:
        """Write the ledger, when everything else is in the folder."""
        ledger = self if self.files or not self else self.amended(files=_digests(folder))
        write_json(folder / FILE, ledger.amended(sha256=ledger._sha256()) if ledger else ledger)

    def _sha256(self) -> str:
        plain = Ledger(json.loads(json.dumps([*self[:-1], {**self.last, "sha256": None}])))  # as it is read again
        return config_hash(plain)


def _digests(folder: Path) -> dict[str, str]:
    """Digests of a folder's files, but of the ledger and the scores: they say themselves whether they are whole."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths if path.name not in (FILE, SCORES)}
    return {name: _digest(path) for name, path in names.items() if not name.startswith(".")}


def _digest(path: Path) -> str:
    """Digest of a file; of an adapters' configuration, whatever it says where their base lies: a base may move."""
    if path.name != adapters.CONFIG:
        return digest(path)
    about = json.loads(path.read_bytes())
    return config_hash({**about, "base_model_name_or_path": None})
