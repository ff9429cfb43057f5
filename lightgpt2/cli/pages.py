"""The help of the verbs that train or score: written from sources and docstrings, without importing torch."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

from lightgpt2.cli.checking import CHECKPOINT, TRAINER, describe
from lightgpt2.cli.schema import Section, Setting, item, names_in, settings_of, union
from lightgpt2.cli.trainer_settings import TRAINER_VERBS, LoggerName
from lightgpt2.data.corpora import BUILT_IN
from lightgpt2.data.readers import READERS
from lightgpt2.runs.configs import shipped_configs

_DATA = "lightgpt2.data.LanguageModelingData"
_FOLDERS = {"model": "lightgpt2.methods", "data": "lightgpt2.data", "trainer.callbacks": "lightgpt2.callbacks"}
# The settings that most people set, by the class that has them.
_USUAL = {
    "lightgpt2.methods.FineTune": "model.model",
    "lightgpt2.methods.Distill": "model.teacher",
    "lightgpt2.methods.optimizer.OptimizerConfig": "model.optimizer.lr",
    _DATA: "data.source data.sequence_length data.batch_size",
    TRAINER: "trainer.max_steps trainer.max_epochs trainer.val_check_interval trainer.accumulate_grad_batches "
    "trainer.precision trainer.devices",
    CHECKPOINT: "checkpoint.every_n_steps",
}


def page(verb: str, args: list[str]) -> str | None:
    """The help that a verb's arguments ask for; None if they ask for none, or for one that only the full parser has."""
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        flag, _, value = arg.partition("=")
        value = value or ("" if following.startswith("-") else following)
        if arg in ("-h", "--help"):
            return _verb(verb)
        if flag == "--data" and not value:
            about = textwrap.fill(_settings(_DATA)["source"].help.replace("`", ""), 110)
            names = {"built_in": ", ".join(BUILT_IN), "files": ", ".join(READERS), "data": _DATA}
            return _filled("corpora.txt", call=f"lightgpt2 {verb}", about=about, **names)
        if flag.startswith("--") and flag.endswith(".help"):
            return _class(verb, flag[2:-5], value)
    return None


def _verb(verb: str) -> str:
    configs = sorted(shipped_configs().glob("*.yaml"))
    comments = {path.name: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for path in configs}
    usual = {
        "--run": "Name of the run (default: the config's stem).",
        "--ckpt_path": "`last` or `best` of the run, or a path.",
    }
    for path, keys in _USUAL.items():
        texts = {key: _settings(path)[key.rpartition(".")[2]].help for key in keys.split()}
        usual |= {f"--{key}": f"{text.partition('. ')[0].rstrip('.')}." for key, text in texts.items()}
    if verb == "fit":
        usual["--logger"] = f"What shows the curves, by default the first: {describe(LoggerName)}."
    if verb == "check":
        usual["--safe"] = (
            "Refuse class paths of other packages than lightgpt2, lightning and torch: run no code of others."
        )
    call = f"lightgpt2 {verb}"
    helps = "\n".join(f"  {call} --{key}.help {_classes(key)[0]}" for key in _FOLDERS)
    tables = {"configs": _table(comments), "usual": _table(usual)}
    return _filled("fit.txt", call=call, about=TRAINER_VERBS[verb], helps=helps, **tables)


def _class(verb: str, key: str, path: str) -> str | None:
    """The settings of a class, or the classes that there are."""
    if not path and key in _FOLDERS:
        return "\n".join(["Give a class:", *(f"  lightgpt2 {verb} --{key}.help {name}" for name in _classes(key))])
    path = path or {"trainer": TRAINER, "checkpoint": CHECKPOINT}.get(key, "")
    settings = settings_of(path)
    return None if settings is None else "\n\n".join([f"{path}:", *_described(key, settings)])


def _described(key: str, settings: dict[str, Setting]) -> Iterator[str]:
    for name, setting in settings.items():
        types = [each for each in setting.types if not isinstance(each, Section) and not item(each)]
        about = [describe(union(types))] if types else []
        about += ["required" if setting.required else f"default: {setting.default}"]
        text = textwrap.fill(setting.help, 110, initial_indent="    ", subsequent_indent="    ")
        yield f"  --{key}.{name} ({', '.join(about)})\n{text}".rstrip()
        group = next((each.path for each in setting.types if isinstance(each, Section)), "")
        group = group or next((one.path for each in setting.types if (one := item(each)) and one.data), "")
        if group.startswith("lightgpt2."):
            yield from _described(f"{key}.{name}", settings_of(group) or {})


def _settings(path: str) -> dict[str, Setting]:
    found = settings_of(path)
    assert found is not None
    return found


def _classes(key: str) -> list[str]:
    """The class paths that a setting may have."""
    folder = _FOLDERS[key]
    names = [name for name, node in names_in(folder).items() if isinstance(node, tuple) and node[0].startswith(folder)]
    return sorted(f"{folder}.{name}" for name in names if name[0].isupper())


def _filled(name: str, **texts: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8").rstrip().format(**texts)


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    texts = [textwrap.shorten(text.replace("`", ""), 112 - width, placeholder=" ...") for text in rows.values()]
    return "\n".join(f"  {name:{width}}  {text}" for name, text in zip(rows, texts, strict=True))
