"""The help of the verbs that train or score: written from sources and docstrings, without importing torch."""

import textwrap
from collections.abc import Iterator

from lightgpt2.cli.checking import CHECKPOINT, TRAINER, describe
from lightgpt2.cli.schema import Section, Setting, names_in, settings_of, union
from lightgpt2.cli.trainer_settings import TRAINER_VERBS

_DATA = "lightgpt2.data.LanguageModelingData"
_FOLDERS = {"model": "lightgpt2.methods", "data": "lightgpt2.data", "trainer.callbacks": "lightgpt2.callbacks"}
# The settings that most people set, by the class that has them.
_USUAL = {
    "lightgpt2.methods.FineTune": ["model.model"],
    "lightgpt2.methods.Distill": ["model.teacher"],
    "lightgpt2.methods.optimizer.OptimizerConfig": ["model.optimizer.lr"],
    _DATA: ["data.source", "data.sequence_length", "data.batch_size"],
    TRAINER: [
        f"trainer.{name}"
        for name in ("max_steps", "max_epochs", "val_check_interval", "accumulate_grad_batches", "precision", "devices")
    ],
    CHECKPOINT: ["checkpoint.every_n_steps"],
}


def page(verb: str, args: list[str]) -> str | None:
    """The help that a verb's arguments ask for; None if they ask for none, or for one that only the full parser has."""
    for i, arg in enumerate(args):
        flag, _, value = arg.partition("=")
        value = value or next((each for each in args[i + 1 : i + 2] if not each.startswith("-")), "")
        if arg in ("-h", "--help"):
            return _verb(verb)
        if flag == "--data" and not value:
            return _corpora(verb)
        if flag.startswith("--") and flag.endswith(".help"):
            return _class(verb, flag[2:-5], value)
    return None


def _verb(verb: str) -> str:
    from lightgpt2.runs.configs import shipped_configs

    configs = sorted(shipped_configs().glob("*.yaml"))
    comments = {path.name: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for path in configs}
    usual = {
        "run": "Name of the run (default: the config's stem).",
        "ckpt_path": "`last` or `best` of the run, or a path.",
    }
    for path, keys in _USUAL.items():
        settings = settings_of(path) or {}
        texts = {key: settings.get(key.rpartition(".")[2], Setting()).help for key in keys}
        usual |= {key: f"{text.partition('. ')[0].rstrip('.')}." for key, text in texts.items()}
    call = f"lightgpt2 {verb}"
    examples = [f"{call} --config distill.yaml", f"{call} --config distill.yaml --run short --trainer.max_steps 50"]
    if verb != "check":
        examples.append(f"{call} --config distill.yaml --ckpt_path last")
    helps = [f"{call} --{key}.help {folder}.{_classes(folder)[0]}" for key, folder in _FOLDERS.items()]
    return "\n".join([
        f"usage: {call} --config CONFIG [--KEY VALUE ...]", "", TRAINER_VERBS[verb], "",
        "Configurations that ship with lightgpt2 (a path works too):", *_table(comments), "",
        "The usual settings, in the configuration or on the command line, which wins:",
        *_table({f"--{key}": text for key, text in usual.items()}), "",
        "Examples:", *(f"  {line}" for line in examples), "",
        "All settings:", *(f"  {line}" for line in helps), f"  {call} --trainer.help", f"  {call} --data",
        f"  {call} --config distill.yaml --print_config",
    ])  # fmt: skip


def _corpora(verb: str) -> str:
    from lightgpt2.data.corpora import BUILT_IN, READERS

    text = (settings_of(_DATA) or {})["source"].help.replace("`", "")
    return "\n".join([
        f"usage: lightgpt2 {verb} --config CONFIG --data.source SOURCE", "", *textwrap.wrap(text, 110), "",
        f"  built in   {', '.join(BUILT_IN)}", f"  files      {', '.join(READERS)}, or a folder of them",
        "  hub        name, or name:config", "", f"All settings: lightgpt2 {verb} --data.help {_DATA}",
    ])  # fmt: skip


def _class(verb: str, key: str, path: str) -> str | None:
    """The settings of a class, or the classes that there are."""
    path = path or {"trainer": TRAINER, "checkpoint": CHECKPOINT}.get(key, "")
    if not path and key in _FOLDERS:
        names = [f"  lightgpt2 {verb} --{key}.help {_FOLDERS[key]}.{name}" for name in _classes(_FOLDERS[key])]
        return "\n".join(["Give a class:", *names])
    settings = settings_of(path)
    return None if settings is None else "\n\n".join([f"{path}:", *_settings(key, settings)])


def _settings(key: str, settings: dict[str, Setting]) -> Iterator[str]:
    for name, setting in settings.items():
        group = next((each for each in setting.types if isinstance(each, Section)), None)
        inside = settings_of(group.path) if group and group.path.startswith("lightgpt2.") else None
        types = [each for each in setting.types if not isinstance(each, Section)]
        about = [describe(union(types))] if types else []
        about += ["required" if setting.required else f"default: {setting.default}"]
        lines = textwrap.wrap(setting.help, 110, initial_indent="    ", subsequent_indent="    ")
        yield "\n".join([f"  --{key}.{name} ({', '.join(about)})", *lines])
        if inside:
            yield from _settings(f"{key}.{name}", inside)


def _classes(folder: str) -> list[str]:
    return sorted(
        name
        for name, found in names_in(folder).items()
        if isinstance(found, tuple) and name[0].isupper() and found[0].startswith(folder)
    )


def _table(rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows))
    return [
        f"  {name:{width}}  {textwrap.shorten(text.replace('`', ''), 112 - width, placeholder=' ...')}"
        for name, text in rows.items()
    ]
