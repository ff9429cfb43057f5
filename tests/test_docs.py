"""README and docs say what is true: links, names, settings and commands exist, and the Python examples run."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lightgpt2.cli import pages
from lightgpt2.cli.checking import check
from lightgpt2.cli.commands import VERBS
from lightgpt2.cli.options import parse
from lightgpt2.cli.trainer_settings import TRAINER_VERBS
from lightgpt2.errors import UserError
from tests.support.cli import ROOT, succeed
from tests.support.models import write_model

RESULTS = sorted((ROOT / "docs/results").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted({*(ROOT / "docs").rglob("*.md")} - {*RESULTS})]


OWN = {"mine.yaml", "two.yaml", "colours.yaml"}  # the reader's
SHIPPED = {str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml")}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *RESULTS, ROOT / "CHANGELOG.md"], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            found = page.parent / path if path else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_configurations_and_names_exist(page: Path) -> None:
    text = page.read_text()
    known = SHIPPED | OWN | {name.rpartition("/")[2] for name in SHIPPED}
    assert {*re.findall(r"(?<![\w/.-])((?:recipes/)?[\w-]+\.yaml)", text)} <= known
    for module, name in re.findall(r"(lightgpt2(?:\.[a-z_]\w*)*)\.([A-Z]\w+)", text):
        assert name == "NAME" or hasattr(import_module(module), name), f"{module}.{name}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_page_is_in_the_site() -> None:
    nav = yaml.safe_dump(yaml.safe_load((ROOT / ".ci/mkdocs.yml").read_text())["nav"])
    listed = {*re.findall(r"[\w./-]+\.md", nav)}
    listed |= {
        f"results/{found}" for found in re.findall(r"\]\((.*\.md)\)", (ROOT / "docs/results/index.md").read_text())
    }
    assert {name(page).removeprefix("docs/") for page in (ROOT / "docs").rglob("*.md")} <= listed | {"results/index.md"}


def test_every_shipped_configuration_is_described() -> None:
    text = (ROOT / "docs/configurations.md").read_text()
    assert all(f"| `{name.removeprefix('recipes/')}` |" in text for name in SHIPPED)


def commands(page: Path) -> Iterator[list[str]]:
    """The commands of a page, without comments and redirections."""
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^(?:    |\| `)(lightgpt2 .*?)(?:`.*)?$", text, flags=re.MULTILINE):
        yield shlex.split(line.partition(" > ")[0], comments=True)[1:]


def mistakes(args: list[str]) -> list[str]:
    """What is wrong with a command, but for models and texts of the reader."""
    try:
        check(args)
    except UserError as error:
        return [problem for problem in error.problems if "does not exist" not in problem]
    return []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_have_the_options_that_are_shown(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "configs/distill.yaml", "mine.yaml")
    Path("two.yaml").write_text(blocks(ROOT / "docs/scale.md", "yaml")[0])
    for verb, *args in commands(page):
        if verb in VERBS and "--help" not in args:
            parse(VERBS[verb], args)
        elif verb in TRAINER_VERBS and "CONFIG" not in args and pages.page(verb, args) is None:
            assert not mistakes([verb, *args])
    for settings in map(yaml.safe_load, blocks(page, "yaml")):
        if {"model", "trainer"} & settings.keys():
            parts = yaml.safe_load(Path("mine.yaml").read_text()) | settings
            Path("block.yaml").write_text(yaml.safe_dump(parts))
            assert not mistakes(["check", "--config", "block.yaml"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny teacher in the place of that of teacher.yaml, and a distill.yaml that measures no speed."""
    folder = tmp_path_factory.mktemp("docs")
    write_model(folder / "checkpoints/teacher/model", n_positions=128)
    settings = yaml.safe_load((ROOT / "configs/distill.yaml").read_text())
    del settings["trainer"]["callbacks"]
    (folder / "distill.yaml").write_text(yaml.safe_dump(settings))
    return folder


_SHORTER = "from pydoc_data.topics import topics\nfor name in [*topics][20:]:\n    del topics[name]\n"


def run(folder: Path, pieces: list[str]) -> str:
    """Runs the code of a page, on a part of its text."""
    (folder / "page.py").write_text(_SHORTER + "\n".join(pieces))
    return succeed(folder, module="page", PYTHONPATH=str(folder))


@pytest.mark.slow
def test_the_python_page_runs(folder: Path) -> None:
    printed = run(folder, blocks(ROOT / "docs/python.md", "python"))
    assert "student after" in printed
    assert "GPT2LMHeadModel" in printed
    assert (folder / "checkpoints/plain/model/ledger.json").is_file()
    assert (folder / "my-model/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted((ROOT / "docs/notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_shows(notebook: Path, tmp_path: Path) -> None:
    found = json.loads(notebook.read_text())
    assert (found["nbformat"], found["metadata"]["language_info"]["name"]) == (4, "python")
    cells = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
    printed = run(tmp_path, [f"{''.join(cell['source'])}\nprint({_CELL!r})" for cell in cells]).split(f"{_CELL}\n")
    for cell, now in zip(cells, printed, strict=False):
        shown = "".join(text for output in cell["outputs"] for text in output["text"])
        assert bool(shown) == bool(now), now
        assert names(shown) == names(now), now  # figures, and what a model writes, differ from machine to machine


_CELL = "--- a cell has ended ---"


def names(text: str) -> list[str]:
    """The names of the rows of tables, and of what else is in columns."""
    return re.findall(r"^([\w-]+(?: [\w-]+)*)  +\S", text, flags=re.MULTILINE)


@pytest.mark.slow
def test_the_pruning_callback_of_the_page_holds_in_the_next_stage(folder: Path) -> None:
    (folder / "mine.py").write_text("\n\n".join(blocks(ROOT / "docs/extending.md", "python")))
    callback = {"class_path": "mine.RowPruning", "init_args": {"amount": 0.5}}
    settings = {
        "model": {"class_path": "lightgpt2.methods.FineTune", "init_args": {"model": "checkpoints/teacher/model"}},
        "data": {
            "class_path": "lightgpt2.data.LanguageModelingData",
            "init_args": {"source": "requirements:600", "sequence_length": 64},
        },
        "trainer": {"max_steps": 0, "accelerator": "cpu", "callbacks": [callback]},
    }
    (folder / "rows.yaml").write_text(yaml.safe_dump(settings))
    path = {"PYTHONPATH": f"{ROOT}:{folder}"}
    succeed(folder, "fit", "--config", "rows.yaml", **path)
    tuned = ["--model.model", "checkpoints/rows/model", "--trainer.max_steps", "2", "--trainer.callbacks", "[]"]
    succeed(folder, "fit", "--config", "rows.yaml", "--run", "tuned", *tuned, **path)
    pruned, later = (load_file(folder / f"checkpoints/{name}/model/model.safetensors") for name in ("rows", "tuned"))
    matrices = [name for name, value in pruned.items() if ".h." in name and value.ndim == 2]
    assert len(matrices) == 16
    for name in matrices:
        zeros = pruned[name] == 0
        assert torch.equal(zeros.sum(0), torch.full((zeros.shape[1],), zeros.shape[0] // 2))
        assert torch.equal(zeros, later[name] == 0)
    last = json.loads((folder / "checkpoints/tuned/model/ledger.json").read_text())[-1]["operations"]
    assert [(each["op"], each["achieved"], each["held"]) for each in last] == [("rows", 0.5, True)]
