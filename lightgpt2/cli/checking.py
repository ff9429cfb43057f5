"""Every mistake in the form of a configuration at once, before anything is imported that takes time.

Nothing is refused here that the full parser would accept: what the sources do not say is left to it.
"""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lightgpt2.cli.schema import Section, Setting, UnknownError, names_in, settings_of, union
from lightgpt2.data.corpora import _READERS
from lightgpt2.errors import Problem, UserError
from lightgpt2.runs.configs import find_config
from lightgpt2.runs.settings import override, section

TRAINER = "lightning.pytorch.Trainer"
CHECKPOINT = "lightgpt2.callbacks.checkpointing.Checkpointing"
_CONFIG = ("--config", "-c")
_SETTINGS = {
    "seed_everything": Setting((bool, int)),
    "trainer": Setting((Section(TRAINER, data=True),)),
    "model": Setting((Section("lightgpt2.methods.method.Method"),), required=True),
    "data": Setting((Section("lightning.pytorch.LightningDataModule"),), required=True),
    "run": Setting((str, NoneType)),
    "needs": Setting((dict[str, str],)),
    "checkpoint": Setting((Section(CHECKPOINT, data=True),)),
    **dict.fromkeys(("config", "ckpt_path", "verbose", "return_predictions"), Setting()),
}
_SOURCES = {"model": "a hub id, a model folder or a .gguf file", "data": "a file, a folder or a hub id"}
_SOURCE_NAMES = ("model", "teacher", "student", "source", "tokenizer")  # settings that may be the path of what is read


def resolve_configs(args: list[str]) -> list[str]:
    """Command-line arguments with every configuration given by its path, as a separate argument."""
    resolved: list[str] = []
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag in _CONFIG and equals:
            resolved += [flag, str(find_config(value))]
        else:
            resolved.append(str(find_config(arg)) if i and args[i - 1] in _CONFIG else arg)
    return resolved


def check(args: list[str], models: bool = True) -> list[str]:
    """Checks the form of a verb's settings, and that the files and folders that they name exist.

    Args:
        args: The command line, the verb first.
        models: False where the models that the settings name are made later.

    Returns:
        The command line with every configuration given by its path.

    Raises:
        UserError: With every mistake.
    """
    args = resolve_configs(args)
    if not any(arg.split("=")[0].endswith((".help", "--help", "--print_config")) or arg == "-h" for arg in args):
        settings = _read(args[1:])
        problems = [*_fields("", settings, _SETTINGS, "lightgpt2 fit --help")]
        for name, what in _SOURCES.items():
            if models or name != "model":
                problems += _missing(name, settings.get(name), what, section(settings, "needs"))
        if problems:
            raise UserError(problems)
    return args


# -- what is given ---------------------------------------------------------------------------------------------------


def _read(args: list[str]) -> dict[str, Any]:
    """The settings of configurations and options, later ones over earlier ones."""
    settings: dict[str, Any] = {}
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        following = args[i + 1] if i + 1 < len(args) and not args[i + 1].startswith("--") else None
        given = value if equals else following
        if flag in _CONFIG and given is not None:
            override(settings, yaml.safe_load(Path(given).read_text(encoding="utf-8")))
        elif flag in ("--model", "--data") and given is not None and "{" not in given:
            kept = section(settings, flag[2:], "init_args")  # as the parser does: those that the new class has too
            known = settings_of(given) or kept
            settings[flag[2:]] = {"class_path": given, "init_args": {k: v for k, v in kept.items() if k in known}}
        elif flag.startswith("--") and not flag.endswith("+") and given is not None:
            override(settings, {flag[2:]: given})  # what goes into a list is left to the parser
    return settings


# -- what is wrong with it -------------------------------------------------------------------------------------------


def _fields(key: str, values: dict[str, Any], known: dict[str, Setting], page: str) -> Iterator[Problem]:
    """What is wrong with a group of settings; `page` is the command that describes them."""
    for name, value in values.items():
        inside = f"{key}.{name}" if key else str(name)
        if name in known:
            yield from _value(inside, value, known[name], page if key else f"lightgpt2 fit --{name}.help")
        else:
            yield Problem(
                inside, "no such key", f"{near} See {page}" if (near := _near(str(name), known)) else f"see {page}"
            )
    for name, setting in known.items():
        if setting.required and name not in values:
            yield Problem(f"{key}.{name}" if key else name, "required, but not given")


def _value(key: str, value: Any, setting: Setting, page: str) -> Iterator[Problem]:
    sections = [each for each in setting.types if isinstance(each, Section)]
    others = [each for each in setting.types if not isinstance(each, Section)]
    for each in value if isinstance(value, list) else []:
        if isinstance(each, dict) and "class_path" in each:
            yield from _chosen(
                f"{key}.{str(each['class_path']).rpartition('.')[2]}", each, f"lightgpt2 fit --{key}.help"
            )
    if isinstance(value, dict) and "class_path" in value:
        yield from _chosen(key, value, page)
    elif others and not sections:
        if not fits(value, union(others)):
            yield Problem(key, f"must be {describe(union(others))}, got {_shown(value)}")
    elif len(sections) == 1 and not set(others) - {NoneType}:
        yield from _group(key, value, sections[0], page) if value is not None or not others else ()


def _group(key: str, value: Any, section: Section, page: str) -> Iterator[Problem]:
    if isinstance(value, str) and (not section.data or Path(value).is_file()):
        yield from [] if section.data else _chosen(key, {"class_path": value}, page)
        return
    loaded = yaml.safe_load(value) if isinstance(value, str) else value
    if not isinstance(loaded, dict):
        fix = "give its settings, or remove it"
        yield Problem(key, f"must be a group of settings, got {_shown(value)}", fix)
    elif section.data and (known := settings_of(section.path)) is not None:
        yield from _fields(key, loaded.get("init_args", loaded), known, page)


def _chosen(key: str, value: dict[str, Any], page: str) -> Iterator[Problem]:
    """What is wrong with a class and its settings."""
    path = str(value["class_path"])
    module, _, name = path.rpartition(".")
    known = settings_of(path)
    if known is not None:
        yield from _fields(key, value.get("init_args") or {}, known, f"{page} {path}" if page.count(" ") == 2 else page)
    elif path.startswith("lightgpt2."):
        try:
            names = {each for each in names_in(module) if each[0].isupper()}
        except UnknownError:
            names = set()
        if name not in names:
            yield Problem(key, f"there is no {path}", _near(name, names) or "give the class path of one that there is")


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]}?" if close else ""


def _missing(key: str, value: Any, what: str, needs: dict[str, str]) -> Iterator[Problem]:
    """The files and folders that are not there, of the settings that may be one."""
    for name, each in value.items() if isinstance(value, dict) else ():
        inside = key if name in ("init_args", "dict_kwargs") else f"{key}.{name}"
        if isinstance(each, str) and name in _SOURCE_NAMES and each not in needs and _is_path(each):
            if not Path(each).expanduser().exists():
                yield Problem(inside, f"{each} does not exist", f"give {what}")
        else:
            yield from _missing(inside, each, what, needs)


def _is_path(text: str) -> bool:
    return text.startswith((".", "/", "~", "checkpoints/")) or Path(text).suffix in (*_READERS, ".gguf")


def fits(value: Any, kind: Any) -> bool:
    """True if jsonargparse takes a value for a type."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        parser.parse_object({"value": value})
    except ArgumentError:
        return False
    return True


# -- in words --------------------------------------------------------------------------------------------------------

_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping", list: "a list",
    NoneType: "null",
}  # fmt: skip


def describe(kind: Any) -> str:
    """A type in the words of YAML.

    Args:
        kind: `PositiveInt | None`, say, which is "a whole number >0 or null".
    """
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inside))}" if len(inside) > 1 else str(inside[0])
    if origin is list:
        return f"a list of {describe(inside[0]).removeprefix('a ')}s".replace("texts", "text")
    if inside and origin not in (dict, tuple):
        return " or ".join(dict.fromkeys(map(describe, inside)))
    if (
        isinstance(kind, type)
        and issubclass(kind, int | float)
        and (rule := (kind.__doc__ or "").partition("to be ")[2])
    ):
        return f"{_WORDS[int if issubclass(kind, int) else float]} {rule}"
    return _WORDS.get(origin or kind, getattr(kind, "__name__", str(kind)))


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
