"""Every command of the documentation runs, small; those that need more than that say in a comment what they need."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightgpt2.cli.trainer_settings import TRAINER_VERBS
from tests.support.chats import TEMPLATES
from tests.support.cli import ROOT, succeed

PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "results"]
# What makes a command small; a command's own settings win.
SMALL = [
    *("--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.callbacks", "[]"),
    *("--model.optimizer.warmup_steps", "0"),
]
SMALLER = {
    "benchmark": ["--rounds", "1"],
    "type": ["--samples", "2", "--keys", "20"],
    "sweep": ["--set", "trainer.max_steps=1", "trainer.val_check_interval=1", "model.optimizer.warmup_steps=0"],
    "generate": ["--max-new-tokens", "4"],
    "export": ["--documents", "4"],
}
NAMES = {"MODEL": "checkpoints/distill/model", "OTHER": "checkpoints/teacher/model", "TEXT": "requirements:400"}


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """The commands of a page's blocks, each with its comment."""
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^    (lightgpt2 .*)$", text, flags=re.MULTILINE):
        command, _, comment = line.partition("  #")
        yield " ".join(command.split()), comment


def small(args: list[str]) -> list[str]:
    verb, *given = [NAMES.get(each, each) for each in args]
    if verb in TRAINER_VERBS:
        more = [*SMALL]
        if "classify.yaml" in given or "summarize.yaml" in given:
            more += ["--data.source", "requirements:400", "--data.vocab_size", "300"]
        set_already = {each for each in given if each.startswith("--")}
        pairs = zip(more[::2], more[1::2], strict=True)
        more = [
            part for pair in pairs if pair[0] == "--trainer.max_steps" or pair[0] not in set_already for part in pair
        ]
        return [verb, *given, *more]
    more = SMALLER.get(verb, [])
    return [verb, *given, *([] if more[:1] and more[0] in given else more)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages talk about: texts, and the models of the shipped configurations."""
    folder = tmp_path_factory.mktemp("commands")
    words = [f"The function f{i} returns {i * 7} where the flag is set." for i in range(120)]
    for name in ("my-texts", "path/to/folder"):
        (folder / name).mkdir(parents=True)
    for i, text in enumerate(words):
        (folder / f"my-texts/{i:03}.txt").write_text(text)
    (folder / "held-out.txt").write_text(" ".join(words[:40]))
    rows = "".join(f'"{text}",{"good" if i % 2 else "bad"}\n' for i, text in enumerate(words))
    (folder / "reviews.csv").write_text(f"text,label\n{rows}")
    for name, make in {
        "path/to/text.jsonl": lambda i: {"text": words[i]},
        "chats.jsonl": lambda i: {"prompt": f"What is {i}?", "completion": words[i]},
        "prompts.jsonl": lambda i: {"prompt": words[i][:20]},
        "texts.jsonl": lambda i: {"text": words[i]},
    }.items():
        count = 4 if name in ("prompts.jsonl", "texts.jsonl") else len(words)
        (folder / name).write_text("".join(json.dumps(make(i)) + "\n" for i in range(count)))
    for config in ("teacher.yaml", "distill.yaml", "classify.yaml", "summarize.yaml", "charlm.yaml"):
        succeed(folder, *small(["fit", "--config", config]))
        if config == "teacher.yaml":
            (folder / "checkpoints/teacher/model/chat_template.jinja").write_text(TEMPLATES["ChatML"][0])
    for copy, run in {"news": "summarize", "mine": "teacher", "quickstart/distilled": "distill"}.items():
        shutil.copytree(folder / f"checkpoints/{run}", folder / f"checkpoints/{copy}")
    shutil.copytree(folder / "checkpoints/teacher/model", folder / "path/to/model")
    succeed(folder, "benchmark", *(NAMES[name] for name in ("MODEL", "OTHER")), "--rounds", "1", "--new-tokens", "4",
            "--output", "path/to/folder/benchmark.json")  # fmt: skip
    return folder


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if [*commands(page)]], ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(folder: Path, page: Path, tmp_path: Path) -> None:
    place = tmp_path / "there"
    shutil.copytree(folder, place)
    for command, comment in commands(page):
        if "needs" in comment:
            continue
        line, _, file = command.partition(" > ")
        printed = succeed(place, *small(shlex.split(line)[1:]))
        if file:
            (place / file).write_text(printed)


def test_a_command_that_needs_what_tests_lack_says_so() -> None:
    beyond = re.compile(
        r"gpt2-medium|distilbert|facebook/|glue:|smollm2\.yaml|push |--watch|serve |evaluate |--chat$|--trainer\.devices"
    )
    for page in PAGES:
        for command, comment in commands(page):
            assert not beyond.search(command) or "needs" in comment, f"{page.name}: {command}"
