"""Recipes: chains of stages in YAML, read whole, with every mistake in them reported at once."""

import re
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from lightgpt2.data.corpora import Corpus, corpora
from lightgpt2.errors import Problem, UserError, refuse
from lightgpt2.runs.configs import load_config, load_recipe
from lightgpt2.runs.run import Run, is_folder_name
from lightgpt2.runs.settings import Settings, flat, override, section

_KEYS = ("name", "config", "from", "overrides")
# What lies beside the folders of the stages: NAME.yaml and pipeline.json; and `model`, which is that of a run.
_NO_STAGE = re.compile(r"model|.*\.(yaml|json)")


@dataclass
class Stage:
    """One stage of a recipe; its name is that of its folder."""

    name: str
    settings: Settings = field(default_factory=dict)  # as `fit` reads it, with the overrides and the inputs in place
    inputs: dict[str, str] = field(default_factory=dict)  # what it takes from others: STAGE/FOLDER by key

    @property
    def run(self) -> Run:
        """The run that it is, beside those of the other stages."""
        return Run(self.settings["run"])

    @property
    def parents(self) -> set[str]:
        """Names of the stages in `inputs`."""
        return {folder.partition("/")[0] for folder in self.inputs.values()}


@dataclass
class Recipe:
    """A chain of stages, in an order in which they can run; its name is that of their folder."""

    name: str
    stages: list[Stage]

    @property
    def folder(self) -> Path:
        """Where the runs of the stages lie."""
        return Run(self.name).folder


def read_recipe(name: str, run: str | None = None) -> Recipe:
    """Read a recipe and the configurations of its stages; find every mistake that shows without a heavy import."""
    path, values = load_recipe(name)
    run = run or path.stem
    reader = _Reader(path, run if is_folder_name(run) else "recipe", values.pop("stages", None))
    if reader.run != run:
        reader.wrong(
            "recipe", f"{run} names no folder for its stages", "give --run NAME, printable and without leading dots"
        )
    for key in values:
        reader.wrong(str(key), "no such key", "a recipe holds stages and nothing else")
    stages = [reader.stage(number, entry) for number, entry in enumerate(reader.entries)]
    if not stages:
        reader.wrong("stages", "there are none", "give a list of them, each with a name and a config")
    refuse(reader.problems)
    return Recipe(reader.run, in_order(stages))


class _Reader:
    """Reads the stages that a recipe lists, and collects what is wrong with them."""

    def __init__(self, path: Path, run: str, entries: Any) -> None:
        self.path, self.run, self.problems = path, run, list[Problem]()
        self.entries: list[Any] = entries if isinstance(entries, list) else []
        names = [entry.get("name") if isinstance(entry, dict) else None for entry in self.entries]
        self.names = [name if isinstance(name, str) else "" for name in names]

    def wrong(self, key: str, what: str, fix: str = "") -> None:
        self.problems.append(Problem(key, what, fix))

    def stage(self, number: int, entry: Any) -> Stage:
        stage = Stage(self.names[number])
        where = f"stages.{stage.name or number + 1}"
        if not isinstance(entry, dict):
            self.wrong(where, f"must be a mapping with a name and a config, got {entry!r}")
            return stage
        for key in entry:
            if key not in _KEYS:
                self.wrong(f"{where}.{key}", "no such key", f"a stage has {', '.join(_KEYS)}")
        self._check_name(f"{where}.name", number, entry.get("name"))
        overrides = entry.get("overrides") or {}
        if not isinstance(overrides, dict):
            self.wrong(f"{where}.overrides", f"must be a mapping of keys to values, got {overrides!r}")
            overrides = {}
        try:
            stage.settings = self._config(f"{where}.config", entry.get("config"))
            self.problems += [p.under(f"{where}.overrides") for p in override(stage.settings, overrides)]
            self._connect(where, stage, number, entry, overrides)
            for corpus in text(stage.settings):
                self.problems += [problem.under(where) for problem in corpus.problems()]
        except UserError as error:
            self.problems += [p if p.key.startswith(where) else p.under(where) for p in error.problems]
        return stage

    def _check_name(self, key: str, number: int, name: Any) -> None:
        if name is None:
            self.wrong(key, "required, but not given")
        elif not isinstance(name, str) or not is_folder_name(name) or _NO_STAGE.fullmatch(name):
            rule = "without slashes, leading dots and control characters, not model, and not ending in .yaml or .json"
            self.wrong(key, f"must be the name of a folder, got {name!r}", f"give one {rule}")
        elif name in self.names[:number]:
            self.wrong(key, "an earlier stage has this name", "give each another")

    def _config(self, key: str, config: Any) -> Settings:
        if config is None:
            raise UserError(f"{key}: required, but not given")
        if not isinstance(config, str):
            raise UserError(f"{key}: must be the name of a configuration, got {config!r}")
        itself = (self.path.parent / config).resolve() == self.path.resolve()  # called like a shipped configuration
        _, settings = load_config(config, key, Path() if itself else self.path.parent)
        if not section(settings, "model").get("class_path"):
            raise UserError(f"{key}: {config} has no model.class_path; give a configuration of fit")
        return settings

    def _connect(self, where: str, stage: Stage, number: int, entry: Settings, overrides: Settings) -> None:
        """Put the folders of other stages, and the name of the run, into a stage's configuration."""
        given = entry.get("from", self.names[number - 1] or None if number else None)
        model = section(stage.settings, "model", "init_args")
        default = "teacher" if model.get("teacher") is not None and model.get("model") is None else "model"
        if not isinstance(given, dict):
            given = {} if given is None else {f"model.{default}": given}
        for key, source in given.items():
            folder = self._folder(f"{where}.from", source)
            if clash := next((k for k in flat(overrides) if f"{k}.".startswith(f"{key}.")), None):
                what = f"the stage's input is put there (from: {source})"
                self.wrong(f"{where}.overrides.{clash}", what, "remove the override, or write from: null")
            elif folder:
                stage.inputs[key] = folder
                path = str(Run(self.run).folder / folder)
                self.problems += [p.under(f"{where}.from") for p in override(stage.settings, {key: path})]
        stage.settings["run"] = f"{self.run}/{stage.name}"

    def _folder(self, key: str, source: Any) -> str | None:
        """`STAGE/FOLDER` for what `from` says."""
        name, slash, folder = source.partition("/") if isinstance(source, str) else ("", "", "")
        if not name or name not in self.names:
            known = ", ".join(filter(None, self.names))
            self.wrong(key, f"there is no stage {source}", f"give STAGE or STAGE/FOLDER, of {known}")
        elif slash and not is_folder_name(folder):
            self.wrong(key, f"{source} names no folder of that stage", f"give {name}, or for example {name}/adapter")
        else:
            return f"{name}/{folder or 'model'}"
        return None


def text(settings: Settings) -> list[Corpus]:
    """The sources of text that a configuration names, if its data module takes some."""
    given = section(settings, "data", "init_args")
    names = {
        key: given[key] for key in ("source", "text_field", "separator", "streaming") if given.get(key) is not None
    }
    return corpora(**names) if isinstance(names.get("source"), str | list) else []


def in_order(stages: list[Stage]) -> list[Stage]:
    """Order stages so that each comes after those that it takes something from, and otherwise as they are written."""
    try:
        TopologicalSorter({stage.name: stage.parents for stage in stages}).prepare()
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise UserError(f"stages: {circle} wait for each other's model; change the from: of one of them") from error
    ordered, waiting = dict[str, Stage](), list(stages)
    while waiting:
        following = next(stage for stage in waiting if stage.parents <= {*ordered})
        ordered[following.name] = following
        waiting.remove(following)
    return [*ordered.values()]
