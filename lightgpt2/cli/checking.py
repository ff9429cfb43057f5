"""Every mistake in the form of a configuration at once, before anything is imported that takes time.

Nothing is refused here that the full parser would accept: what the sources do not say is left to it.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import restricted_number_type

from lightgpt2.cli.schema import Section, Setting, UnknownError, names_in, settings_of, union
from lightgpt2.data.readers import kind
from lightgpt2.errors import Problem, UserError, refuse
from lightgpt2.runs.configs import load_config
from lightgpt2.runs.settings import override, section

TRAINER = "lightning.pytorch.Trainer"
CHECKPOINT = "lightgpt2.callbacks.checkpointing.Checkpointing"
_CONFIG = ("--config", "-c")
_SEED = restricted_number_type(
    "Seed", int, [(">=", 0), ("<", 2**32)], docstring="restricted to be from 0 to 4294967295"
)
_SETTINGS = {
    "seed_everything": Setting((bool, _SEED)),
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
    args, settings = _read(args)
    if not any(arg.split("=")[0].endswith((".help", "--help", "--print_config")) or arg == "-h" for arg in args):
        problems = [*_fields("", settings, _SETTINGS, "lightgpt2 fit --help")]
        for name, what in _SOURCES.items():
            if models or name != "model":
                problems += _missing(name, settings.get(name), what, section(settings, "needs"))
        refuse(problems)
    return args


def _read(args: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments with every configuration given by its path, and the settings that they give, later over earlier ones."""
    resolved, settings = [*args], dict[str, Any]()
    for place, (arg, following) in enumerate(zip(args, [*args[1:], "--"], strict=True)):
        flag, equals, value = arg.partition("=")
        given = value if equals else following
        if not flag.startswith("-") or flag.endswith("+") or (given.startswith("--") and not equals):
            continue  # what goes into a list is left to the parser
        if flag in _CONFIG:
            path, values = load_config(given)
            resolved[place if equals else place + 1] = f"{flag}={path}" if equals else str(path)
            override(settings, values)
        elif flag in ("--model", "--data") and "{" not in given:
            kept = section(settings, flag[2:], "init_args")  # as the parser does: those that the new class has too
            known = settings_of(given) or kept
            settings[flag[2:]] = {"class_path": given, "init_args": {k: v for k, v in kept.items() if k in known}}
        elif flag.startswith("--"):
            override(settings, {flag[2:]: given})
    return resolved, settings


# -- what is wrong with it -------------------------------------------------------------------------------------------


def _fields(key: str, values: dict[str, Any], known: dict[str, Setting], page: str) -> Iterator[Problem]:
    """What is wrong with a group of settings; `page` is the command that describes them."""
    inside = f"{key}." if key else ""
    for name, value in values.items():
        if name in known:
            yield from _value(f"{inside}{name}", value, known[name], page if key else f"lightgpt2 fit --{name}.help")
        else:
            near = _near(str(name), known)
            yield Problem(f"{inside}{name}", "no such key", f"{near} See {page}" if near else f"see {page}")
    for name, setting in known.items():
        if setting.required and name not in values:
            yield Problem(f"{inside}{name}", "required, but not given")


def _value(key: str, value: Any, setting: Setting, page: str) -> Iterator[Problem]:
    sections = [each for each in setting.types if isinstance(each, Section)]
    others = [each for each in setting.types if not isinstance(each, Section)]
    for each in value if isinstance(value, list) else []:
        if isinstance(each, dict) and "class_path" in each:
            name = str(each["class_path"]).rpartition(".")[2]
            yield from _chosen(f"{key}.{name}", each, f"lightgpt2 fit --{key}.help")
    if isinstance(value, dict) and "class_path" in value:
        yield from _chosen(key, value, page)
    elif others and not sections:
        try:
            typed(key, value, union(others))
        except UserError as error:
            yield from error.problems
    elif len(sections) == 1 and (not others or (others == [NoneType] and value is not None)):
        yield from _group(key, value, sections[0], page)


def _group(key: str, value: Any, section: Section, page: str) -> Iterator[Problem]:
    if isinstance(value, str) and not section.data:
        yield from _chosen(key, {"class_path": value}, page)
    elif not isinstance(value, str) or not Path(value).is_file():
        loaded = yaml.safe_load(value) if isinstance(value, str) else value
        if not isinstance(loaded, dict):
            yield Problem(key, f"must be a group of settings, got {_shown(value)}", "give its settings, or remove it")
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
        names = set[str]()
        with suppress(UnknownError):
            names = {each for each in names_in(module) if each[0].isupper()}
        if name not in names:
            yield Problem(key, f"there is no {path}", _near(name, names) or "give the class path of one that there is")


def _near(name: str, known: Iterable[str]) -> str:
    return "".join(f"did you mean {close}?" for close in difflib.get_close_matches(name, known, 1))


def _missing(key: str, value: Any, what: str, needs: dict[str, str]) -> Iterator[Problem]:
    """The files and folders that are not there, of the settings that may be one."""
    for name, each in value.items() if isinstance(value, dict) else ():
        inside = key if name in ("init_args", "dict_kwargs") else f"{key}.{name}"
        if not isinstance(each, str):
            yield from _missing(inside, each, what, needs)
        elif name in _SOURCE_NAMES and each not in needs and _is_path(each) and not Path(each).expanduser().exists():
            yield Problem(inside, f"{each} does not exist", f"give {what}")


def _is_path(text: str) -> bool:
    return text.startswith((".", "/", "~", "checkpoints/")) or bool(kind(Path(text))) or text.endswith(".gguf")


def typed(key: str, value: Any, kind: Any, fix: str = "") -> Any:
    """A value as jsonargparse takes it for a type.

    Raises:
        UserError: It does not.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        return parser.parse_object({"value": value}).value
    except ArgumentError as error:
        raise UserError([Problem(key, f"must be {describe(kind)}, got {_shown(value)}", fix)]) from error


# -- in words --------------------------------------------------------------------------------------------------------

_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping", list: "a list",
    NoneType: "null",
}  # fmt: skip


def describe(kind: Any) -> str:
    """A type in the words of YAML: `PositiveInt | None` is "a whole number >0 or null"."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inside))}" if len(inside) > 1 else str(inside[0])
    if origin is list and get_origin(inside[0]) is Literal:
        return f"a list of {', '.join(map(str, get_args(inside[0])))}"
    if origin is list:
        return f"a list of {describe(inside[0]).removeprefix('a ')}s".replace("texts", "text")
    if inside and origin not in (dict, tuple):
        return " or ".join(dict.fromkeys(map(describe, inside)))
    if isinstance(kind, type) and issubclass(kind, int | float) and "restricted to be " in (kind.__doc__ or ""):
        words = _WORDS[int if issubclass(kind, int) else float]
        return f"{words} {(kind.__doc__ or '').partition('restricted to be ')[2]}"
    return _WORDS.get(origin or kind, getattr(kind, "__name__", str(kind)))


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
