"""Every mistake in the form of a configuration at once, before anything is imported that takes time.

Nothing is refused here that the full parser would accept: what the sources do not say is left to it.
"""

import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import restricted_number_type

from lightgpt2.cli.schema import Section, Setting, UnknownError, item, names_in, settings_of, union
from lightgpt2.cli.trainer_settings import LoggerName
from lightgpt2.data.readers import kind
from lightgpt2.errors import Problem, UserError, cut, refuse
from lightgpt2.models.files import exists, is_file
from lightgpt2.models.vocabulary import is_unicode
from lightgpt2.runs.configs import load_config
from lightgpt2.runs.settings import merge, section
from lightgpt2.runs.yaml_text import YamlError, load_yaml

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
    "logger": Setting((LoggerName, NoneType)),
    "needs": Setting((dict[str, str],)),
    "checkpoint": Setting((Section(CHECKPOINT, data=True),)),
    **dict.fromkeys(("config", "ckpt_path", "verbose", "return_predictions"), Setting()),
}
# What a mapping that chooses a class may hold.
_CLASS = {
    "class_path": Setting((str,), required=True),
    **dict.fromkeys(("init_args", "dict_kwargs"), Setting((dict,))),
}
_SOURCES = {"model": "a hub id, a model folder or a .gguf file", "data": "a file, a folder or a hub id"}
_WRITERS = ("generated_by",)  # settings of the data that name a model
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
        problems = [*_fields("", settings, _SETTINGS, "lightgpt2 fit --help"), *_unfit("", settings)]
        for name, what in _SOURCES.items():
            if models or name != "model":
                problems += _missing(name, settings.get(name), what, section(settings, "needs"))
        if models:
            problems += _missing("data", settings.get("data"), _SOURCES["model"], section(settings, "needs"), _WRITERS)
        refuse(dict.fromkeys(problems))
    return args


def _read(args: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments with every configuration given by its path, and the settings that they give, later over earlier ones."""
    resolved, settings, lists = [*args], dict[str, Any](), list[str]()
    for place, (arg, following) in enumerate(zip(args, [*args[1:], "--"], strict=True)):
        flag, equals, value = arg.partition("=")
        given = value if equals else following
        lists += [f"{flag[:-1]}."] if flag.endswith("+") else []
        into_list = flag.endswith("+") or flag.startswith(tuple(lists))  # which is left to the parser
        if not flag.startswith("-") or into_list or (given.startswith("--") and not equals):
            continue
        if flag in _CONFIG:
            path, values = load_config(given)
            resolved[place if equals else place + 1] = f"{flag}={path}" if equals else str(path)
            merge(settings, values)
        elif flag in ("--model", "--data") and "{" not in given:
            kept = section(settings, flag[2:], "init_args")  # as the parser does: those that the new class has too
            known = settings_of(given) or kept
            settings[flag[2:]] = {"class_path": given, "init_args": {k: v for k, v in kept.items() if k in known}}
        elif flag.startswith("--"):
            merge(settings, {flag[2:]: given})
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
    if value in (None, "null") and NoneType in setting.types:
        return
    sections = [each for each in setting.types if isinstance(each, Section)]
    items = [each for each in setting.types if item(each)]
    others = [each for each in setting.types if each not in sections and each not in items]
    classes = items or any(not each.data for each in sections)
    chosen = isinstance(value, dict) and "class_path" in value and (sections or not setting.types)
    if isinstance(value, list) and (items or not setting.types):
        section = item(items[0]) if items else None
        for number, each in enumerate(value, start=1):
            if section and section.data:
                yield from _group(f"{key}.{number}", each, section, f"lightgpt2 fit --{key}.help")
            elif items or (isinstance(each, dict) and "class_path" in each):
                yield from _item(key, number, each, f"lightgpt2 fit --{key}.help")
    elif isinstance(value, dict) and (chosen or (classes and "(" not in setting.default)):
        yield from _chosen(key, value, page)
    elif len(sections) == 1 and not items and not {*others} - {NoneType}:
        yield from _group(key, value, sections[0], page)
    elif others and not (classes and isinstance(value, dict | str)):  # where a text may be the path of a class
        try:
            typed(key, value, union(others), also=" or a group of settings" if classes else "")
        except UserError as error:
            yield from error.problems


def _item(key: str, number: int, value: Any, page: str) -> Iterator[Problem]:
    """What is wrong with one of several objects; its key has the name of its class, or its number where there is none."""
    chosen = {"class_path": value} if isinstance(value, str) else value
    if not isinstance(chosen, dict):
        yield Problem(f"{key}.{number}", f"must be a group of settings, got {_shown(value)}", "give a class_path")
        return
    path = chosen.get("class_path")
    name = path.rpartition(".")[2] if isinstance(path, str) else str(number)
    yield from _chosen(f"{key}.{name}", chosen, page)


def _group(key: str, value: Any, section: Section, page: str) -> Iterator[Problem]:
    if isinstance(value, str) and not section.data:
        yield from _chosen(key, {"class_path": value}, page)
    elif not isinstance(value, str) or not is_file(Path(value)):
        try:
            loaded = load_yaml(value) if isinstance(value, str) else value
        except YamlError:
            loaded = value
        if not isinstance(loaded, dict):
            yield Problem(key, f"must be a group of settings, got {_shown(value)}", "give its settings, or remove it")
        elif section.data and (known := settings_of(section.path)) is not None:
            yield from _fields(key, loaded.get("init_args", loaded), known, page)


def _chosen(key: str, value: dict[str, Any], page: str) -> Iterator[Problem]:
    """What is wrong with a class and its settings."""
    own = [*_fields(key, value, _CLASS, page)]
    yield from own
    if own:
        return
    path = value["class_path"]
    if not all(map(str.isidentifier, path.split("."))):
        yield Problem(
            f"{key}.class_path", f"must be the path of a class, got {_shown(path)}", "give package.module.Class"
        )
        return
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


def _unfit(key: str, value: Any) -> Iterator[Problem]:
    """The values that no setting can have, wherever they are."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _unfit(key if name == "init_args" else f"{key}.{name}" if key else str(name), each)
    elif isinstance(value, list):
        for each in value:
            yield from _unfit(key, each)
    elif what := _limit(value) or (key.endswith(("path", "dir")) and _unnameable(str(value))):
        yield Problem(key, f"{what}, got {_shown(value)}")


def _limit(value: Any) -> str:
    """The limit that a value is beyond: that of a ledger's numbers, of the processor's, of names."""
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "must be below 2^63"
    if isinstance(value, str) and not is_unicode(value):
        return "must be valid Unicode"
    return "must hold no NUL character" if isinstance(value, str) and "\0" in value else ""


def _unnameable(path: str) -> str:
    """The limit of file systems that a path is beyond."""
    names = [len(name.encode()) for name in path.split("/")]
    too_long = max(names) > 255 or sum(names) + len(names) > 4096
    return "must be a path of at most 4096 bytes, each of its names at most 255" if too_long else ""


def _near(name: str, known: Iterable[str]) -> str:
    return "".join(f"did you mean {close}?" for close in difflib.get_close_matches(name, known, 1))


def _missing(
    key: str, value: Any, what: str, needs: dict[str, str], names: tuple[str, ...] = _SOURCE_NAMES
) -> Iterator[Problem]:
    """The files and folders that are not there, of the settings that may be one."""
    for name, each in value.items() if isinstance(value, dict) else ():
        inside = key if name in ("init_args", "dict_kwargs") else f"{key}.{name}"
        if not isinstance(each, str):
            yield from _missing(inside, each, what, needs, names)
        elif name in names and each not in needs and _is_path(each) and not exists(each):
            yield Problem(inside, f"{cut(each)} does not exist", f"give {what}")


def _is_path(text: str) -> bool:
    too_long = len(text) > 255  # for a hub id
    return (
        too_long or text.startswith((".", "/", "~", "checkpoints/")) or bool(kind(Path(text))) or text.endswith(".gguf")
    )


def typed(key: str, value: Any, kind: Any, fix: str = "", also: str = "") -> Any:
    """A value as jsonargparse takes it for a type; `also` names what else it may be, in the message.

    Raises:
        UserError: It does not.
    """
    if wrong := _limit(value):
        raise UserError([Problem(key, f"{wrong}, got {_shown(value)}", fix)])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    wrong = f"must be {describe(kind)}{also}"
    with suppress(ArgumentError, OverflowError):  # whose words are those of Python's types
        found = parser.parse_object({"value": value}).value
        # To the parser null means "not given", and stays in the place of a value.
        fits = found is not None or kind is Any or NoneType in (kind, *get_args(kind))
        wrong = _limit(found) if fits else wrong
    if wrong:
        raise UserError([Problem(key, f"{wrong}, got {_shown(value)}", fix)])
    return found


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
    return cut("null" if value is None else repr(value))
