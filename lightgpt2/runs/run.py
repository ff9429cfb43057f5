"""A run's place on disk: who owns the folder, and which checkpoint to resume from."""

import hashlib
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import yaml

from lightgpt2.errors import Problem, UserError
from lightgpt2.models.ledger import Ledger
from lightgpt2.runs.settings import flat, section

LOGS = Path("tb-logs")  # of all runs
FORMAT = 4  # of checkpoints, under their key `format`; lightgpt2 0.1 wrote none

_LONGEST = 200  # bytes; of the 255 that file systems allow, endings and temporary names take some

Identity = dict[str, Any]

# Sections and flags under `model` that may change between a run and its resumption.
_MAY_CHANGE = {"optimizer", "task", "loss", "compile", "activation_checkpointing", "trust_remote_code"}
_UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, pickle.UnpicklingError)
_OLD = "was written by another version of lightgpt2"


class Run:
    """Where a run's files lie, under the working folder.

    Args:
        name: The run's name: that of a folder, or `GROUP/NAME` for one of several that belong together.

    Raises:
        UserError: It is another path.
    """

    def __init__(self, name: str) -> None:
        parts = name.split("/")
        if len(parts) > 2 or not all(map(is_folder_name, parts)):
            what = f"not the name of a folder, nor of one inside another (printable, at most {_LONGEST} bytes)"
            raise UserError([Problem(f"--run {name}", what, "give NAME or GROUP/NAME without leading dots")])
        self.name, self.folder, self.logs = name, Path("checkpoints") / name, LOGS / name
        self.model, self.config = self.folder / "model", self.folder / "config.yaml"  # the artefact; all settings
        self.last, self.best = self.folder / "last.ckpt", self.folder / "best.ckpt"
        self.predictions = self.folder / "predictions.jsonl"

    def sibling(self, form: str) -> Path:
        """The artefact in another format."""
        return self.folder / f"model-{form}"

    def derived(self) -> list[Path]:
        """What depends on the artefact: its other formats, and figures."""
        names = ("model-*", "benchmark.json", "sweep.json", "sweep.svg")
        return [path for name in names for path in self.folder.glob(name)]

    def owner(self) -> Identity | None:
        """The identity of the run that the folder belongs to; None if it is not one of lightgpt2's."""
        try:
            return identity(yaml.safe_load(self.config.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            return None


def identity(config: dict[str, Any]) -> Identity:
    """What makes a run this run and not another: the settings of its model, and the source of its data.

    Left out is what may change between a run and its resumption: `optimizer`, `task` and `loss`, how to compute (`compile`,
    `activation_checkpointing`, `trust_remote_code`), and floats: learning rates, loss weights, shares. Class paths count.
    """
    model = {"class_path": config["model"]["class_path"], **config["model"]}
    found = flat({"model": model, "data": {"source": section(config, "data", "init_args").get("source")}}, lists=True)
    plain: Identity = json.loads(json.dumps(found, default=str))
    return {key: value for key, value in plain.items() if value is not None and _decides(key.split("."), value)}


def _decides(names: list[str], value: Any) -> bool:
    floats = any(isinstance(each, float) for each in (value if isinstance(value, list) else [value]))
    return names[-1] == "class_path" or not (floats or _MAY_CHANGE & {*names})


def _differences(ours: Identity, theirs: Identity) -> str:
    """What differs, in words; a setting that one side lacks counts as null."""
    keys, sides = {**ours, **theirs}, (theirs, ours)
    pairs = {key: ["null" if side.get(key) is None else side[key] for side in sides] for key in keys}
    return ", ".join(f"{key}: {there} there, {here} here" for key, (there, here) in pairs.items() if there != here)


def check_folder(run: Run, ours: Identity, resuming: bool) -> None:
    """Check that a run may write to its folder: no other or unfinished run would be lost."""
    fix = "give this run a name with --run NAME, or remove the folder"
    # A run inside another's folder could not be removed without the other.
    if inside := sorted(path.parent.name for path in run.folder.glob("*/config.yaml")):
        what = f"{run.folder} holds other runs ({', '.join(inside)}); give this run another name with --run NAME"
    elif "/" in run.name and (run.folder.parent / "config.yaml").exists():
        what = f"{run.folder.parent} is the folder of a run itself; give this run another GROUP"
    elif not run.folder.exists() or {*run.folder.glob("[!.]*")} <= {run.predictions}:
        return
    elif (theirs := run.owner()) is None:
        what = f"{run.folder} was not made by lightgpt2; {fix}"
    elif differences := _differences(ours, theirs):
        what = f"{run.folder} belongs to another run ({differences}); {fix}"
    elif not resuming and _unfinished(run, ours):
        what = f"{run.folder} holds an unfinished run; resume it with --ckpt_path last, or {fix}"
    else:
        return
    raise UserError(f"--run {run.name}: {what}")


def has_model(run: Run, ours: Identity) -> bool:
    """True if a run has a model; raises a `UserError` where that is unfinished, or not what the configuration describes."""
    other = f"--ckpt_path {run.model} to score it"
    if _unfinished(run, ours):
        fix = "score the checkpoint with --ckpt_path last, or go on with lightgpt2 fit and --ckpt_path last"
        what = f"its newest checkpoint is of another step than its model, or there is no model yet; {fix}"
    elif not run.model.is_dir():
        return False
    elif (theirs := run.owner()) is None:
        what = f"{run.folder} was not made by lightgpt2; give {other}"
    elif differences := _differences(ours, theirs):
        fix = f"give those, or {other} with these"
        what = f"the model in {run.folder} was made with other settings ({differences}); {fix}"
    else:
        return True
    raise UserError(f"--run {run.name}: {what}")


def is_folder_name(name: str) -> bool:
    """True if a name is that of a visible folder, and not a path: every name that becomes a part of one is checked here."""
    plain = bool(name) and "/" not in name and not name.startswith(".") and name.isprintable()
    return plain and len(name.encode()) <= _LONGEST


def _unfinished(run: Run, ours: Identity) -> bool:
    """True if a run's newest checkpoint is of another step than its model, or there is no model yet."""
    if not run.last.exists():
        return False
    step, problem = _inspect(run.last, ours)
    entry = Ledger.read(run.model).last
    return not run.model.exists() or (problem is None and bool(entry) and entry.get("steps") != step)


def seal(archive: zipfile.ZipFile) -> bytes:
    """The digest that a checkpoint's archive has for its comment: of the names and checksums of its parts.

    A checkpoint that other software has changed is valid in itself: without this it would be trained on from where no run was.
    """
    parts = sorted((entry.filename, entry.CRC) for entry in archive.infolist())
    return hashlib.sha256(repr(parts).encode()).hexdigest().encode()


def _inspect(path: Path, ours: Identity) -> tuple[int, str | None]:
    """The optimizer step of a checkpoint, and what is wrong with it."""
    import torch  # here: it takes seconds, and most who import this module load no checkpoint

    if not path.is_file():
        return 0, "does not exist"
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not compare the checksums that it writes
            if archive.testzip() is not None:
                return 0, "is damaged"
            is_sealed = archive.comment == seal(archive)
        # Memory-mapped: of the tensors only the tables of contents are read. Never runs code.
        checkpoint = {**torch.load(path, map_location="cpu", weights_only=True, mmap=True)}
        differences, step = _differences(ours, checkpoint["run"]), int(checkpoint["global_step"])
    except (*_UNREADABLE, zipfile.BadZipFile):
        return 0, "is truncated or was not written by lightgpt2"
    if checkpoint.get("format") != FORMAT:
        return step, _OLD
    if not is_sealed:
        return 0, "was changed since lightgpt2 wrote it"
    return step, f"is of another run ({differences})" if differences else None


def find_checkpoint(run: Run, wanted: str, ours: Identity) -> tuple[Path | None, int, list[str]]:
    """Find the checkpoint that `--ckpt_path` means: `last`, `best`, or a path.

    Returns its path, or None if the run to resume has not saved yet; its optimizer step; lines to print.
    """
    named = wanted in ("last", "best")
    candidates = {"last": [run.last, run.best], "best": [run.best]}.get(wanted, [Path(wanted)])
    if named and not any(path.exists() for path in candidates):
        if wanted == "best" or run.model.exists():
            raise UserError(f"--ckpt_path: {run.folder} holds no {wanted}.ckpt; run fit first")
        return None, 0, [f"{run.folder} holds no checkpoint yet: starting from the beginning"]
    notes: list[str] = []
    for path in candidates:
        step, problem = _inspect(path, ours)
        if problem is None:
            return path, step, [*notes, f"going on from {path} (step {step})"] if notes else []
        if problem == _OLD:  # as is the other, if there is one
            again = "start again with another --run (its model folder can be used as it is)"
            raise UserError(f"--ckpt_path: {path} {_OLD}; {again}")
        notes.append(f"{path} {problem}")
    if not named:
        raise UserError(f"--ckpt_path: {notes[0]}; give last, best, or the checkpoint of this run")
    raise UserError(f"--ckpt_path: no usable checkpoint: {'; '.join(notes)}. Start anew with another --run")
