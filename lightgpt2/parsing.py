"""Reading configurations: shipped ones by their bare name, and all mistakes of one at once."""

import re
import tempfile
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from lightgpt2.errors import UserError

_PACKAGE = Path(__file__).parent
_FLAGS = ("--config", "-c")


def shipped_configs() -> Path:
    """The folder of the configurations that come with the package: inside it, or beside it in a source checkout."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def find_config(name: str) -> Path:
    """A configuration file: a path, or else the bare name of a shipped one.

    Raises:
        UserError: There is no such file, or it is not a mapping in YAML.
    """
    path = Path(name)
    if not path.is_file() and path.parent == Path() and (shipped_configs() / name).is_file():
        path = shipped_configs() / name
    if not path.is_file():
        known = ", ".join(sorted(p.name for p in shipped_configs().glob("*.yaml")))
        raise UserError(f"--config: {name} does not exist; give a path or one that ships with lightgpt2: {known}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config: {name} is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"--config: {name} holds no settings; see {shipped_configs()} for examples")
    return path


def resolve_configs(args: list[str]) -> list[str]:
    """Command-line arguments with every configuration given by its path."""
    resolved = list(args)
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag in _FLAGS and equals:
            resolved[i] = f"{flag}={find_config(value)}"
        elif arg in _FLAGS and i + 1 < len(args):
            resolved[i + 1] = str(find_config(args[i + 1]))
    return resolved


def parse(parser: ArgumentParser, args: list[str]) -> Namespace:
    """Parses arguments and configuration files; reports every mistake in them, not only the first.

    jsonargparse stops at the first. So each mistake is noted and taken out, and the rest parsed again.

    Args:
        parser: A parser that raises instead of exiting.
        args: Arguments, configurations given by path.

    Raises:
        UserError: One line for each mistake.
    """
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        copied = False
        while True:
            try:
                config = parser.parse_args(args)
            except ArgumentError as error:
                key, reason = _locate(str(error.message))
                problems.append(f"{key}: {reason}" if key else reason)
                if not copied:
                    args, copied = _copy_configs(args, Path(scratch)), True
                shorter = _without(args, key)
                if shorter is None:
                    raise UserError(problems) from error
                args = shorter
                continue
            if problems:
                raise UserError(problems)
            return config


def _locate(message: str) -> tuple[str, str]:
    """The key that jsonargparse complains about, without `init_args`, and the reason in one line."""
    unknown = re.search(r"[Uu]nrecognized arguments: (--\S+)", message)
    if unknown:
        return unknown[1].lstrip("-").partition("=")[0], "no such key; see --help"
    # The last problem wins: Optional[...] lists the useless alternative None after it.
    keys = re.findall(r'(?:Parser key|Key) "([^"]+)"', message)
    option = re.search(r"(?:Option|Key) '([^']+)' is not (?:accepted|expected)", message)
    missing = re.search(r'(?:Key|Option) ["\']([^"\']+)["\'] is required', message)
    path = ".".join(key.replace("init_args.", "") for key in keys)
    if option:
        return ".".join(filter(None, [path, option[1]])).replace(".init_args", ""), "no such key; see --help"
    if missing:
        name = missing[1].replace("init_args.", "")
        return "", f"{name if name in path else '.'.join(filter(None, [path, name]))}: required, but not given"
    reasons = re.findall(r"^\s*- (.*)$", message, flags=re.MULTILINE)
    reasons = [r for r in reasons if "NoneType" not in r and "Problem with given class_path" not in r]
    given = re.search(r"Given value: (.*)$", message, flags=re.MULTILINE)
    text = "; ".join(dict.fromkeys(reasons)) or " ".join(re.sub(r'^Parser key "[^"]+":?', "", message).split())
    return path, f"{text} (given: {given[1]})" if given and reasons else text


def _copy_configs(args: list[str], folder: Path) -> list[str]:
    copied = list(args)
    for i, arg in enumerate(args[:-1]):
        if arg in _FLAGS:
            target = folder / f"{i}-{Path(args[i + 1]).name}"
            target.write_text(Path(args[i + 1]).read_text(encoding="utf-8"), encoding="utf-8")
            copied[i + 1] = str(target)
    return copied


def _without(args: list[str], key: str) -> list[str] | None:
    """The arguments with one key taken out, of the command line or else of a copied configuration; None if not found."""
    if not key:
        return None
    for i, arg in enumerate(args):
        name, equals, _ = arg.partition("=")
        if name.startswith("--") and name[2:].replace("init_args.", "") == key:
            return args[:i] + args[i + (1 if equals or i + 1 == len(args) or args[i + 1].startswith("--") else 2) :]
    for i, arg in enumerate(args[:-1]):
        if arg in _FLAGS:
            path = Path(args[i + 1])
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            if _remove(values, key.split(".")):
                path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
                return args
    return None


def _remove(values: Any, keys: list[str]) -> bool:
    """Deletes a nested key, looking through `init_args`; whether it was there."""
    if not isinstance(values, dict):
        return False
    if keys[0] in values:
        if len(keys) == 1:
            del values[keys[0]]
            return True
        return _remove(values[keys[0]], keys[1:])
    return _remove(values.get("init_args"), keys)
