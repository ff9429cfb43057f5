"""The pages: every figure is the ledgers', whatever they hold, and the files are whole."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lightgpt2.errors import UserError
from lightgpt2.report import document
from lightgpt2.report.chain import models
from lightgpt2.report.pages import find, write_report
from lightgpt2.report.plots import _INK, _LINE, plots
from tests.report.chains import Entry, chain, entry, write
from tests.support.cli import ROOT, run_cli

VOID = {"meta", "br", "hr", "img", "link"}
HOSTILE = "a|b<script>alert(1)</script>`x`*y*_z_ [k](http://e.x) & &amp; $q$ \\| ~~s~~ \"' \x02"


class Page(HTMLParser):
    """Reads a page: fails on tags that do not close, keeps its text, its ids and what it refers to."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.ids += [value or ""] if name == "id" else []
            self.references += (
                [value or ""] if name in ("href", "src", "xlink:href", "data", "srcset", "poster") else []
            )
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert [tag] == self.open[-1:], f"</{tag}> closes nothing"
        self.open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def report(
    folder: Path, ledgers: dict[str, list[Entry]], budget: float = 1.0, gain: float = 10.0, pictures: bool = False
) -> tuple[str, Page]:
    """The report of some ledgers: its Markdown, and its page read; without pictures, which take most of the time."""
    write(folder, ledgers)
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:
            patch.setattr(document, "plots", lambda rows: [])
        write_report([str(folder / "checkpoints")], str(folder / "out"), budget, gain)
    markdown = (folder / "out/report.md").read_text()
    return markdown, Page((folder / "out/report.html").read_text())


def line(markdown: str, start: str) -> str:
    (found,) = [text for text in markdown.splitlines() if text.startswith(start)]
    return found


# -- figures ---------------------------------------------------------------------------------------------------------------

TUNED, DISTILLED, PRUNED = (f"checkpoints/quick/{name}/model" for name in ("tuned", "distilled", "pruned"))


def changed(name: str, path: str, value: Any) -> dict[str, list[Entry]]:
    """The chain's ledgers with one figure of a model's own entry changed."""
    ledgers = chain()
    *parents, last = path.split(".")
    inside: Any = ledgers[name][-1]
    for key in parents:
        inside = inside[int(key)] if isinstance(inside, list) else inside[key]
    assert last in inside
    inside[last] = value
    return ledgers


@pytest.mark.parametrize(
    ("name", "path", "value", "shown"),
    [
        (TUNED, "quality.after.perplexity", 31.07, ["31.07"]),
        (TUNED, "quality.after.interval_95", [30.31, 33.93], ["30.31 to 33.93"]),
        (TUNED, "quality.after.bits_per_byte", 0.7431, ["0.7431"]),
        (TUNED, "sizes.parameters", 71234567, ["71,234,567", "142.5"]),
        (TUNED, "sizes.embedding", 20304050, ["20,304,050"]),
        (TUNED, "sizes.nonzero", 60708090, ["60,708,090"]),
        (TUNED, "sizes.megabytes", 291.9, ["291.9", "-10.9 %"]),
        (TUNED, "seconds", 777.7, ["777.7"]),
        (TUNED, "seed", 4711, ["seed 4711"]),
        (TUNED, "config_sha256", "feedbeef", ["feedbeef"]),
        (TUNED, "benchmark.arms.0.weights_mb", 300.3, ["300.3"]),
        (TUNED, "benchmark.arms.0.peak_memory_mb", 999.9, ["999.9"]),
        (TUNED, "benchmark.arms.0.forward.1x128.p50_ms", 17.17, ["17.17", "19.0 % faster"]),
        (TUNED, "benchmark.arms.0.forward.16x128.p50_ms", 271.7, ["271.7"]),
        (TUNED, "benchmark.arms.0.generate.128.first_token_ms", 13.37, ["13.37"]),
        (TUNED, "benchmark.arms.0.generate.128.tokens_per_s", 93.8, ["93.80", "2.0 times faster"]),
        (TUNED, "benchmark.arms.0.generate.256.tokens_per_s", 87.6, ["87.60"]),
        (TUNED, "benchmark.arms.0.generate.128.seconds", 0.618, ["0.618"]),
        (TUNED, "benchmark.arms.0.generate.128.cpu_seconds", 1.225, ["CPU time at 128: 2.46 to 1.23 s (-50.1 %)"]),
        (TUNED, "benchmark.arms.0.generate.128.cpu_percent", 181.8, ["181.8"]),
        (TUNED, "benchmark.arms.0.ratio.forward 1x128.median", 1.234, ["1.234"]),
        (TUNED, "benchmark.machine.threads", 9, ["9 threads"]),
        (DISTILLED, "training.peak_memory_mb", 3456.7, ["3,456.7"]),
        (DISTILLED, "operations.0.layers", [1, 3], ["layers 1, 3"]),
        (
            PRUNED,
            "operations.1.achieved",
            0.71234,
            ["71.2340 % measured on disk", "71.23 % of the lora weights pruned"],
        ),
        (PRUNED, "operations.1.pruned", 105000, ["pruned: 105,000"]),
        (PRUNED, "sweeps.sparsity.arms.random.1.perplexity", 43.21, ["43.21"]),
        (PRUNED, "sweeps.sparsity.largest_inside_budget", 0.4, ["that stays is 0.4"]),
    ],
)
def test_a_changed_figure_is_the_page_s(tmp_path: Path, name: str, path: str, value: Any, shown: list[str]) -> None:
    before = report(tmp_path / "a", chain())[0]
    markdown, page = report(tmp_path / "b", changed(name, path, value))
    for text in shown:
        assert text not in before
        assert text in markdown
        assert text in "".join(page.text)


def test_a_changed_figure_changes_the_verdict_and_its_sentence(tmp_path: Path) -> None:
    nf4 = "- **tuned nf4**"
    before = line(report(tmp_path / "a", chain())[0], nf4)
    assert "**pays**: better by at least 10 %: MB on disk and weights in memory; worse" in before
    assert "NF4 is 2.1 times slower than FP32 (tokens/s at 128: 47.20 to 22.10)" in before
    assert "1.9 times slower than tuned bf16 (tokens/s at 128: 41.40 to 22.10)" in before
    assert "saves 45.0 % of the weights' memory against FP32" in before
    assert "but only 12.0 % against half precision (tuned bf16, 204.8 MB)" in before
    ledgers = changed(TUNED, "benchmark.arms.2.generate.128.tokens_per_s", 94.4)
    assert "NF4 is 2.0 times faster than FP32 (tokens/s at 128: 47.20 to 94.40)" in line(
        report(tmp_path / "b", ledgers)[0], nf4
    )
    ledgers = changed(f"{TUNED}-nf4", "quality.after.perplexity", 45.3)
    after, page = report(tmp_path / "c", ledgers)
    assert "**outside the budget** of 1" in line(after, nf4)
    assert "1.08 above baseline's 44.22" in line(after, nf4)
    assert ["tuned nf4", "outside the budget", "tuned"] in [row[:3] for row in page.tables[1]]
    assert "**pays**" in line(report(tmp_path / "c", ledgers, budget=1.1)[0], nf4)
    assert "**does not pay**" in line(report(tmp_path / "a", chain(), gain=60)[0], nf4)


def test_the_tables_hold_what_the_rows_hold(tmp_path: Path) -> None:
    page = report(tmp_path, chain())[1]
    names = [row[0] for row in page.tables[0]]
    assert names == ["model", "baseline", "distilled", "distilled bf16", "adapted", "pruned", "tuned", "tuned bf16",
                     "tuned int8", "tuned nf4"]  # fmt: skip
    by_name = {row[0]: dict(zip(page.tables[0][0], row, strict=True)) for row in page.tables[0]}
    assert by_name["tuned bf16"]["perplexity"] == "not measured"
    assert by_name["tuned bf16"]["weights in memory, MB"] == "204.8"
    assert by_name["tuned nf4"]["MB on disk"] == "141.3"
    assert by_name["tuned nf4"]["training, s"] == "-"
    assert by_name["tuned"]["training peak, MB"] == "not measured"
    assert page.tables[1][0][:3] == ["stage", "verdict", "made of"]
    assert page.tables[1][2][3:] == ["+1.5 %", "-34.2 %", "-34.2 %", "-48.0 %", "+91.8 %",
                                     "+0.68", "-34.2 %", "-34.2 %", "-48.0 %", "+91.8 %"]  # fmt: skip
    assert page.tables[1][7][3:] == ["+1.8 %", "-56.9 %", "-45.0 %", "+143.0 %", "-53.2 %",
                                     "-5.32", "-71.6 %", "-63.8 %", "+26.8 %", "-9.8 %"]  # fmt: skip
    assert [row[1] for row in page.tables[1][1:]] == ["the start", "pays", "quality only", "does not pay", "does not pay",
                                                      "pays", "pays"]  # fmt: skip
    text = "".join(page.text)
    assert "ran out of memory" in text
    assert "lm_head (tied to the embedding)" in text
    assert "merged weights are dense" in text


def test_what_was_not_measured_is_named_and_not_invented(tmp_path: Path) -> None:
    first, second = entry("first", "FineTune", 40, 1000), entry("second", "FineTune", 39.9, 1000)
    second["parent"] = {"source": "checkpoints/first/model", "sha256": "x"}
    ledgers = {"checkpoints/first/model": [first], "checkpoints/second/model": [first, second]}
    markdown, page = report(tmp_path, ledgers)
    assert "Speed and memory were not measured." in markdown
    absent = line(markdown, "Not measured in any of these runs: ")
    assert all(name in absent for name in ("weights in memory", "peak memory", "forward", "first token", "tokens/s"))
    assert page.tables[1][2][:2] == ["second", "not measured"]
    assert "Not measured for both: weights in memory, forward 1x128 p50 and tokens/s at 128." in markdown


# -- text of others --------------------------------------------------------------------------------------------------------


def test_text_of_ledgers_is_shown_and_does_nothing(tmp_path: Path) -> None:
    ledgers = chain()
    tuned = ledgers[TUNED][-1]
    tuned["stage"] = f"quick/{HOSTILE}"
    tuned["data"]["source"] = tuned["config_sha256"] = tuned["finished"] = HOSTILE
    tuned["operations"] = [{"op": HOSTILE, HOSTILE: HOSTILE, "kept": {HOSTILE: HOSTILE}}]
    tuned["benchmark"]["machine"]["name"] = tuned["versions"][HOSTILE] = HOSTILE
    tuned["benchmark"]["arms"][0] |= {"name": HOSTILE, "precision": HOSTILE, "attention": HOSTILE, "operators": []}
    tuned["benchmark"]["arms"][1]["operators"][0]["name"] = HOSTILE
    tuned["benchmark"]["arms"][4]["error"] = HOSTILE
    tuned["sweeps"] = {
        HOSTILE: {"key": HOSTILE, "values": [HOSTILE, 2], "arms": {HOSTILE: [{"perplexity": 3}, {"perplexity": 4}]}}
    }
    del ledgers[f"{TUNED}-nf4"], ledgers[f"{TUNED}-int8"]
    markdown, page = report(tmp_path, ledgers, pictures=True)
    shown = " ".join(HOSTILE.replace("\x02", " ").split())
    assert "".join(page.text).count(shown) > 12
    assert {"script", "code", "em", "a", "del"} & set(page.seen) <= {"em"}, "the rule has emphasis"
    for cell in (cell for table in page.tables for row in table for cell in row if "alert" in cell):
        assert shown in cell, "no cell was split"
    for row in (text for text in markdown.splitlines() if text.startswith("|") and "alert" in text):
        assert row.replace("&#124;", "").count("alert") == row.count("a&#124;b"), "nor would another reader split it"
        assert row.replace(" | ", "").strip("| ").count("|") == 0
    for picture in (tmp_path / "out/report-plots").iterdir():
        ElementTree.parse(picture)


# -- files -----------------------------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_needs_nothing(tmp_path: Path) -> None:
    markdown, page = report(tmp_path, chain(), pictures=True)
    source = (tmp_path / "out/report.html").read_text()
    assert not {"link", "script", "img", "iframe"} & set(page.seen)
    assert {reference[0] for reference in page.references} == {"#"}
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", source)) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert set(re.findall(r"https?://[^\"' )]+", source)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in source.replace("url(#", "")
    assert source.count('role="img"') == source.count("<svg") == source.count("<figure>") > 0
    assert source.count('<div class="wide"') == source.count("<table>") == len(page.tables)
    for style in ("overflow-x: auto", "prefers-color-scheme: dark", "position: sticky"):
        assert style in source
    pictures = re.findall(r"!\[[^\]]+\]\((report-plots/[a-z0-9-]+\.svg)\)", markdown)
    assert [p.name for p in sorted((tmp_path / "out/report-plots").iterdir())] == sorted(Path(p).name for p in pictures)
    assert not {_INK, _LINE} & set(re.findall("#[0-9a-f]{6}", source)), "every placeholder has a colour"


def test_pictures_show_the_figures_that_there_are() -> None:
    ledgers = chain()
    found = {plot.name: plot for plot in plots(models(ledgers))}
    assert set(found) == {"disk", "memory", "perplexity", "sweep-1", "sweep-2", "curves", "speed", "operators"}
    texts = {name: set(ElementTree.fromstring(plot.file()).itertext()) for name, plot in found.items()}
    assert {"497.8", "327.7", "154.0", "141.3", "tuned nf4"} <= texts["disk"]
    assert {"180.2", "520.2", "tuned bf16"} <= texts["memory"]
    assert {"44.22", "38.90"} <= texts["perplexity"]
    assert {"22.10", "61.00"} <= texts["speed"]
    assert {"l1", "random", "sparsity"} <= texts["sweep-2"]
    assert {"aten::addmm", "distilled bf16", "tuned nf4 fp32"} <= texts["operators"]
    ledgers[PRUNED][-1].pop("sweeps")
    for entries in ledgers.values():
        for e in entries:
            e.pop("curve", None)
            e.pop("benchmark", None)
            e["quality"]["after"]["perplexity"] = float("inf")
    assert [plot.name for plot in plots(models(ledgers))] == ["disk", "sweep-1"]


def test_the_same_ledgers_give_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        report(tmp_path / name, {"checkpoints/first/model": [entry("first", "FineTune", 40, 1000)]}, pictures=True)
    for path in (tmp_path / "a/out").rglob("*.*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b/out" / path.relative_to(tmp_path / "a/out")).read_bytes()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "plots", lambda rows: [])
    write(tmp_path, chain())
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"report: --output .*file cannot be written"):
        write_report([str(tmp_path / "checkpoints")], str(tmp_path / "file"), 1, 10)


def test_a_run_a_pipeline_and_a_model_folder_are_found(tmp_path: Path) -> None:
    write(tmp_path, chain())
    hidden = tmp_path / "checkpoints/quick/.old/model"
    inner = tmp_path / "checkpoints/quick/tuned/trial/model"
    for folder in (hidden, inner):
        folder.mkdir(parents=True)
        (folder / "ledger.json").write_text("damaged")
    quick = tmp_path / "checkpoints/quick"
    assert len(find([str(quick)])) == 7
    assert len(find([str(quick / "tuned")])) == 3
    assert list(find([str(quick / "tuned/model-nf4")])) == [str(quick / "tuned/model-nf4")]
    assert len(find([str(quick), str(quick / "tuned"), f"{quick}/../quick"])) == 7


# -- the command -----------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_report(tmp_path: Path) -> None:
    write(tmp_path, chain())
    done = run_cli(tmp_path, "report", "checkpoints/quick", "--output", "out", "--budget", "0.5", "--gain", "5")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "report: out/report.md and out/report.html\n"
    assert "is at most 0.5 above" in (tmp_path / "out/report.md").read_text()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.md", "report.html", "report-plots"}


def test_bad_folders_are_all_named_and_nothing_is_written(tmp_path: Path) -> None:
    write(tmp_path, {**chain(), "checkpoints/void/model": []})
    (tmp_path / "empty").mkdir()
    for name, text in (("broken", "[{"), ("list", '{"stage": "x"}'), ("numbers", "[1]")):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model/ledger.json").write_text(text)
    done = run_cli(tmp_path, "report", "checkpoints", "gone", "empty", "broken", "list", "numbers", "--output", "out")
    assert done.returncode == 2
    advice = "holds no ledger.json; give the folder of a run (checkpoints/RUN) or of a pipeline"
    problems = [text.removeprefix("lightgpt2: error: ") for text in done.stderr.splitlines()]
    assert problems[:2] == [f"report: gone {advice}", f"report: empty {advice}"]
    assert problems[2].startswith("checkpoints/void/model/ledger.json: it has no entries")
    assert [text.split(": damaged (")[0] for text in problems[3:]] == [
        f"{name}/model/ledger.json" for name in ("broken", "list", "numbers")
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["--gain", "-1"], ["--budget", "x"], ["--nothing", "1"]])
def test_bad_options(tmp_path: Path, options: list[str]) -> None:
    write(tmp_path, chain())
    done = run_cli(tmp_path, "report", "checkpoints", *options)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert options[0][2:] in done.stderr
    assert not (tmp_path / "report.md").exists()


def test_the_report_starts_without_what_takes_seconds_to_import() -> None:
    script = "import sys, json, lightgpt2.report.pages; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True).stdout
    )
    assert "lightgpt2.models.ledger" in loaded
    assert not {"torch", "lightning", "transformers", "numba", "matplotlib.pyplot"} & set(loaded)
