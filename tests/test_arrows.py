"""The design's arrows between folders hold, and the check that says so can fail."""

from pathlib import Path

import pytest

import lightgpt2
from tests.support.arrows import ARROWS, violations

ROOT = Path(lightgpt2.__file__).parent


def test_imports_point_down_and_there_is_no_circle() -> None:
    assert violations(ROOT) == []


def test_every_folder_is_in_the_table_and_the_root_is_small() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/*.py")}
    assert folders <= {*ARROWS}
    assert len([*ROOT.glob("*.py")]) <= 5


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("models/a.py", "from lightgpt2 import cli\n", "models may not import cli"),
        ("models/a.py", "def f():\n    from lightgpt2.methods import b\n", "models may not import methods"),
        ("models/a.py", "from ..methods import b\n", "models may not import methods"),
        ("models/a.py", "import lightgpt2.methods.b\n", "models may not import methods"),
        ("models/a.py", "from lightgpt2.methods import b as c\n", "models may not import methods"),
        ("helpers.py", "", "helpers.py: no such file belongs at the root"),
        ("errors.py", "from lightgpt2 import cli\n", "errors may not import cli"),
        ("models/a.py", "from . import c\n", "circle: lightgpt2.models."),
    ],
)
def test_the_check_finds(tmp_path: Path, file: str, text: str, expected: str) -> None:
    for name in ("__init__", "models/__init__", "methods/__init__", "cli/__init__", "methods/b"):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "models/c.py").write_text("from lightgpt2.models import a\n")
    (tmp_path / "models/a.py").touch()
    assert violations(tmp_path) == []
    (tmp_path / file).write_text(text)
    assert any(expected in line for line in violations(tmp_path))


def test_no_two_folders_may_import_each_other() -> None:
    allowed = {(one, other) for one, others in ARROWS.items() for other in others}
    assert not {(one, other) for one, other in allowed if (other, one) in allowed and one != other}
