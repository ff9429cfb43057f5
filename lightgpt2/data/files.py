"""The files of a folder that are read as text, and the splits that names say."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from yaml import YAMLError

from lightgpt2.data.readers import kind
from lightgpt2.data.remarks import Remarks
from lightgpt2.data.splits import Split

_SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "validate", "val", "dev", "development"), "valid"),
    **dict.fromkeys(("test", "tests", "testing", "testa", "testb", "devtest", "eval", "evaluation"), "test"),
    **dict.fromkeys(("heldout", "holdout"), "test"),
}
# Metadata files of `Dataset.save_to_disk` and of older hub datasets; they hold no rows.
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
CARD = "README.md"
# Keys that cards of datasets have, and pages of documentation do not.
_OF_CARDS = {
    "configs",
    "dataset_info",
    "task_categories",
    "size_categories",
    "annotations_creators",
    "pretty_name",
    "license",
}
_HIDDEN = (".", "~$")  # how the names of hidden files and of an office program's locks begin


def find(folder: Path, remarks: Remarks) -> list[Path]:
    """The files of a folder and the folders in it that are of a kind that is read, in order; links are followed."""
    return [*_found(folder, folder, (folder.resolve(),), remarks)]


def _found(folder: Path, top: Path, above: tuple[Path, ...], remarks: Remarks) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        name = str(path.relative_to(top))
        if path.name.startswith(_HIDDEN):
            remarks.add("hidden files and folders, not read", name)
        elif path.is_dir():
            if (real := path.resolve()) in above:
                remarks.add("links to a folder that they are in, not followed", name)
            else:
                yield from _found(path, top, (*above, real), remarks)
        elif not path.is_file():
            remarks.add("links to nothing and other things that are no files, not read", name)
        elif path.name in _ABOUT or (path.name == "state.json" and path.with_name(_ABOUT[0]).is_file()):
            remarks.add("files about a dataset, not read", name)
        elif folder == top and path.name == CARD and _is_card(path):
            remarks.add("dataset cards, not read as text", name)
        elif not kind(path):
            remarks.add("files of other kinds, not read", name)
        else:
            if not path.stat().st_size:
                remarks.add("empty files", name)
            yield path


def card_splits(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The name of the split of each file that the folder's dataset card puts into one: `configs` in the YAML of `README.md`."""
    from fsspec.utils import glob_translate  # the hub's: `**/` also stands for no folder

    found: dict[str, str] = {}
    for name, (split, pattern) in product(names, _card(folder / CARD)):
        fits = re.match(glob_translate(pattern.removeprefix("./")), name)
        if fits and split_named(found.get(name, "train")) == "train":
            found[name] = split
    return found


def stated_licence(card: Path) -> str | None:
    """The licence that a dataset card states; None if there is no card, or it states none."""
    about = _about(card)
    stated = about.get("license") if isinstance(about, dict) else None
    return ", ".join(map(str, _listed(stated))) if stated else None


def _about(path: Path) -> Any:
    """The YAML at the beginning of a dataset card; None if it has none."""
    from huggingface_hub.repocard import metadata_load

    try:
        return metadata_load(path) if path.is_file() else None
    except (YAMLError, OSError, ValueError):
        return None


def _is_card(path: Path) -> bool:
    about = _about(path)
    return isinstance(about, dict) and not _OF_CARDS.isdisjoint(about)


def _card(path: Path) -> list[tuple[str, str]]:
    """The splits and the patterns of their files in a card; none if it is no card, or of another form than the hub reads."""
    try:
        about = _about(path)
        configs = [config for config in (about or {}).get("configs") or [] if "data_files" in config]
        entries = [entry for config in configs for entry in _listed(config["data_files"])]
        pairs = [(entry["split"], entry["path"]) if isinstance(entry, dict) else ("train", entry) for entry in entries]
        return [(str(split), str(pattern)) for split, patterns in pairs for pattern in _listed(patterns)]
    except (TypeError, KeyError, AttributeError):
        return []


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def split_named(name: str) -> Split | None:
    """The split that a path or the name of a table says, if any: `data/train-00000-of-00001.txt`, `dev_matched`.

    A held-out split goes before `train`, and the last word before the others: what may be held out is not trained on.
    """
    name = re.sub(r"(?i)(hel|hol)d[\W_]out", r"\1dout", name)
    found = [*re.findall(r"[A-Z]?[a-z]+", name), *re.findall(r"[^\W\d_]+", name)]  # of CamelCase, too
    words = (word.lower().removesuffix("set").removesuffix("data") for word in found)
    said = [_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS]
    return next((split for split in reversed(said) if split != "train"), "train" if said else None)


def by_split(
    names: Iterable[str], remarks: Remarks, card: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Split | None]:
    """The split of each file or table that is read, what is held out first; None for all if no name says one.

    A file that a dataset card puts into a split has that one, whatever its own name says.
    Beside training text, what says no split is left out (a `README.md`). Where names say only what is held out, it is the
    training text, from which a held-out split that is not named is taken.
    """
    said = {name: split_named(card.get(name, name)) for name in names}
    if not any(said.values()):
        return said
    trained = "train" in said.values()
    found: dict[str, Split | None] = {}
    for name, split in said.items():
        if split is None:
            does = "not read" if trained else "training text"
            remarks.add(f"files whose names say no split, beside others whose names do: {does}", name)
            if trained:
                continue
        found[name] = split or "train"
        if split in ("valid", "test"):
            remarks.add(f"{split} split by its name", name)
    return dict(sorted(found.items(), key=lambda item: item[1] == "train"))
