"""`lightgpt2 --version`: the version, and the commit that it was built from or is run from."""

import subprocess
from pathlib import Path

import lightgpt2

_PACKAGE = Path(__file__).parents[1]


def version() -> str:
    """The version, with the commit where it is known: `0.2.0 (83340c6e0c11)`."""
    commit = _built() or checked_out(_PACKAGE.parent)
    return f"{lightgpt2.__version__} ({commit})" if commit else lightgpt2.__version__


def _built() -> str:
    """The commit that the wheel was built from."""
    noted = _PACKAGE / "commit.txt"
    return noted.read_text(encoding="utf-8").strip() if noted.is_file() else ""


def checked_out(root: Path) -> str:
    """The commit of a checkout of this project, `-dirty` if files differ from it; empty if a folder is none."""
    # An environment may lie inside some other checkout: ours has the project's file beside `.git`.
    if not ((root / ".git").exists() and (root / "pyproject.toml").is_file()):
        return ""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
