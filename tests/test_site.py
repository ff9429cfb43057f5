"""`make docs` builds without a warning, and the search finds every command and setting."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightgpt2.cli import pages
from lightgpt2.cli.commands import VERBS
from lightgpt2.cli.trainer_settings import TRAINER_VERBS
from tests.support.cli import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs mkdocs: `make docs` installs it"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", ".ci/mkdocs.yml"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [*command, "--site-dir", str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return folder


def test_the_search_finds_every_verb_and_setting(site: Path) -> None:
    found = json.loads((site / "search/search_index.json").read_text())["docs"]
    titles = {each["title"] for each in found}
    assert {f"lightgpt2 {verb}" for verb in (*TRAINER_VERBS, *VERBS)} <= titles
    words = set(re.findall(r"[\w.-]+", " ".join(each["text"] for each in found)))
    for key in ("model", "data", "trainer.callbacks"):
        listed = (pages.page("fit", [f"--{key}.help"]) or "").splitlines()[1:]
        assert listed
        for line in listed:
            text = pages.page("fit", [f"--{key}.help", line.split()[-1]]) or ""
            assert {setting.lstrip("-") for setting in re.findall(r"^  (--\S+) \(", text, re.MULTILINE)} <= {
                word.lstrip("-") for word in words
            }, line


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link|iframe)\b[^>]*?(?:src|href)="(?:https?:)?//([^"]*)"', page.read_text()
        )
        assert not loaded, page
