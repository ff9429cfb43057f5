"""What is built from the checkout stands alone: the wheel runs outside of it, and the Dockerfile fits what it copies."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightgpt2.cli.version import checked_out, version
from tests.support.cli import ROOT

FROM = re.compile(r"FROM (?P<image>\S+)(?: AS (?P<name>\w+))?")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the wheel, far from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "packages")
    return folder / "packages"


def run(installed: Path, folder: Path, *args: str) -> str:
    """`lightgpt2 ARGS` of the wheel, in a folder."""
    env = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "lightgpt2", *args]
    return subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, text=True).stdout


def test_the_wheel_has_all_that_the_commands_name(installed: Path, tmp_path: Path) -> None:
    for name in ("configs", "docs"):
        wanted = {path.relative_to(ROOT) for path in (ROOT / name).rglob("*") if path.is_file()}
        found = {path.relative_to(installed / "lightgpt2") for path in (installed / "lightgpt2" / name).rglob("*.*")}
        assert found == wanted
    listed = run(installed, tmp_path, "--help")
    assert f"Documentation: {installed / 'lightgpt2/docs'}" in listed
    shown = run(installed, tmp_path, "fit", "--help")
    assert all(path.name in shown for path in (ROOT / "configs").glob("*.yaml"))


def test_the_version_has_the_commit(installed: Path, tmp_path: Path) -> None:
    commit = checked_out(ROOT)
    if not commit:
        pytest.skip("no git, or no checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert head.startswith(commit.removesuffix("-dirty"))
    assert version().endswith(f" ({commit})")
    assert run(installed, tmp_path, "--version") == f"lightgpt2 {version()}\n"


def test_a_folder_of_packages_inside_a_checkout_has_no_commit_of_it(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    assert checked_out(tmp_path) == ""


def instructions() -> Iterator[tuple[str, str]]:
    """The instructions of the Dockerfile and what they are given."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            yield name, rest


def test_the_dockerfile_takes_along_what_its_first_image_made() -> None:
    found = [*instructions()]
    assert {name for name, _ in found} == {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT", "CMD"}
    images = [match for name, rest in found if name == "FROM" and (match := FROM.fullmatch(f"FROM {rest}"))]
    assert [each["name"] for each in images] == ["build", None]
    pythons = {each["image"].partition("-")[0] for each in images}
    assert len(pythons) == 1, "an environment works with the Python that made it"
    least = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert int(pythons.pop().rpartition(".")[2]) >= int(least.rpartition(".")[2])
    made = f"{next(rest for name, rest in found if name == 'WORKDIR')}/.venv"
    assert ("COPY", f"--from=build {made} {made}") in found
    assert any(name == "ENV" and f"PATH={made}/bin:$PATH" in rest for name, rest in found)
    (rule,) = re.findall(r"make (\S+)", next(rest for name, rest in found if name == "RUN"))
    assert f"\n{rule}:" in (ROOT / "Makefile").read_text()


def test_docker_copies_no_more_than_git_knows() -> None:
    left_out = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".venv", "checkpoints/*", "tb-logs/*"} <= {*left_out}
    assert ".git" not in left_out, "the commit is in it"
