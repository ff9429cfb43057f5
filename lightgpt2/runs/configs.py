"""Configurations and recipes by path, or by the bare name of one that ships."""

from pathlib import Path

import yaml

from lightgpt2.errors import UserError

_PACKAGE = Path(__file__).parents[1]


def shipped_configs() -> Path:
    """The folder of the configurations that come with the package: inside it, or beside it in a source checkout."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def find_config(name: str, key: str = "--config", beside: Path | None = None) -> Path:
    """A configuration file: a path, or else the bare name of a shipped one.

    Args:
        name: The path or name.
        key: What to call it in errors.
        beside: A folder where a relative path may lead from, if it leads nowhere from the working folder.

    Raises:
        UserError: There is no such file, or it is not a mapping in YAML.
    """
    return _find(name, key, [beside / name] if beside else [], Path(), shipped_configs())


def find_recipe(name: str) -> Path:
    """A recipe: a path, or else the name of a shipped one, bare or with their folder's (`recipes/quickstart.yaml`).

    Raises:
        UserError: There is no such file, or it is not a mapping in YAML.
    """
    folder = Path("recipes") if Path(name).parent == Path("recipes") else Path()
    return _find(name, "recipe", [], folder, shipped_configs() / "recipes")


def _find(name: str, key: str, elsewhere: list[Path], folder: Path, shipped: Path) -> Path:
    """The YAML file that a path means: from the working folder, or elsewhere, or one in `folder`, a shipped one."""
    inside = [shipped / Path(name).name] if Path(name).parent == folder else []
    candidates = [Path(name), *elsewhere, *inside]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        known = ", ".join(sorted(p.name for p in shipped.glob("*.yaml")))
        raise UserError(f"{key}: {name} does not exist; give a path or one that ships with lightgpt2: {known}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {name} is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"{key}: {name} holds no settings; see {shipped} for examples")
    return path
