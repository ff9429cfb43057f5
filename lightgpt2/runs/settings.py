"""A configuration as plain YAML gives it: read a section, change it by dotted keys, list it by dotted keys."""

import copy
from typing import Any

from lightgpt2.errors import Problem

Settings = dict[str, Any]

_SET_BY_PIPELINE = ("run", "config", "ckpt_path")


def section(settings: Settings, *keys: str) -> Settings:
    """A section of a configuration; empty if it is missing or not a section."""
    for key in keys:
        found = settings.get(key)
        settings = found if isinstance(found, dict) else {}
    return settings


def override(settings: Settings, changes: Settings) -> list[Problem]:
    """Merge values into the configuration of a stage; returns what is wrong with the keys."""
    free = {key: value for key, value in changes.items() if key not in _SET_BY_PIPELINE}
    taken = [Problem(key, "the pipeline sets it itself", "remove it") for key in changes if key not in free]
    return taken + merge(settings, free)


def merge(settings: Settings, changes: Settings) -> list[Problem]:
    """Put values into a configuration by their dotted keys, as on the command line: without `init_args`.

    A mapping is merged into the one that is there, unless it names another class or kind of model. Returns what is wrong with
    the keys.
    """
    found = [_merge(settings, str(key), value) for key, value in changes.items()]
    return [problem for problem in found if problem]


def _merge(settings: Settings, key: str, value: Any) -> Problem | None:
    *parents, last = key.split(".")
    if not all([*parents, last]):
        return Problem(key, "not a dotted key", "write it as on the command line, for example trainer.max_steps")
    for depth, parent in enumerate(parents, start=1):
        above = _arguments(settings, parent)
        settings = above[parent] = {} if above.get(parent) is None else above[parent]
        if not isinstance(settings, dict):
            name = ".".join(parents[:depth])
            return Problem(key, f"{name} is {settings!r} and has no keys", f"give {name} as a whole")
    _put(settings, last, value)
    return None


def _put(settings: Settings, key: str, value: Any) -> None:
    settings = _arguments(settings, key)
    old, kinds = settings.get(key), ("class_path", "model_type")
    if isinstance(old, dict) and isinstance(value, dict) and all(old.get(k) == value.get(k, old.get(k)) for k in kinds):
        for name, inner in value.items():
            _put(old, name, inner)
    else:
        settings[key] = copy.deepcopy(value)


def _arguments(settings: Settings, key: str) -> Settings:
    """The section itself, or its `init_args` if the key belongs there."""
    if "class_path" in settings and key not in ("class_path", "init_args", "dict_kwargs"):
        if not isinstance(settings.get("init_args"), dict):
            settings["init_args"] = {}
        settings = settings["init_args"]
    return settings


def flat(settings: Settings, prefix: str = "", lists: bool = False) -> Settings:
    """Values by their dotted keys, without `init_args`; with `lists` also inside lists: `trainer.callbacks.1.amount`."""
    found: Settings = {}
    for key, value in settings.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}" if prefix else str(key)
        if lists and isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value, start=1)}
        found |= flat(value, name, lists) if isinstance(value, dict) and value else {name: value}
    return found
