"""The pages: every figure is the ledgers', whatever they hold, and the files are whole."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lightgpt2.errors import UserError
from lightgpt2.report.document import compose
from lightgpt2.report.markup import as_html
from lightgpt2.report.pages import find, write_report
from lightgpt2.report.plots import curves, scatters, sweep_plot
from lightgpt2.report.rows import models
from lightgpt2.report.table import typing_table, typing_verdict
from tests.report.chains import Entry, arm, benchmark, chain, entry, foreign, score, write
from tests.support.cli import ROOT

HOSTILE = "a|b<script>alert(1)</script>`x`*y*_z_ [k](http://e.x) & &amp; $q$ \\| ~~s~~ \"' \x02"
TUNED, PRUNED = "checkpoints/q/tuned/model", "checkpoints/q/pruned/model"


class Page:
    """A page, which must be XML too: its elements, its text, and its tables as lists of rows of cells."""

    def __init__(self, source: str) -> None:
        self.elements = [*ElementTree.fromstring(source).iter()]
        assert not {"href", "src", "srcset", "markdown"} & {key for each in self.elements for key in each.attrib}
        self.text = "".join("".join(each.itertext()) for each in self.elements if each.tag == "main")
        tables = [each for each in self.elements if each.tag == "table"]
        self.tables = [[[" ".join(cell.itertext()) for cell in row] for row in table.iter("tr")] for table in tables]


def page_of(ledgers: dict[str, list[Entry]], budget: float = 2.0, gain: float = 10.0, **files: Any) -> tuple[str, Page]:
    text, plots = compose(models(ledgers, **files), budget, gain)
    return text, Page(as_html(text, plots))


def test_the_headline_says_what_the_last_model_is_against_the_source() -> None:
    text, page = page_of(chain())
    assert text.splitlines()[2] == "## tuned against baseline"
    assert page.tables[0] == [
        ["perplexity", "MB on disk", "forward 1x128, ms", "tokens/s at 128"],
        ["38.20", "327.7", "21.40", "47.20"],
        ["-13.6 % against baseline",
         "-34.2 % against 497.8; best inside the budget: tuned nf4 (+56.9 %)",
         "-47.8 % against 41.00; best inside the budget: tuned int8 (+15.0 %)",
         "+92.7 % against 24.50; best inside the budget: tuned int8 (+29.2 %)"],
    ]  # fmt: skip
    assert page.tables[1] == [["prompt", "before", "after"], ["A", "one", "two"]]
    parts = ("against baseline", "report-plots/size", "## Samples", "## Models", "## Verdicts")
    assert sorted(parts, key=text.index) == [*parts]
    assert "<details" not in text[: text.index("## Verdicts")]


def test_one_table_of_models_and_one_of_verdicts_hold_what_the_rows_hold() -> None:
    _, page = page_of(chain())
    assert len(page.tables) == 4
    assert page.tables[2][0] == [
        "model", "perplexity", "bits/byte", "parameters", "non-zero", "MB on disk", "weights in memory, MB",
        "peak memory, MB", "forward 1x128, ms", "tokens/s at 128", "training, s",
    ]  # fmt: skip
    assert page.tables[2][-1] == [
        "tuned nf4", "38.90 (35.01 to 42.79)", "0.9725", "81.91 M", "81.91 M", "141.3", "180.2", "520.2", "52.00", "22.10", "–",
    ]  # fmt: skip
    assert page.tables[3][0] == [
        "model", "what was done", "verdict", "quality against the source", "quality against before", "MB on disk",
        "weights in memory", "forward 1x128", "tokens/s at 128",
    ]  # fmt: skip
    assert page.tables[3][-1] == [
        "tuned nf4", "NF4 in 24 of 25 linear layers", "pays", "-12.0 %", "+1.8 %", "-56.9 %", "-45.0 %", "+143.0 %", "-53.2 %",
    ]  # fmt: skip
    assert [row[2] for row in page.tables[3][1:4]] == ["the start", "pays", "quality only"]
    assert page_of(chain(), gain=60)[1].tables[3][-1][2] == "does not pay"


def test_what_was_not_measured_has_no_column_and_a_collapse_is_said() -> None:
    text, page = page_of({"checkpoints/first/model": [entry("first", 40, generation={"collapsed": True})]})
    header = "model,perplexity,bits/byte,parameters,non-zero,MB on disk,training, s"
    assert ",".join(page.tables[1][0]) == header
    assert page.tables[2] == [
        ["model", "what was done", "verdict", "quality against the source", "quality against before"],
        ["first", "FineTune, 600 steps", "the start, collapsed", "–", "–"],
    ]
    assert "against" not in text[: text.index("## Models")]


def test_a_report_of_another_task_has_its_metric() -> None:
    text, page = page_of(foreign())
    assert page.tables[0][:2] == [["accuracy", "MB on disk"], ["0.900", "0.004"]]
    assert page.tables[2][-1][:4] == ["small shrunk", "shrunk to 3 bits", "outside the budget", "-6.6 %"]
    assert "accuracy against MB on disk" in text
    assert "perplexity" not in text


@pytest.mark.parametrize("ledgers", [chain(), foreign()])
def test_the_tables_fit_1280_pixels(ledgers: dict[str, list[Entry]]) -> None:
    """By the widest word or figure of each column: 7.6 pixels a letter of 13 pixels is more than fonts take."""
    for table in page_of(ledgers)[1].tables:
        widths = []
        for i, cells in enumerate(zip(*table, strict=True)):
            figures = i > 0 and all(re.fullmatch(r"[-+–\d.,%M ]+( \(.*\))?", cell) for cell in cells[1:])
            pieces = [piece for cell in cells[1:] for piece in (cell.split(" (") if figures else cell.split())]
            widths.append(max(7.6 * max(map(len, [*cells[0].split(), *pieces])) + 16, 0 if figures else 112))
        assert sum(widths) <= 1240 - 34


def test_text_of_ledgers_is_shown_and_does_nothing() -> None:
    ledgers = chain()
    tuned = ledgers[TUNED][-1]
    tuned["stage"] = f"q/{HOSTILE}"
    tuned["data"]["source"] = tuned["config_sha256"] = tuned["finished"] = HOSTILE
    tuned["operations"] = [{"op": HOSTILE, HOSTILE: HOSTILE, "kept": {HOSTILE: HOSTILE}}]
    tuned["benchmark"]["machine"]["name"] = HOSTILE
    tuned["benchmark"]["arms"][0] |= {"name": HOSTILE, HOSTILE: {HOSTILE: {"p50_ms": 3}}}
    tuned["quality"]["after"] = {HOSTILE: {"value": 3.0, "better": HOSTILE}, "primary": HOSTILE}
    tuned["samples"] = [{"prompt": HOSTILE, "before": HOSTILE, "after": HOSTILE}]
    values = [{"x": {"value": 3}, "primary": "x"}, {"x": {"value": 4}, "primary": "x"}]
    tuned["sweeps"] = {HOSTILE: {"key": HOSTILE, "values": [HOSTILE, 2], "arms": {HOSTILE: values}}}
    del ledgers[f"{TUNED}-nf4"], ledgers[f"{TUNED}-int8"]
    text, page = page_of(ledgers)
    shown = " ".join(HOSTILE.replace("\x02", " ").split())
    assert page.text.count(shown) > 8
    assert not {"script", "code", "a", "del"} & {each.tag.rpartition("}")[2] for each in page.elements}
    for cell in (cell for table in page.tables for row in table for cell in row if "alert" in cell):
        assert re.sub("[_ ]", "", shown) in re.sub("[_ ]", "", cell), "no cell was split"
    for row in (line for line in text.splitlines() if line.startswith("|") and "alert" in line):
        assert row.replace("&#124;", "").count("alert") == row.count("a&#124;b"), "nor would another reader split it"
    for plot in compose(models(ledgers), 2, 10)[1]:
        ElementTree.fromstring(plot.file())


def test_plots_show_the_figures_that_there_are() -> None:
    ledgers = chain()
    found = {plot.name: plot.svg for plot in (*scatters(models(ledgers), 2), *curves(models(ledgers)))}
    assert set(found) == {"size-1", "speed-1", "latency-1", "curves-1", "sweep-2"}
    for name, texts in {
        "size-1": ("tuned nf4", "baseline", "budget", "MB on disk", "perplexity (lower is better)"),
        "speed-1": ("tuned nf4", "tokens/s at 128"),
        "latency-1": ("tuned nf4", "forward 1x128, ms"),
        "curves-1": ("baseline", "tuned", "optimizer steps"),
        "sweep-2": ("l1", "random", "sparsity"),
    }.items():
        assert {*texts} <= {*ElementTree.fromstring(found[name]).itertext()}
    lines = re.findall(r'points="([\d.]+),([\d.]+) ([\d.]+),([\d.]+)" fill="none" stroke="#', found["size-1"])
    assert len(lines) == found["size-1"].count("<circle"), "each point has its interval"
    assert all(x == x2 and float(low) > float(high) for x, low, x2, high in lines)
    for each in (each for entries in ledgers.values() for each in entries):
        each["curve"] = []
        each["quality"]["after"]["perplexity"]["value"] = float("inf")
    assert [plot.name for plot in (*scatters(models(ledgers), 2), *curves(models(ledgers)))] == ["sweep-2"]


@pytest.mark.parametrize("values", [[1, 1], [1, 1e6], [-3, 0], [0, 0], [1e-9, 2e-9]])
def test_plots_stay_inside_their_frame(values: list[float]) -> None:
    plot = sweep_plot({"values": values, "arms": {"fit": [score(abs(each) + 1e-12) for each in values]}}, "key", "run")
    assert plot
    assert all(0 <= float(place) <= 560 for place in re.findall(r'c[xy]="([^"]+)"', plot.svg))
    assert sweep_plot({"values": [1], "arms": {"fit": [score(1)]}}, "key", "run") is None


def test_the_files_are_whole_and_the_same_each_time(tmp_path: Path) -> None:
    write(tmp_path, chain())
    for name in ("a", "b"):
        write_report([str(tmp_path / "checkpoints")], str(tmp_path / name), 0.5, 5)
    files = {str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*.*")}
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    text, page = (tmp_path / "a/report.md").read_text(), (tmp_path / "a/report.html").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\((report-plots/[a-z0-9-]+\.svg)\)", text)
    assert files == {"report.md", "report.html", *pictures}
    assert "more than 0.5 % worse" in text
    assert page.count("<svg") == page.count("<figure>") == len(pictures)
    assert set(re.findall(r"https?://[^\"' )]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "prefers-color-scheme: dark" in page
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"--output: .*file cannot be written"):
        write_report([str(tmp_path / "checkpoints")], str(tmp_path / "file"), 1, 10)


def test_runs_pipelines_model_folders_and_benchmarks_are_found(tmp_path: Path) -> None:
    write(tmp_path, chain())
    for name in (".old/model", "tuned/trial/model"):
        (tmp_path / "checkpoints/q" / name).mkdir(parents=True)
        (tmp_path / "checkpoints/q" / name / "ledger.json").write_text("damaged")
    quick = tmp_path / "checkpoints/q"
    (quick / "tuned/benchmark.json").write_text("{}")
    assert [len(found) for found in find([str(quick)])] == [7, 1, 0]
    assert [len(found) for found in find([str(quick / "tuned")])] == [3, 1, 0]
    assert list(find([str(quick / "tuned/model-nf4")])[0]) == [str(quick / "tuned/model-nf4")]
    assert [len(found) for found in find([str(quick), str(quick / "tuned"), f"{quick}/../q"])] == [7, 1, 0]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/benchmark.json").write_text(json.dumps(benchmark(arm("x", "y", "fp32", 1, 2, 3, name="gpt2 fp32"))))
    write_report([str(tmp_path / "b")], str(tmp_path / "out"), 2, 10)
    assert "gpt2 fp32" in (tmp_path / "out/report.md").read_text()


def typed(**models: float) -> Entry:
    """What `lightgpt2 type` writes, of models with the share that they get right."""
    rows: dict[str, Any] = {}
    for name, share in models.items():
        about = {"value": share, "interval_95": [share - 0.1, share + 0.1]}
        row: dict[str, Any] = dict.fromkeys(("incomplete", "complete", "savings"), about)
        row |= {"milliseconds": {"p50": 100 * share, "p95": 90.0, "first": 200.0}}
        row |= {"curves": {test: [[0.5, share + 0.2], [1.0, share]] for test in ("incomplete", "complete")}}
        rows[name] = row | ({"difference": dict.fromkeys(("incomplete", "complete", "savings"), about)} if rows else {})
    return {"settings": {"text": "t.txt", "samples": 1000, "keys": 2000, "seed": 0}, "rows": rows}


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ([-0.06, 0.01], "Keystrokes saved by a alone and with b for partial words: no difference."),
        ([-0.06, -0.01], "a alone saves more keystrokes than with b for partial words."),
        ([0.01, 0.06], "a alone saves fewer keystrokes than with b for partial words."),
        (None, ""),  # one passage says nothing of others
    ],
)
def test_a_verdict_on_one_model_or_two_needs_an_interval(ends: list[float] | None, said: str) -> None:
    result = typed(a=0.2, **{"a + b": 0.1})
    result["settings"]["partial"] = "b"
    result["rows"]["a + b"]["difference"]["savings"] = {"value": -0.06, "interval_95": ends}
    assert typing_verdict(result) == said


def test_what_was_typed_beside_the_runs_has_a_section_with_its_curves(tmp_path: Path) -> None:
    write(tmp_path, chain())
    folder = tmp_path / "checkpoints/q"
    for name, result in {"typing.json": typed(small=0.25, large=0.5), "typing-control.json": typed(large=0.5)}.items():
        (folder / name).write_text(json.dumps(result))
    write_report([str(folder)], str(tmp_path / "out"), 2, 10)
    text = (tmp_path / "out/report.md").read_text()
    (both, control) = text.split("## Typing")[1:]
    assert "1,000 places of each test, and 2,000 characters" in control
    assert "Differences" not in control
    assert "| small | 25.0%<br/><small>(15.0%..35.0%)</small> |" in both
    assert "in points more than small, on the same places" in both
    assert "for partial words" not in both
    assert re.findall(r"report-plots/(typing-[^)]+)\.svg", both) == [
        f"typing-1-{name}" for name in ("incomplete", "complete", "savings")
    ]
    savings = (tmp_path / "out/report-plots/typing-1-savings.svg").read_text()
    assert savings.count("<circle") == 4, "a point for each model, and its place in the legend"
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/typing.json").write_text(json.dumps(typed(small=0.25, large=0.5)))
    write_report([str(tmp_path / "alone")], str(tmp_path / "out"), 2, 10)
    assert "## Models" not in (tmp_path / "out/report.md").read_text()
    (tmp_path / "alone/typing.json").write_text('{"rows": {"x": {}}}')
    with pytest.raises(UserError, match=r"typing.json: damaged"):
        write_report([str(tmp_path / "alone")], str(tmp_path / "out"), 2, 10)


@pytest.mark.parametrize(("share", "said"), [(0.5, "saves fewer"), (-0.5, "saves more"), (0.05, "no difference")])
def test_one_model_and_two_are_compared(share: float, said: str) -> None:
    result = typed(small=0.25, **{"small + letters": share})
    result["settings"]["partial"] = "letters"
    assert said in typing_table(result).splitlines()[-1]


def test_bad_folders_are_all_named_and_nothing_is_written(tmp_path: Path) -> None:
    write(tmp_path, {**chain(), "checkpoints/void/model": []})
    for name, text in (("broken", "[{"), ("list", '{"stage": "x"}')):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model/ledger.json").write_text(text)
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed/benchmark.json").write_text("[1]")
    folders = [str(tmp_path / name) for name in ("checkpoints", "gone", "broken", "list", "speed")]
    with pytest.raises(UserError) as caught:
        write_report(folders, str(tmp_path / "out"), 2, 10)
    gone, void, *damaged = caught.value.problems
    assert gone == f"{folders[1]}: holds no ledger.json; give the folder of a run (checkpoints/RUN) or of a pipeline"
    assert void.endswith("void/model/ledger.json: has no entries; finish the run, or leave it out")
    assert [": damaged (" in problem for problem in damaged] == [True] * 3
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_report_starts_without_what_takes_long_to_import() -> None:
    script = "import sys, json, lightgpt2.report.pages; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True)
    assert not {"torch", "lightning", "transformers", "matplotlib"} & {*json.loads(done.stdout)}
