"""What the project's own settings name is there: classes, packages, files, and the operators that measurements look for."""

import importlib
import importlib.util
import re
import runpy
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightgpt2.measure import torch_worker
from tests.support.cli import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOOLS: dict[str, Any] = PROJECT["tool"]


@pytest.mark.parametrize("path", TOOLS["ruff"]["lint"]["flake8-bugbear"]["extend-immutable-calls"])
def test_classes_that_the_linter_trusts_exist(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)


def test_packages_with_types_of_their_own_are_used() -> None:
    names = [each["module"] for each in TOOLS["mypy"]["overrides"]]
    for name in (each for listed in names for each in ([listed] if isinstance(listed, str) else listed)):
        package = name.removesuffix(".*")
        extra = f"{package.replace('_', '-')}>" in " ".join(PROJECT["project"]["optional-dependencies"]["eval"])
        assert extra or importlib.util.find_spec(package), name


def test_every_dependency_has_a_version_that_was_tested() -> None:
    """Without one, what is installed depends on the day."""
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [*PROJECT["project"]["dependencies"], *extras["dev"], *extras["docs"]]
    pins = [line for name in ("constraints.txt", ".ci/docs.txt") for line in (ROOT / name).read_text().splitlines()]
    bound = {line.partition("==")[0].lower().replace("_", "-") for line in pins}
    assert {re.split(r"[\[>=<]", each)[0].lower().replace("_", "-") for each in asked} <= bound


def test_every_pinned_package_has_hashes() -> None:
    for name in ("constraints.txt", "tests/requirements.txt", ".ci/docs.txt"):
        entries = re.split(r"\n(?=[A-Za-z])", (ROOT / name).read_text())[1:]
        assert entries
        assert all("==" in each and "--hash=sha256:" in each for each in entries), name


def test_the_bill_of_materials_has_what_a_user_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = SimpleNamespace(BuildHookInterface={Any: object})  # the builder is not needed for what is tested
    monkeypatch.setitem(sys.modules, "hatchling.builders.hooks.plugin.interface", hooks)
    materials = runpy.run_path(str(ROOT / TOOLS["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["path"]))[
        "materials"
    ]
    asked = PROJECT["project"]["dependencies"]
    bill = materials((ROOT / "constraints.txt").read_text(), "lightgpt2", "1", asked)
    found = {each["name"]: each for each in bill["components"]}
    assert {re.split(r"[\[>=<]", each)[0] for each in asked} | {"pandas", "jinja2"} <= found.keys()
    assert not {"pytest", "mypy", "ruff", "pip-audit"} & found.keys()
    assert found["torch"]["purl"] == f"pkg:pypi/torch@{torch.__version__.partition('+')[0]}"
    assert {each["ref"] for each in bill["dependencies"]} == {"lightgpt2", *found}


def test_files_that_make_waits_for_exist() -> None:
    rules = re.findall(r"^\.venv/\S+:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {name for rule in rules for name in rule.split() if not name.startswith(".venv/")}
    assert named
    assert all((ROOT / name).is_file() for name in named), named


def test_configurations_that_are_packed_exist() -> None:
    assert all((ROOT / name).is_dir() for name in TOOLS["hatch"]["build"]["targets"]["wheel"]["force-include"])


def test_operators_that_measurements_look_for_are_torchs() -> None:
    known = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    assert set(torch_worker._PRODUCTS) <= known
    assert any(name.startswith(torch_worker._ATTENTION) for name in known)


def test_a_folder_of_real_text_that_is_gone_is_no_reason_to_skip(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("LIGHTGPT2_DATA", str(tmp_path / "gone"))
    with pytest.raises(pytest.fail.Exception, match="LIGHTGPT2_DATA names"):
        request.getfixturevalue("real_data")
