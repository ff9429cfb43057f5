"""A command of the documentation that needs what tests lack, the hub or a GPU for example, says so in its comment."""

import re
from pathlib import Path

import pytest

from tests.support.cli import ROOT

PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "results"]
BEYOND = re.compile(
    r"gpt2-medium|distilbert|facebook/|glue:|smollm2\.yaml|push |--watch|serve |evaluate |--chat$|--trainer\.devices"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_command_that_needs_what_tests_lack_says_so(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^    (lightgpt2 .*)$", text, flags=re.MULTILINE):
        command, _, comment = line.partition("  #")
        assert not BEYOND.search(" ".join(command.split())) or "needs" in comment, command
