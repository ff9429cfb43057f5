"""Ways to damage a file, each drawn from a seeded generator."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

DEEP = 100_000
STRANGE: list[Any] = [
    None, True, -1, 0, 1.5, 10**30, float("inf"), float("nan"), "", "\0", "x" * 200, [], {}, [[]], {"": None}, [None],
]  # fmt: skip
SHAPES = ("", "null", "3", '"x"', "[]", "{}", "[[]]", "[3]", '[{"x": 1}]', "[" * DEEP, "9" * 5_000, "1e999", "\0", "{")


def truncate(path: Path, random: Random) -> None:
    os.truncate(path, random.randrange(path.stat().st_size))


def flip(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(random.choice((1, 1, 8, 200))):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def flip_a_head(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(min(64, len(content)))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def lengthen(path: Path, random: Random) -> None:
    with path.open("ab") as file:
        file.write(random.randbytes(random.choice((1, 1000))))


def noise(path: Path, random: Random) -> None:
    path.write_bytes(random.randbytes(random.choice((1, 100, path.stat().st_size))))


def zeros(path: Path, random: Random) -> None:
    """What a file system leaves of a file that was not synced."""
    path.write_bytes(bytes(path.stat().st_size))


def remove(path: Path, random: Random) -> None:
    path.unlink()


def folder(path: Path, random: Random) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path, random: Random) -> None:
    """To nothing, to itself, or to another file of the folder."""
    others = sorted(other.name for other in path.parent.iterdir() if other != path)
    path.unlink()
    path.symlink_to(random.choice(["gone", path.name, *others]))


def unreadable(path: Path, random: Random) -> None:
    path.chmod(0)


def other_shape(path: Path, random: Random) -> None:
    path.write_text(random.choice(SHAPES))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with each of its keys or indices."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, each in pairs for place in ((value, key), *_places(each))]


def _change(value: Any, random: Random) -> Any:
    """One value is left out or replaced; any of the first levels, since the lists of a tokenizer are long."""
    places = _places(value)
    if not places:
        return random.choice(STRANGE)
    container, key = random.choice(places if random.random() < 0.5 else places[:40])
    if random.random() < 0.3:
        del container[key]
    else:
        container[key] = random.choice(STRANGE)
    return value


def change_json(path: Path, random: Random) -> None:
    path.write_text(json.dumps(_change(json.loads(path.read_text()), random)))


def nest_json(path: Path, random: Random) -> None:
    """A value is replaced by one that is nested deeper than Python's stack is."""
    value = json.loads(path.read_text())
    container, key = random.choice(_places(value)[:40])
    container[key] = "DEEP"
    path.write_text(json.dumps(value).replace('"DEEP"', "[" * DEEP + "]" * DEEP))


def change_yaml(path: Path, random: Random) -> None:
    path.write_text(yaml.safe_dump(_change(yaml.safe_load(path.read_text()), random)))


def change_header(path: Path, random: Random) -> None:
    """The table of contents of a safetensors file says something else."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(_change(json.loads(content[8 : 8 + size]), random)).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])


def change_weights(path: Path, random: Random) -> None:
    """A tensor is NaN, infinite, other, of another shape or type, absent, or one more."""
    weights = load_file(path)
    name = random.choice(sorted(weights))
    old = weights[name]
    new = {
        "nan": old.float() * float("nan"), "inf": old.float() + float("inf"), "other": old.float() + 1,
        "flat": old.flatten(), "empty": torch.zeros(0), "double": old.double(), "int": torch.ones_like(old, dtype=torch.int64),
    }  # fmt: skip
    kind = random.choice([*new, "absent", "more"])
    if kind == "absent":
        del weights[name]
    elif kind == "more":
        weights[f"{name}.more"] = torch.ones(2)
    else:
        weights[name] = new[kind]
    save_file({name: value.contiguous() for name, value in weights.items()}, path, {"format": "pt"})


def other_checkpoint(path: Path, random: Random) -> None:
    torch.save(random.choice([*STRANGE, {"state_dict": {}}, {"run": {}, "global_step": 1}, torch.ones(2)]), path)


def change_checkpoint(path: Path, random: Random) -> None:
    """As a script does that edits one: a valid file, in which something is gone or other."""
    torch.save(_change(torch.load(path, weights_only=True), random), path)


Damage = Callable[[Path, Random], None]
ANY: list[Damage] = [truncate, flip, flip_a_head, lengthen, noise, zeros, remove, folder, link, other_shape]
JSON: list[Damage] = [change_json, change_json, change_json, change_json, nest_json, other_shape]
BY_SUFFIX: dict[str, list[Damage]] = {
    ".json": ANY + JSON * 2, ".yaml": [*ANY, change_yaml, change_yaml, change_yaml, change_yaml],
    ".safetensors": [*ANY, change_header, change_header, change_weights, change_weights, change_weights],
    ".ckpt": [*ANY, other_checkpoint, *[change_checkpoint] * 6],
}  # fmt: skip


def damage(path: Path, random: Random) -> str:
    """Damages a file in a way that is possible for one of its kind; the name of the way."""
    way = random.choice(BY_SUFFIX.get(path.suffix, ANY))
    way(path, random)
    return way.__name__


def restore(stock: Path, folder: Path) -> None:
    """The folder becomes what the stock is."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.copytree(stock, folder, dirs_exist_ok=True, symlinks=True)
