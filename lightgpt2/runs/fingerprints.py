"""What a stage was made from and what it made, by content: whether it must be made again, and why."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightgpt2 import __version__
from lightgpt2.errors import UserError
from lightgpt2.models.adapters import base_of, is_adapter
from lightgpt2.models.files import sha256_file
from lightgpt2.models.ledger import FILE as LEDGER
from lightgpt2.runs.recipes import Recipe, Stage, corpus
from lightgpt2.runs.run import Run
from lightgpt2.runs.settings import Settings, flat, section

Parts = dict[str, Any]
Record = dict[str, Any]

_ELSEWHERE = ("needs", "run")  # say where things lie; what lies there is compared by its content
_TEXT = ("data.source", "data.text_field", "data.separator")


def parts(recipe: Recipe, stage: Stage) -> Parts:
    """All that a stage is made from.

    Args:
        recipe: The recipe.
        stage: One of its stages.

    Returns:
        `settings`: the configuration by dotted keys, without paths of inputs. `inputs`: what it takes from other stages, and
        `sources`: from other folders and files, by key, with the digest of what lies there. `text`: the fingerprint of the
        corpus. `lightgpt2`: the version.

    Raises:
        UserError: The folder of an input is not there.
    """
    settings = flat({key: value for key, value in stage.settings.items() if key not in _ELSEWHERE})
    kept = {key: value for key, value in settings.items() if key not in stage.inputs}
    text = corpus(stage.settings)
    found = {
        "settings": kept,
        "inputs": {key: _input(recipe, stage, folder) for key, folder in stage.inputs.items()},
        "sources": sources(stage),
        "text": text.fingerprint() if text else None,
        "lightgpt2": __version__,
    }
    plain: Parts = json.loads(json.dumps(found, default=str))  # as it is read again
    return plain


def fingerprint(made_from: Parts) -> str:
    """Digest of what a stage is made from."""
    named = {key: source["sha256"] for key, source in made_from["inputs"].items()}
    return hashlib.sha256(json.dumps({**made_from, "inputs": named}, sort_keys=True).encode()).hexdigest()


def _input(recipe: Recipe, stage: Stage, folder: str) -> dict[str, str]:
    digest = weights(recipe.folder / folder)
    if digest is None:
        parent = folder.partition("/")[0]
        made = ", ".join(sorted(outputs(recipe.run(parent).folder))) or "nothing"
        raise UserError(
            f"stages.{stage.name}.from: {recipe.folder / folder} holds no weights; {parent} made {made}: name one of these "
            f"as {parent}/FOLDER"
        )
    return {"folder": folder, "sha256": digest}


def sources(stage: Stage) -> dict[str, str | None]:
    """Digests of the local models and tokenizers that no stage makes; none for one that is yet to be made (`needs`)."""
    needs = section(stage.settings, "needs")
    named = {f"model.{key}": value for key, value in section(stage.settings, "model", "init_args").items()}
    named["data.tokenizer"] = section(stage.settings, "data", "init_args").get("tokenizer")
    found: dict[str, str | None] = {}
    for key, name in named.items():
        if isinstance(name, str) and key not in stage.inputs:
            path = Path(name).expanduser()
            if path.exists() or name in needs:
                found[key] = _source(path, key)
    return found


def _source(path: Path, key: str) -> str | None:
    if path.is_file():
        return _digest((_stamp(path),))
    folders = [path, *([Path(base_of(str(path), key))] if is_adapter(str(path)) else [])]
    files = [file for folder in folders for file in sorted(folder.glob("[!.]*")) if file.is_file()]
    stamps = [_stamp(file) for file in files if file.name != LEDGER]  # to which a later benchmark adds
    return _digest(tuple(stamps)) if stamps else None


def weights(folder: Path) -> str | None:
    """Digest of the weight files of a folder: that of the file itself where there is one; none where there is none."""
    files = sorted(folder.glob("*.safetensors"))
    return _digest(tuple(map(_stamp, files))) if files else None


def _stamp(path: Path) -> tuple[str, int, int, int]:
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino


@cache
def _digest(stamps: tuple[tuple[str, int, int, int], ...]) -> str:
    """Digest of files; a stage's output is the next one's input, and is read once as long as it stays what it is."""
    digests = [sha256_file(Path(path)) for path, *_ in stamps]
    if len(digests) == 1:
        return digests[0]
    named = [f"{Path(path).name} {digest}" for (path, *_), digest in zip(stamps, digests, strict=True)]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


def outputs(folder: Path) -> dict[str, str]:
    """The folders of weights that a run has made, with their digests."""
    inside = [path for path in folder.glob("*") if path.is_dir() and not path.name.startswith(".")]
    digests = {path.name: weights(path) for path in inside}
    return {name: digest for name, digest in digests.items() if digest}


def changes(old: Parts, new: Parts) -> list[str]:
    """What has changed since a stage was begun, in words.

    Args:
        old: What it was made from.
        new: What it would be made from now.
    """
    found = _changed_settings(old["settings"], new["settings"])
    text_named = any(reason.partition(":")[0] in _TEXT for reason in found)
    for key in {**old["inputs"], **new["inputs"]}:
        then, now = old["inputs"].get(key), new["inputs"].get(key)
        if not then or not now:
            found.append(f"{key}: {then['folder'] if then else 'no input'} -> {now['folder'] if now else 'no input'}")
        elif then["sha256"] != now["sha256"]:
            moved = then["folder"] != now["folder"]
            found.append(
                f"{key}: {then['folder']} -> {now['folder']}" if moved else f"its input {now['folder']} has changed"
            )
    for key, digest in new["sources"].items():
        # One that was not there when the stage was begun was made in the course of it, or is needed no more.
        replaced = digest and old["sources"].get(key, digest) not in (None, digest)
        if replaced and old["settings"].get(key) == new["settings"].get(key):
            found.append(f"{key}: {new['settings'][key]} has changed")
    if old["text"] != new["text"] and not text_named:
        found.append("the text has changed")
    if old["lightgpt2"] != new["lightgpt2"]:
        found.append(f"lightgpt2 {old['lightgpt2']} -> {new['lightgpt2']}")
    return found


def _changed_settings(old: Settings, new: Settings) -> list[str]:
    old, new = _items(old), _items(new)
    keys = [key for key in {**old, **new} if (key in old) != (key in new) or old.get(key) != new.get(key)]
    return [f"{key}: {_shown(old, key)} -> {_shown(new, key)}" for key in keys]


def _items(settings: Settings) -> Settings:
    """Settings with lists of mappings (of callbacks, say) taken apart too: `trainer.callbacks.1.amount`."""
    apart: Settings = {}
    for key, value in settings.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            apart |= _items(flat({f"{key}.{i}": item for i, item in enumerate(value, start=1)}))
        else:
            apart[key] = value
    return apart


def _shown(settings: Settings, key: str) -> str:
    if key not in settings:
        return "not set"
    value = settings[key]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def lost(recorded: dict[str, str], folder: Path) -> list[str]:
    """What has become of the folders of weights that a finished run had made, in words.

    Args:
        recorded: Their digests when it had finished.
        folder: The run's folder.
    """
    now = {name: weights(folder / name) for name in recorded}
    named = {name: "artefact" if name == "model" else f"folder {name}" for name in recorded}
    return [
        f"its {named[name]} {'has changed' if digest else 'is gone'}"
        for name, digest in now.items()
        if digest != recorded[name]
    ]


class Plan(NamedTuple):
    """What is to be done about a stage, and why."""

    action: Literal["skip", "resume", "run"]
    reason: str


def plan(record: Record | None, made_from: Parts, run: Run) -> Plan:
    """What is to be done about a stage whose inputs are there.

    Args:
        record: What the pipeline noted when the stage was begun or finished, if it was.
        made_from: What the stage would be made from now.
        run: Its run.
    """
    if record is None:
        return Plan("run", "not done yet")
    reasons = changes(record["parts"], made_from)
    if record["state"] == "finished":
        reasons += lost(record["outputs"], run.folder)
        return Plan("run", "; ".join(reasons)) if reasons else Plan("skip", "done, and nothing has changed")
    if not reasons and record["parts"]["inputs"] != made_from["inputs"]:  # which a checkpoint holds by their paths
        reasons = ["its input has moved"]
    if reasons:
        return Plan("run", "; ".join(reasons))
    if run.last.exists() or run.best.exists():
        return Plan("resume", "it was interrupted")
    return Plan("run", "it ended before its first checkpoint")
