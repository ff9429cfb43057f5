"""What a stage was made from and what it wrote, by content: whether it must run again, and why."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightgpt2 import __version__
from lightgpt2.errors import UserError
from lightgpt2.models.adapters import base_of, is_adapter
from lightgpt2.models.files import digest
from lightgpt2.models.ledger import FILE as LEDGER
from lightgpt2.models.ledger import Ledger, config_hash
from lightgpt2.runs.recipes import Stage, text
from lightgpt2.runs.run import Run
from lightgpt2.runs.settings import Settings, flat, section

Parts = dict[str, Any]
Record = dict[str, Any]

_ELSEWHERE = ("needs", "run")  # say where things lie; what lies there is compared by its content
_TEXT = ("data.source", "data.text_field", "data.separator", "data.streaming")


def parts(stage: Stage) -> Parts:
    """Everything that a stage is made from: settings by dotted keys, digests of what it takes, the corpus, the version.

    The digests are by key, of what comes from other stages (`inputs`) and from other files and folders (`sources`).
    """
    settings = flat({key: value for key, value in stage.settings.items() if key not in _ELSEWHERE}, lists=True)
    found = {
        "settings": {key: value for key, value in settings.items() if key not in stage.inputs},
        "inputs": {key: _input(stage, folder) for key, folder in stage.inputs.items()},
        "sources": sources(stage),
        "text": [corpus.fingerprint() for corpus in text(stage.settings)],
        "lightgpt2": __version__,
    }
    plain: Parts = json.loads(json.dumps(found, default=str))  # as it is read again
    return plain


def _input(stage: Stage, folder: str) -> dict[str, str]:
    path = stage.run.folder.parent / folder
    if found := content(path):
        return {"folder": folder, "sha256": found}
    parent = path.parent.name
    made = ", ".join(f"{parent}/{name}" for name in sorted(outputs(path.parent))) or "nothing"
    what = f"must be a folder with weights, got {path}"
    raise UserError(f"stages.{stage.name}.from: {what}; {parent} wrote {made}")


def sources(stage: Stage) -> dict[str, str | None]:
    """Digests of the local models and tokenizers that no stage writes; None for one that `needs` is yet to make."""
    data = section(stage.settings, "data", "init_args")
    read = {f"data.{name}": data.get(name) for name in ("tokenizer", "generated_by")}
    named = flat({"model": section(stage.settings, "model"), **read}, lists=True)
    names = {key: name for key, name in named.items() if name and isinstance(name, str) and key not in stage.inputs}
    needs, found = section(stage.settings, "needs"), dict[str, str | None]()
    for key, name in names.items():
        with suppress(OSError, RuntimeError):  # a text that cannot be a path
            path = Path(name).expanduser()
            if name in needs or path.exists():
                found[key] = _source(path, key)
    return found


def _source(path: Path, key: str) -> str | None:
    folders = [path, *([Path(base_of(str(path), key))] if is_adapter(str(path)) else [])]
    files = [file for folder in folders for file in sorted(folder.glob("[!.]*")) if file.is_file()]
    # The ledger is left out: a later benchmark adds to it.
    return _digest([path] if path.is_file() else [file for file in files if file.name != LEDGER])


def content(folder: Path) -> str | None:
    """Digest of what a folder's ledger says of its files, or else of its weight files; None if it has none."""
    files = Ledger.read(folder).files
    return config_hash(files) if files else _digest(sorted(folder.glob("*.safetensors")))


def _digest(files: list[Path]) -> str | None:
    """Digest of files with their names; of one file, its own digest."""
    digests = [digest(file) for file in files]
    if len(files) < 2:
        return digests[0] if files else None
    named = "\n".join(f"{file.name} {each}" for file, each in zip(files, digests, strict=True))
    return hashlib.sha256(named.encode()).hexdigest()


def outputs(folder: Path) -> dict[str, str]:
    """The model folders that a run wrote, with their digests."""
    inside = [path for path in folder.glob("*") if path.is_dir() and not path.name.startswith(".")]
    return {path.name: found for path in inside if (found := content(path))}


def is_record(record: Any) -> bool:
    """True if a value has the shape of what is noted about a stage."""
    try:
        made_from = record["parts"]
        tables = [made_from["settings"], made_from["sources"], made_from["inputs"], record.get("outputs", {})]
        inputs = [*made_from["inputs"].values()]
        texts = [
            record["state"],
            made_from["lightgpt2"],
            *(each[key] for each in inputs for key in ("folder", "sha256")),
        ]
    except (AttributeError, KeyError, TypeError):
        return False
    whole = record["state"] != "finished" or "outputs" in record
    return whole and all(isinstance(t, dict) for t in tables) and all(isinstance(t, str) for t in texts)


def changes(old: Parts, new: Parts) -> list[str]:
    """What differs between what a stage was made from and what it would be made from now, in words."""
    before, after = old["settings"], new["settings"]
    keys = [key for key in {**before, **after} if (key in before, before.get(key)) != (key in after, after.get(key))]
    found = [f"{key}: {_shown(before, key)} -> {_shown(after, key)}" for key in keys]
    nothing = {"folder": "no input", "sha256": ""}
    for key in {**old["inputs"], **new["inputs"]}:
        then, now = old["inputs"].get(key, nothing), new["inputs"].get(key, nothing)
        if then["folder"] == now["folder"] and then["sha256"] != now["sha256"]:
            found.append(f"its input {now['folder']} has changed")
        elif then["sha256"] != now["sha256"]:
            found.append(f"{key}: {then['folder']} -> {now['folder']}")
    for key, now in new["sources"].items():
        # One that was not there when the stage was begun was made in the course of it, or is needed no more.
        earlier = old["sources"].get(key)
        if earlier and now and earlier != now and key not in keys:
            found.append(f"{key}: {after[key]} has changed")
    if old.get("text") != new["text"] and not any(key.startswith(_TEXT) for key in keys):
        found.append("the text has changed")
    if old["lightgpt2"] != new["lightgpt2"]:
        found.append(f"lightgpt2 {old['lightgpt2']} -> {new['lightgpt2']}")
    return found


def _shown(settings: Settings, key: str) -> str:
    if key not in settings:
        return "not set"
    text = settings[key] if isinstance(settings[key], str) else json.dumps(settings[key], ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lost(recorded: dict[str, str], folder: Path) -> list[str]:
    """What has become of the model folders that a finished run wrote, in words."""
    names = {name: "artefact" if name == "model" else f"folder {name}" for name in recorded}
    now = {name: _state(folder / name, found) for name, found in recorded.items()}
    return [f"its {names[name]} {state}" for name, state in now.items() if state]


def _state(folder: Path, recorded: str) -> str | None:
    """What has become of a folder whose record had this digest; None if nothing has."""
    if not folder.is_dir():
        return "is gone"
    try:
        if content(folder) != recorded:
            return "has changed"
        altered = Ledger.read(folder).altered(folder)
    except UserError:
        altered = [LEDGER]
    return f"has changed ({', '.join(altered)})" if altered else None


class Plan(NamedTuple):
    """What to do about a stage, and why."""

    action: Literal["skip", "resume", "run"]
    reason: str


def plan(record: Record | None, made_from: Parts, run: Run) -> Plan:
    """Decide what to do about a stage whose inputs are there, by what was noted when it was begun or finished."""
    if record is None:
        return Plan("run", "not done yet")
    finished = record["state"] == "finished"
    reasons = changes(record["parts"], made_from) + (_lost(record["outputs"], run.folder) if finished else [])
    if finished and not reasons:
        return Plan("skip", "done, and nothing has changed")
    if not reasons and record["parts"]["inputs"] != made_from["inputs"]:  # which a checkpoint holds by their paths
        reasons = ["its input has moved"]
    if not reasons and (run.last.exists() or run.best.exists()):
        return Plan("resume", "it was interrupted")
    return Plan("run", "; ".join(reasons) or "it ended before its first checkpoint")
