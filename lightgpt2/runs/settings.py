"""A configuration as plain YAML gives it: looking into it, and changing it by dotted keys."""

import copy
from typing import Any

Settings = dict[str, Any]

_SET_BY_PIPELINE = ("run", "config", "ckpt_path")


def section(settings: Settings, *keys: str) -> Settings:
    """A section of a configuration; an empty one where it is missing or is no section."""
    for key in keys:
        found = settings.get(key)
        settings = found if isinstance(found, dict) else {}
    return settings


def override(settings: Settings, changes: Settings) -> list[str]:
    """Puts values into a configuration by their dotted keys, as on the command line: `init_args` is left out.

    A mapping is merged into the one that is there, unless it names another class or kind of model.

    Args:
        settings: The configuration, changed in place.
        changes: The values.

    Returns:
        What is wrong with them, one line each.
    """
    problems = []
    for key, value in changes.items():
        *parents, last = key.split(".") if isinstance(key, str) else [""]
        if key in _SET_BY_PIPELINE:
            problems.append(f"{key}: the pipeline sets it itself; remove it")
        elif not all([*parents, last]):
            problems.append(f"{key}: not a dotted key; write it as on the command line, for example trainer.max_steps")
        else:
            inside: Any = settings
            for depth, parent in enumerate(parents):
                inside = _arguments(inside, parent)
                if inside.get(parent) is None:
                    inside[parent] = {}
                inside = inside[parent]
                if not isinstance(inside, dict):
                    name = ".".join(parents[: depth + 1])
                    problems.append(f"{key}: {name} is {inside!r} and has no keys; give {name} as a whole")
                    break
            else:
                _put(inside, last, value)
    return problems


def _put(settings: Settings, key: str, value: Any) -> None:
    settings = _arguments(settings, key)
    old = settings.get(key)
    if isinstance(old, dict) and isinstance(value, dict) and not _of_another_kind(old, value):
        for name, inner in value.items():
            _put(old, name, inner)
    else:
        settings[key] = copy.deepcopy(value)


def _arguments(settings: Settings, key: str) -> Settings:
    """The section itself, or its `init_args` where the key belongs there."""
    if "class_path" not in settings or key in ("class_path", "init_args", "dict_kwargs"):
        return settings
    if not isinstance(settings.get("init_args"), dict):
        settings["init_args"] = {}
    arguments: Settings = settings["init_args"]
    return arguments


def _of_another_kind(old: Settings, new: Settings) -> bool:
    return any(key in new and new[key] != old.get(key) for key in ("class_path", "model_type"))


def flat(settings: Settings, prefix: str = "") -> Settings:
    """Values by their dotted keys, without `init_args`."""
    found: Settings = {}
    for key, value in settings.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}" if prefix else str(key)
        found |= flat(value, name) if isinstance(value, dict) and value else {name: value}
    return found
