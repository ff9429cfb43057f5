"""Reading configurations: shipped ones by their bare name, and all mistakes of one at once."""

import inspect
import itertools
import re
import tempfile
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from lightgpt2.errors import UserError
from lightgpt2.runs.configs import find_config

_FLAGS = ("--config", "-c")


def resolve_configs(args: list[str]) -> list[str]:
    """Command-line arguments with every configuration given by its path, as an argument of its own."""
    resolved: list[str] = []
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag in _FLAGS and equals:
            resolved += [flag, str(find_config(value))]
        else:
            resolved.append(str(find_config(arg)) if i and args[i - 1] in _FLAGS else arg)
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
                key, found = _locate(str(error.message))
                # What was taken out because of an earlier mistake is missing now; that is no mistake of its own.
                problems += [p for p in found if not any(_within(q, p) for q in problems)]
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


def check_groups(key: str, chosen: Namespace) -> None:
    """Checks that what a class takes a group of settings for is given one: jsonargparse lets anything but text pass.

    Args:
        key: Config key to name in errors.
        chosen: `class_path` and `init_args`.

    Raises:
        UserError: One line for each group that is none.
    """
    parameters = inspect.signature(locate(chosen.class_path)).parameters  # type: ignore[arg-type]
    groups = [name for name, each in parameters.items() if type(each.default).__module__.startswith("lightgpt2.")]
    given = {name: chosen.init_args[name] for name in groups if name in chosen.init_args}
    problems = [
        f"{key}.{name}: {'null' if value is None else repr(value)} is no group of settings; give its settings, or remove it"
        for name, value in given.items()
        if not isinstance(value, Namespace | dict)
    ]
    if problems:
        raise UserError(problems)


def _within(problem: str, other: str) -> bool:
    """Whether a problem is about the same key as another, or about one inside it."""
    return re.match(re.escape(other.partition(":")[0]) + "[.:]", problem) is not None


def _locate(message: str) -> tuple[str, list[str]]:
    """The key to take out because jsonargparse complains about it, without `init_args`; and the problems, a line each.

    The message is an indented tree: under each `Parser key "..."` what is wrong inside it, under each union of types
    why none of them fits. Its leaves are the reasons.
    """
    lines = [line for line in message.splitlines() if not re.match(r"\s*Given value", line)]
    keys = [key for line in lines for key in re.findall(r'^\s*(?:- )?(?:Parser key|Key) "([^"]+)"', line)]
    # A key whose value is taken for the path of a file is named twice.
    keys = [key for key, _ in itertools.groupby(keys)]
    path = ".".join(keys).replace("init_args.", "")
    unknown = re.search(r"[Uu]nrecognized arguments: --(\S+)", message)
    if unknown:
        key = ".".join(filter(None, [path, unknown[1].partition("=")[0]])).replace("init_args.", "")
        return key, [f"{key}: no such key; see --help"]
    option = re.search(r"(?:Group '([^']+)' does not accept option|Option|does not accept option) '([^']+)'", message)
    if option:
        key = ".".join(filter(None, [path, option[1], option[2]])).replace("init_args.", "")
        return key, [f"{key}: no such key; see --help"]
    missing = re.search(r"arguments are required: (.*)", message)
    if missing:  # those of the command itself are named with it: `fit.model`
        names = [f"{path}.{name}" if path else name.partition(".")[2] for name in missing[1].split(", ")]
        return path, [f"{name}: required, but not given" for name in names]
    leaves = [line for line in lines if not _HEADING.match(line)]
    # The alternatives of Optional[...] and of list[...], and a reason that is given without words
    for useless in ("'NoneType'", "Not a valid subclass", "Expected a path but"):
        leaves = [line for line in leaves if useless not in line] or leaves
    found = dict.fromkeys(plain(line).replace('"', "'") for line in leaves)  # in order, each once
    reasons = "; ".join(filter(None, found)) or plain(message)
    given = _given(message, leaves[-1]) if leaves else None
    shown = f" (given: {given})" if given and not re.match(rf"\W?{re.escape(given)}\W", reasons) else ""
    return path, [": ".join(filter(None, [path, f"{reasons}{shown}"]))]


# A line of the tree that only says where the next ones belong, or how classes are written.
_HEADING = re.compile(
    r'\s*(- )?((Parser key|Key) "[^"]+":?$|Problem with given class_path|Does not validate against|Subtypes:|Errors:'
    r"|Subclass types expect|a class path \(str\)|a dict with)"
)
_NOT = {
    "int": "no whole number", "float": "no number", "bool": "neither true nor false", "str": "no text",
    "dict": "no mapping", "list": "no list",
}  # fmt: skip
_PLAINER = (
    (r"a typing\.Literal\[([^]]*)\]", r"one of \1"),
    (r"(?:a )?<class '(?:\w+\.)*(\w+)'>", r"\1"),
    *((rf"Expected {kind}\. Got value: (.*)", rf"\1 is {words}") for kind, words in _NOT.items()),
    *((rf"Expected {kind}$", words) for kind, words in _NOT.items()),
    (r"Expected (one of .*)\. Got value: (.*)", r"\2 is not \1"),
    (r"Not a valid subclass of (\w+)\. Got value: (.*)", r"\2 is no \1; give its class_path and init_args"),
    (r"Not a valid subclass of (\w+)$", r"no \1; give its settings"),
    (r"Expected a dot import path string: (.*)", r"\1 is no group of settings"),
    (r"Unable to load config (.*)", r"\1 is no group of settings"),
    (r"Expected (\w+)$", r"no \1"),
    (r"module '([\w.]+)' has no attribute '(\w+)'", r"there is no \1.\2"),
    (r"Not of type \w+: not an integer", "no whole number"),
    (r"Not of type \w+: (.*) not an integer", r"\1 is no whole number"),
    (r"Not of type \w+: invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number"),
    (r"Not of type \w+: could not convert string to float: (.*)", r"\1 is no number"),
    (r"Not of type \w+: int\(\) argument must be .*", "no whole number"),
    (r"Not of type \w+: does not conform to restriction (.*)", r"not allowed; give a value \1"),
    (r"Not of type \w+: (.*) does not conform to restriction (.*)", r"\1 is not allowed; give a value \2"),
    (r"\bv>=", "of at least "),
    (r"\bv<=", "of at most "),
    (r"\bv>", "above "),
    (r"\bv<", "below "),
)


def plain(text: str) -> str:
    """A line of jsonargparse's in the words of YAML rather than of Python's types."""
    text = " ".join(re.sub(r'^\s*(- )?((Parser key|Key) "[^"]+":)?', "", text).split())
    for pattern, words in _PLAINER:
        text = re.sub(pattern, words, text)
    return text


def _given(message: str, leaf: str) -> str | None:
    """The value that a reason is about, where jsonargparse shows that one and not the whole section around it."""
    indent = len(leaf) - len(leaf.lstrip()) - 2
    values = re.findall(rf"^ {{{max(indent, 0)}}}Given value: (.*)$", message, flags=re.MULTILINE)
    return values[0] if values and not re.match(r"[{\[]|Namespace|NestedArg", values[0]) else None


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
