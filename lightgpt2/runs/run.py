"""A run's place on disk: who owns the folder, and which checkpoint to go on from."""

import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightgpt2.errors import UserError

Identity = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Where a run's files lie, under the working folder.

    Attributes:
        name: The run's name: that of a folder, or `GROUP/NAME` for one of several that belong together.
    """

    name: str

    @property
    def folder(self) -> Path:
        """Checkpoints, the resolved configuration and the artefact."""
        return Path("checkpoints") / self.name

    @property
    def model(self) -> Path:
        """The artefact."""
        return self.folder / "model"

    def sibling(self, form: str) -> Path:
        """The artefact in another format."""
        return self.folder / f"model-{form}"

    def derived(self) -> list[Path]:
        """What was made of the artefact: its other formats, and figures."""
        names = ("model-*", "benchmark.json", "sweep.json", "sweep.svg")
        return [path for name in names for path in self.folder.glob(name)]

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the lowest validation loss."""
        return self.folder / "best.ckpt"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.folder / "config.yaml"

    @property
    def logs(self) -> Path:
        """TensorBoard's files."""
        return Path("tb-logs") / self.name

    @property
    def predictions(self) -> Path:
        """What `predict` writes."""
        return self.folder / "predictions.jsonl"

    def owner(self) -> Identity | None:
        """Identity of the run that the folder belongs to, if it is one of lightgpt2's."""
        try:
            return identity(yaml.safe_load(self.config.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            return None


def identity(config: dict[str, Any]) -> Identity:
    """What makes a run this run and not another: its method, the models it works on, and its corpus.

    Learning rates, schedules and lengths may change between a run and its resumption; these may not.

    Args:
        config: A resolved configuration, as in `config.yaml`.
    """
    model, data = config["model"], config["data"]
    keys = ("teacher", "student", "layers", "width", "heads", "ffn", "vocabulary", "model", "lora", "quantization")
    sources = {f"model.{key}": model["init_args"][key] for key in keys if key in model["init_args"]}
    pruning = model["init_args"].get("pruning") or {}
    sources |= {f"model.pruning.{key}": pruning[key] for key in ("granularity", "criterion") if key in pruning}
    found = {"model.class_path": model["class_path"], **sources, "data.source": data["init_args"]["source"]}
    plain: Identity = json.loads(json.dumps(found, default=str))
    return plain


def _differences(ours: Identity, theirs: Identity) -> str:
    """What is not the same, in words; a setting that an older version did not have is one that was not given."""

    def shown(identity: Identity, key: str) -> Any:
        value = identity.get(key)
        return "null" if value is None else value

    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    return ", ".join(f"{key}: {shown(theirs, key)} there, {shown(ours, key)} here" for key in keys)


def claim(run: Run, ours: Identity, resuming: bool) -> None:
    """Checks that a run may write to its folder.

    Raises:
        UserError: The name is none for a folder; or the folder belongs to another run, or holds an unfinished run that
            a fresh start would overwrite.
    """
    parts = run.name.split("/")
    if len(parts) > 2 or not all(map(is_folder_name, parts)):
        raise UserError(
            f"--run {run.name}: not the name of a folder, nor of one inside another; give NAME or GROUP/NAME without "
            "leading dots"
        )
    _check_nesting(run)
    if not run.folder.exists() or set(run.folder.iterdir()) <= {run.predictions}:
        return
    fix = "give this run a name with --run NAME, or remove the folder"
    theirs = run.owner()
    if theirs is None:
        raise UserError(f"--run {run.name}: {run.folder} was not made by lightgpt2; {fix}")
    if differences := _differences(ours, theirs):
        raise UserError(f"--run {run.name}: {run.folder} belongs to another run ({differences}); {fix}")
    if not resuming and unfinished(run, ours):
        raise UserError(
            f"--run {run.name}: {run.folder} holds an unfinished run; resume it with --ckpt_path last, or {fix}"
        )


def check_owner(run: Run, ours: Identity) -> None:
    """Checks that the model in a run's folder is the one that the configuration describes.

    Raises:
        UserError: It is another run's, or nobody's.
    """
    theirs = run.owner()
    if theirs is None:
        raise UserError(
            f"--run {run.name}: {run.folder} was not made by lightgpt2; give --ckpt_path {run.model} to score it"
        )
    if differences := _differences(ours, theirs):
        raise UserError(
            f"--run {run.name}: the model in {run.folder} was made with other settings ({differences}); give "
            f"those, or --ckpt_path {run.model} to score it with these"
        )


def is_folder_name(name: str) -> bool:
    """Whether a name is that of a visible folder, and no path."""
    return bool(name) and Path(name).name == name and not name.startswith(".")


def _check_nesting(run: Run) -> None:
    """Refuses a run inside the folder of another, and one around others: none could be removed without the other."""
    inside = sorted(path.parent.name for path in run.folder.glob("*/config.yaml"))
    if inside:
        raise UserError(
            f"--run {run.name}: {run.folder} holds other runs ({', '.join(inside)}); give this run another name with "
            "--run NAME"
        )
    if "/" in run.name and (run.folder.parent / "config.yaml").exists():
        raise UserError(
            f"--run {run.name}: {run.folder.parent} is the folder of a run itself; give this run another GROUP"
        )


def unfinished(run: Run, ours: Identity) -> bool:
    """Whether a run's newest checkpoint is of another step than its model, or there is no model yet.

    Args:
        run: The run.
        ours: Its identity.
    """
    from lightgpt2.models import ledger  # here, since it takes seconds and who only asks where a run lies does without

    if not run.last.exists():
        return False
    step, problem = _inspect(run.last, ours)
    entries = ledger.read(str(run.model))
    return not run.model.exists() or (problem is None and bool(entries) and entries[-1]["steps"] != step)


def _inspect(path: Path, ours: Identity) -> tuple[int, str | None]:
    """Optimizer step of a checkpoint, and what is wrong with it if anything is."""
    import torch  # here, since it takes seconds and who only asks where a run lies does without

    if not path.is_file():
        return 0, "does not exist"
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not compare the checksums that it writes
            if archive.testzip() is not None:
                return 0, "is damaged"
        # Memory-mapped: of the tensors only the tables of contents are read. Never runs code.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        theirs, step = checkpoint["run"], int(checkpoint["global_step"])
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ):
        return 0, "is truncated or was not written by lightgpt2"
    if differences := _differences(ours, theirs):
        return 0, f"is of another run ({differences})"
    return step, None


def find_checkpoint(run: Run, wanted: str, ours: Identity) -> tuple[Path | None, int, list[str]]:
    """The checkpoint file that `--ckpt_path` means.

    Args:
        run: The run.
        wanted: `last`, `best`, or the path of a checkpoint.
        ours: Identity of the run that wants to load it.

    Returns:
        Its path, or nothing where a run that has not saved yet is to go on; its optimizer step; lines to tell the person.

    Raises:
        UserError: There is no usable checkpoint.
    """
    if wanted not in ("last", "best"):
        step, problem = _inspect(Path(wanted), ours)
        if problem:
            raise UserError(f"--ckpt_path: {wanted} {problem}; give last, best, or the checkpoint of this run")
        return Path(wanted), step, []
    candidates = [run.last, run.best] if wanted == "last" else [run.best]
    if not any(path.exists() for path in candidates):
        if wanted == "best" or run.model.exists():
            raise UserError(f"--ckpt_path: {run.folder} holds no {wanted}.ckpt; run fit first")
        return None, 0, [f"{run.folder} holds no checkpoint yet: starting from the beginning"]
    notes: list[str] = []
    for path in candidates:
        step, problem = _inspect(path, ours)
        if problem is None:
            if notes:
                notes.append(f"going on from {path} (step {step})")
            return path, step, notes
        notes.append(f"{path} {problem}")
    raise UserError(f"--ckpt_path: no usable checkpoint: {'; '.join(notes)}. Start anew with another --run")
