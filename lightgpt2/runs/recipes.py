"""Recipes: chains of stages in YAML, read whole, with every mistake in them reported at once."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightgpt2.data.corpora import Corpus
from lightgpt2.errors import UserError
from lightgpt2.runs.configs import find_config, find_recipe
from lightgpt2.runs.run import Run, is_folder_name
from lightgpt2.runs.settings import Settings, flat, override, section

_KEYS = ("name", "config", "from", "overrides")
# What lies beside the folders of the stages: NAME.yaml and pipeline.json; and `model`, which is that of a run.
_NO_STAGE = re.compile(r"model|.*\.(yaml|json)")


@dataclass
class Stage:
    """One stage of a recipe.

    Attributes:
        name: Its name, that of its folder.
        settings: Its configuration, with the overrides and the inputs in place, as `fit` reads it.
        inputs: By the key that names it, each folder that another stage makes: `STAGE/FOLDER`.
    """

    name: str
    settings: Settings = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def parents(self) -> set[str]:
        """Names of the stages that it takes something from."""
        return {folder.partition("/")[0] for folder in self.inputs.values()}


@dataclass
class Recipe:
    """A chain of stages.

    Attributes:
        name: Its name, that of the folder of its stages.
        stages: The stages, in an order in which they can run.
    """

    name: str
    stages: list[Stage]

    @property
    def folder(self) -> Path:
        """Where the stages lie."""
        return Path("checkpoints") / self.name

    def run(self, name: str) -> Run:
        """The run that a stage is."""
        return Run(f"{self.name}/{name}")


def read_recipe(name: str, run: str | None = None) -> Recipe:
    """Reads a recipe and the configurations of its stages.

    Args:
        name: Its path, or the name of a shipped one.
        run: The folder of its stages under `checkpoints/`; its stem unless given.

    Raises:
        UserError: One line for each mistake that shows without importing anything heavy.
    """
    path = find_recipe(name)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    reader = _Reader(path, run or path.stem, values.get("stages"))
    if not is_folder_name(reader.run):
        reader.problems.append(
            f"recipe: {reader.run} names no folder for its stages; give --run NAME, without leading dots"
        )
    unknown = [key for key in values if key != "stages"]
    reader.problems += [f"{key}: no such key; a recipe holds stages and nothing else" for key in unknown]
    stages = reader.read()
    if reader.problems:
        raise UserError(reader.problems)
    return Recipe(reader.run, stages)


class _Reader:
    """Makes stages of what a recipe says, and collects what is wrong with it.

    Args:
        path: The recipe.
        run: The folder of its stages.
        entries: Its stages, as they are written.
    """

    def __init__(self, path: Path, run: str, entries: Any) -> None:
        self.path, self.run, self.problems = path, run, list[str]()
        self.entries: list[Any] = entries if isinstance(entries, list) else []
        if not self.entries:
            self.problems.append("stages: there are none; give a list of them, each with a name and a config")
        named = [entry.get("name") if isinstance(entry, dict) else None for entry in self.entries]
        self.names = [name if isinstance(name, str) else "" for name in named]

    def read(self) -> list[Stage]:
        """The stages, in an order in which they can run."""
        stages = [self._stage(number, entry) for number, entry in enumerate(self.entries)]
        self._check_inputs({stage.name: stage.settings for stage in stages}, stages)
        if not self.problems:
            try:
                return in_order(stages)
            except UserError as error:
                self.problems += error.problems
        return stages

    def _check_inputs(self, settings: dict[str, Settings], stages: list[Stage]) -> None:
        for stage in stages:
            for source in stage.inputs.values():
                name, _, folder = source.partition("/")
                made = _folders(settings[name])
                if made and folder not in made:
                    self.problems.append(
                        f"stages.{stage.name}.from: {name} makes no {folder}; name one of "
                        f"{', '.join(f'{name}/{each}' for each in made)}"
                    )

    def _stage(self, number: int, entry: Any) -> Stage:
        stage = Stage(self.names[number])
        where = f"stages.{stage.name or number + 1}"
        if not isinstance(entry, dict):
            self.problems.append(f"{where}: {entry!r} is no stage; give a mapping with a name and a config")
            return stage
        known = ", ".join(_KEYS)
        self.problems += [f"{where}.{key}: no such key; a stage has {known}" for key in entry if key not in _KEYS]
        self._check_name(where, number, entry)
        overrides = entry.get("overrides") or {}
        if not isinstance(overrides, dict):
            self.problems.append(f"{where}.overrides: {overrides!r} is no mapping; give keys and values")
            overrides = {}
        if self._load(where, stage, entry.get("config"), overrides):
            self._connect(where, stage, number, entry, overrides)
            self.problems += [f"{where}.{problem}" for problem in _text_problems(stage.settings)]
        return stage

    def _check_name(self, where: str, number: int, entry: Settings) -> None:
        name = entry.get("name")
        if name is None:
            self.problems.append(f"{where}.name: required, but not given")
        elif not isinstance(name, str) or not is_folder_name(name) or _NO_STAGE.fullmatch(name):
            self.problems.append(
                f"{where}.name: {name!r} is no name of a stage's folder; give one without slashes and leading dots, not "
                "model, and not ending in .yaml or .json"
            )
        elif name in self.names[:number]:
            self.problems.append(f"{where}.name: an earlier stage has this name; give each its own")

    def _load(self, where: str, stage: Stage, config: Any, overrides: Settings) -> bool:
        """Reads a stage's configuration and puts the overrides in it; whether there is something to go on with."""
        if not isinstance(config, str):
            wrong = "required, but not given" if config is None else f"{config!r} is no name of a configuration"
            self.problems.append(f"{where}.config: {wrong}")
            return False
        try:
            # A recipe may be called like a configuration.
            own = (self.path.parent / config).resolve() == self.path.resolve()
            found = find_config(config, f"{where}.config", None if own else self.path.parent)
        except UserError as error:
            self.problems += error.problems
            return False
        stage.settings = yaml.safe_load(found.read_text(encoding="utf-8"))
        self.problems += [f"{where}.overrides.{problem}" for problem in override(stage.settings, overrides)]
        if not _class_name(stage.settings):
            self.problems.append(f"{where}.config: {config} has no model.class_path; give a configuration of fit")
            return False
        return True

    def _connect(self, where: str, stage: Stage, number: int, entry: Settings, overrides: Settings) -> None:
        """Puts the folders of other stages, and the name of the run, into a stage's configuration."""
        given = entry.get("from", self.names[number - 1] or None if number else None)
        default = "model.teacher" if _class_name(stage.settings).endswith("Distill") else "model.model"
        wanted = given if isinstance(given, dict) else {} if given is None else {default: given}
        for key, source in wanted.items():
            folder = self._folder(f"{where}.from", source)
            clash = next((k for k in flat(overrides) if f"{k}.".startswith(f"{key}.")), None)
            if clash:
                self.problems.append(
                    f"{where}.overrides.{clash}: the stage's input is put there (from: {source}); remove the override, or "
                    "write from: null"
                )
            elif folder:
                stage.inputs[key] = folder
                path = str(Path("checkpoints") / self.run / folder)
                self.problems += [f"{where}.from.{problem}" for problem in override(stage.settings, {key: path})]
        stage.settings["run"] = f"{self.run}/{stage.name}"

    def _folder(self, where: str, source: Any) -> str | None:
        """`STAGE/FOLDER` for what `from` says."""
        name, slash, folder = source.partition("/") if isinstance(source, str) else ("", "", "")
        if name not in self.names or not name:
            known = ", ".join(filter(None, self.names))
            self.problems.append(f"{where}: there is no stage {source}; give STAGE or STAGE/FOLDER, of {known}")
        elif slash and not is_folder_name(folder):
            self.problems.append(
                f"{where}: {source} names no folder of the stage {name}; give {name}, or for example {name}/adapter"
            )
        else:
            return f"{name}/{folder or 'model'}"
        return None


def _class_name(settings: Settings) -> str:
    path = section(settings, "model").get("class_path")
    return path.rpartition(".")[2] if isinstance(path, str) else ""


def _folders(settings: Settings) -> list[str]:
    """The folders of weights that a stage will make; none where its method is not one of this package."""
    if not str(section(settings, "model").get("class_path")).startswith("lightgpt2.methods."):
        return []
    made = ["model", *(["adapter"] if _class_name(settings).endswith("LoRA") else [])]
    for callback in section(settings, "trainer").get("callbacks") or []:
        given = callback if isinstance(callback, dict) else {"class_path": callback}
        name = str(given.get("class_path")).rpartition(".")[2]
        if name == "PostTrainingQuantization":
            formats = section(given, "init_args").get("formats") or ["nf4", "int8"]
            made += [f"model-{form}" for form in formats]
        elif name == "PackedArtefact":
            made.append("model-packed")
    return made


def corpus(settings: Settings) -> Corpus | None:
    """The text that a configuration names, if its data module takes one as `LanguageModelingData` does."""
    given = section(settings, "data", "init_args")
    names = {k: v for k, v in given.items() if k in ("source", "text_field", "separator") and isinstance(v, str)}
    shipped = section(settings, "data").get("class_path") == "lightgpt2.data.LanguageModelingData"
    return Corpus(**names) if shipped or "source" in names else None


def _text_problems(settings: Settings) -> list[str]:
    try:
        if text := corpus(settings):
            text.check()
    except UserError as error:
        return [*error.problems]
    return []


def in_order(stages: list[Stage]) -> list[Stage]:
    """Stages so that each comes after those that it takes something from, and otherwise as they are written.

    Raises:
        UserError: Some wait for each other.
    """
    ordered: list[Stage] = []
    waiting = list(stages)
    while waiting:
        done = {stage.name for stage in ordered}
        following = next((stage for stage in waiting if stage.parents <= done), None)
        if following is None:
            circle = " -> ".join(_circle(waiting))
            raise UserError(f"stages: {circle} wait for each other's model; change the from: of one of them")
        ordered.append(following)
        waiting.remove(following)
    return ordered


def _circle(waiting: list[Stage]) -> list[str]:
    """Names of stages each of which waits for the next; the first is named again at the end."""
    blocking = {stage.name: min(stage.parents & {s.name for s in waiting}) for stage in waiting}
    path = [waiting[0].name]
    while path[-1] not in path[:-1]:
        path.append(blocking[path[-1]])
    return path[path.index(path[-1]) :]
