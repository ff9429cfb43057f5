"""Pages of the documentation that are generated, as hooks of mkdocs: commands, settings, the Python API, files of the root."""

import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lightgpt2.cli import pages, verbs  # noqa: E402
from lightgpt2.cli.commands import VERBS  # noqa: E402
from lightgpt2.cli.trainer_settings import TRAINER_VERBS  # noqa: E402
from lightgpt2.report.plots import scatters  # noqa: E402
from lightgpt2.report.rows import Model, Score  # noqa: E402

_FINDING = re.compile(r"^\*\*Finding: (.*?)\*\*", re.DOTALL | re.MULTILINE)
_FORMATS, _EXPORTS = (
    "results/formats.md",
    re.compile(r"(?<=^\| export \| MB \| perplexity).*?(?=\n\n)", re.DOTALL | re.MULTILINE),
)
_SETTINGS = {"model": "Methods", "data": "Data", "trainer.callbacks": "Callbacks"}  # what `fit --KEY.help` lists


def on_files(files: Files, config: MkDocsConfig) -> Files:
    made = {**_root(), **_commands(), **_settings(), **_configurations(), **_api(), **_frontier(), **_notebooks()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    results = Path(config.docs_dir, "results")
    for section in config.nav:
        if "Results" in section:
            listed = re.findall(r"^- \[.*\]\((.*)\)$", (results / "index.md").read_text(), re.MULTILINE)
            section["Results"] = [f"results/{name}" for name in ("index.md", *listed)]
        if "Python" in section:
            section["Python"] += [{"Notebooks": [path for path in made if path.startswith("notebooks/")]}]
            section["Python"] += [{"Reference": [path for path in made if path.startswith("api/")]}]
    groups = {"Commands": "commands/", "Settings": "settings/"}
    lists = [{title: [path for path in made if path.startswith(start)]} for title, start in groups.items()]
    config.nav[-2:-2] = [{"Command line": [*lists, "shipped.md"]}]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri == "results/index.md":
        return re.sub(
            r"(?<=^- )\[.*\]\((.*)\)$",
            lambda link: f"{link[0]}: {_finding(config, link[1])}",
            markdown,
            flags=re.MULTILINE,
        )
    if page.file.src_uri == _FORMATS:
        picture = "![Perplexity against the size on disk](frontier.svg)\n\nThe dashed line is 5 % above `onnx`."
        return _EXPORTS.sub(lambda table: f"{table[0]}\n\n{picture}", markdown, count=1)
    return markdown.replace("](../configs)", "](shipped.md)")


def _finding(config: MkDocsConfig, name: str) -> str:
    found = _FINDING.search(Path(config.docs_dir, "results", name).read_text())
    assert found, f"results/{name} states no finding"
    return " ".join(found[1].split())


def _root() -> dict[str, str]:
    """The files of the root, with links as the site has them."""
    texts = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")}
    return {
        name: re.sub(r"(\]\(|src=\")docs/?(?=[\w)])", r"\1", text).replace("]()", "](README.md)")
        for name, text in texts.items()
    }


def _printed(*args: str) -> str:
    """What the command prints, in lines that a page has room for."""
    os.environ["COLUMNS"] = "96"
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        verbs.run([*args])
    return printed.getvalue()


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


def _commands() -> dict[str, str]:
    made = {"commands/index.md": f"# All commands\n\n{_block(_printed('--help'))}"}
    for verb in (*TRAINER_VERBS, *VERBS):
        made[f"commands/{verb}.md"] = f"# lightgpt2 {verb}\n\n{_block(_printed(verb, '--help'))}"
    return made


def _settings() -> dict[str, str]:
    """The settings of each class that a configuration may name, as `fit --KEY.help CLASS` prints them."""
    made = {}
    for key, title in _SETTINGS.items():
        text = f"# Settings of {title.lower()}\n\nPrinted by `lightgpt2 fit --{key}.help CLASS`.\n"
        for line in (pages.page("fit", [f"--{key}.help"]) or "").splitlines()[1:]:
            path = line.split()[-1]
            text += f"\n## {path.rpartition('.')[2]}\n\n{_block(pages.page('fit', [f'--{key}.help', path]) or '')}"
        made[f"settings/{key.rpartition('.')[2]}.md"] = text
    return made


def _configurations() -> dict[str, str]:
    """The configurations and recipes that ship, whole."""
    folder = ROOT / "configs"
    text = "# Shipped configurations\n"
    for path in sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path)):
        text += f"\n## {path.relative_to(folder)}\n\n```yaml\n{path.read_text()}```\n"
    return {"shipped.md": text}


def _notebooks() -> dict[str, str]:
    """The notebooks, each cell with what it has printed."""
    made = {}
    for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        parts = []
        for cell in json.loads(path.read_text())["cells"]:
            source = "".join(cell["source"])
            parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
            parts += [_block("".join(output["text"])) for output in cell.get("outputs", [])]
        made[f"notebooks/{path.stem}.md"] = "\n\n".join(parts)
    return made


def _api() -> dict[str, str]:
    """A page for each package that says what of it is public, and one for the pure functions."""
    package = ROOT / "lightgpt2"
    public = [path for path in sorted(package.glob("**/__init__.py")) if "__all__ =" in path.read_text()]
    names = [".".join(path.parent.relative_to(ROOT).parts) for path in public]
    made = {f"api/{name}.md": f"# {name}\n\n::: {name}\n" for name in names}
    functions = [f"lightgpt2.functional.{path.stem}" for path in sorted((package / "functional").glob("[!_]*.py"))]
    made["api/lightgpt2.functional.md"] = "# lightgpt2.functional\n" + "".join(
        f"\n## {name.rpartition('.')[2]}\n\n::: {name}\n    options: {{heading_level: 3}}\n" for name in functions
    )
    return made


def _frontier() -> dict[str, str]:
    """The exports of a model by size and quality, drawn from the table of its page."""
    table = _EXPORTS.search((ROOT / "docs" / _FORMATS).read_text())
    assert table
    rows = []
    for line in table[0].splitlines()[2:]:
        name, megabytes, perplexity = line.strip("| ").split(" | ")[:3]
        about = {"value": float(perplexity), "better": "lower", "digits": 2}
        score = Score({"perplexity": about, "primary": "perplexity"})
        rows.append(Model(re.sub(r"[`]| \(.*", "", name), "stage", {}, None, score, {"disk": float(megabytes)}))
    (plot,) = scatters(rows, budget=5)
    return {"results/frontier.svg": plot.file()}
