"""Configurations and recipes by their path, or by the bare name of one that ships."""

from pathlib import Path

from lightgpt2.errors import Problem, UserError, cut
from lightgpt2.models.files import is_file
from lightgpt2.runs.settings import Settings
from lightgpt2.runs.yaml_text import YamlError, load_yaml

_PACKAGE = Path(__file__).parents[1]


def shipped_configs() -> Path:
    """The folder of the configurations that ship: inside the package, or beside it in a source checkout."""
    return _shipped("configs")


def shipped_docs() -> Path:
    """The folder of the documentation, in the same places."""
    return _shipped("docs")


def _shipped(name: str) -> Path:
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def load_config(name: str, key: str = "--config", beside: Path = Path()) -> tuple[Path, Settings]:
    """Load a configuration by its path, from the working folder or else `beside` it, or by the name of a shipped one."""
    return _load(name, key, [beside / name], shipped_configs())


def load_recipe(name: str) -> tuple[Path, Settings]:
    """Load a recipe by its path, or by the name of a shipped one: `quickstart.yaml`, `recipes/quickstart.yaml`."""
    return _load(name, "recipe", [], shipped_configs() / "recipes")


def _load(name: str, key: str, elsewhere: list[Path], shipped: Path) -> tuple[Path, Settings]:
    """The file at a path, else elsewhere, else the one that ships: NAME, or FOLDER/NAME with the name of their folder."""
    inside = [shipped / Path(name).name] if str(Path(name).parent) in (".", shipped.name) else []
    path = next(filter(is_file, [Path(name), *elsewhere, *inside]), None)
    if path is None:
        known = ", ".join(sorted(p.name for p in shipped.glob("*.yaml")))
        raise UserError(f"{key}: {cut(name)} does not exist; give a path or one that ships with lightgpt2: {known}")
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except (YamlError, UnicodeDecodeError) as error:
        raise UserError([Problem(key, f"{name} is not valid YAML ({error})", "correct it")]) from error
    if not isinstance(values, dict):
        raise UserError(f"{key}: {name} holds no settings; see {shipped} for examples")
    return path, values
