"""The measurements run, small, and the losses of their arms agree."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import joint, paired, summarization
from benchmarks.engines import worker
from lightgpt2.data.tokenizer import train_wordpiece
from lightgpt2.models.families import DECODERS
from lightgpt2.models.quality import Metric
from lightgpt2.tasks import rouge
from tests.support.cli import ROOT
from tests.support.models import make_classifier, write_corpus, write_model

SMALL = [
    "--rounds", "2", "--warmup", "1", "--batch", "2", "--length", "16", "--width", "32", "--heads", "2",
    "--teacher-width", "32", "--teacher-heads", "2", "--teacher-layers", "2", "--student-layers", "1", "--vocabulary", "300",
]  # fmt: skip


def run(module: str, *options: str, seconds: int = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{module}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.long
@pytest.mark.slow
def test_training_steps_of_all_arms_lose_the_same() -> None:
    printed = run("training", *SMALL).stdout
    for arm in ("bare plain", "trainer plain", "bare fused", "lightgpt2"):
        assert re.search(rf"^\| {arm} \| [\d.]+ \|", printed, flags=re.MULTILINE), printed
    worst = re.search(r"largest relative difference .*: ([\d.e+-]+)$", printed, flags=re.MULTILINE)
    assert worst is not None
    assert float(worst[1]) < 1e-5


def test_the_page_of_families_has_all() -> None:
    lines = (ROOT / "docs/families.md").read_text().splitlines()
    assert [line.split("`")[1] for line in lines if line.startswith("| `")] == sorted(DECODERS)


@pytest.mark.long
@pytest.mark.slow
def test_the_page_of_families_is_what_its_command_prints() -> None:
    assert run("families", seconds=800).stdout == (ROOT / "docs/families.md").read_text()


def test_copies_are_sentences_of_their_sources(tmp_path: Path) -> None:
    articles = [
        {"text": f"One is {i}. Two is {i}. Three of {i} came.\n\nFour {i} went.", "summary": "x"} for i in range(9)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in articles))
    options = SimpleNamespace(source=tmp_path, seed=1, copies=30)
    (tmp_path / "copies").mkdir()
    summarization.write_copies(options, tmp_path / "copies")
    rows = [json.loads(line) for line in (tmp_path / "copies/train.jsonl").read_text().splitlines()]
    assert len(rows) == 30
    for row in rows:
        read, written = rouge.sentences(row["text"]), rouge.sentences(row["summary"])
        assert {*written} < {*read}
        assert " ".join(read) == row["text"]


@pytest.mark.long
@pytest.mark.slow
def test_resistance_is_of_both_models_on_both_texts(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", documents=24)
    for name in ("general", "special"):
        write_model(tmp_path / name)
    options = [
        "--general", str(tmp_path / "general"), "--specialised", str(tmp_path / "special"), "--source", "requirements:200",
        "--general-source", str(tmp_path / "corpus"), "--levels", "0.8", "--folder", str(tmp_path / "work"),
        "--set", "data.sequence_length=32",
    ]  # fmt: skip
    printed = run("resistance", *options).stdout
    for arm in ("general, general text", "general, domain", "specialised, domain"):
        row = rf"^\| {arm} \| (\d+) % \|.*\| ([\d.]+) \(.*\| ([\d.]+) \(.*$"
        rows = re.findall(row, printed, flags=re.MULTILINE)
        assert [level for level, *_ in rows] == ["0", "80"], printed
        assert rows[0][1:] == ("1.000", "1.000"), "of itself"
    assert "general, domain" in (tmp_path / "work/resistance.svg").read_text()
    assert run("resistance", *options).stdout == printed, "what was swept is kept"


@pytest.mark.slow
def test_engines_are_compared_in_rounds_and_missing_ones_are_named(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny")
    figures = tmp_path / "figures.json"
    done = run(
        "inference", "--model", str(tmp_path / "tiny"), "--arms", "sdpa", "CTranslate2 INT8", "--rounds", "2", "--threads", "1",
        "--prompt", "4", "--new-tokens", "6", "--length", "8", "--batches", "1", "2", "--tries", "1", "--json", str(figures),
        "--folder", str(tmp_path / "work"),
    )  # fmt: skip
    cell = r"[\d.]+: [\d.]+x \([\d.]+\.\.[\d.]+\)"
    row = rf"^\| transformers sdpa \| {cell} \| {cell} \| {cell} \| \d+ \| \d+ \| [\d.e-]+ \|$"
    assert re.search(row, done.stdout, flags=re.MULTILINE), done.stdout
    assert re.search(
        r"^\| CTranslate2 INT8|CTranslate2 INT8: not measured: .*ctranslate2", done.stdout, flags=re.MULTILINE
    )
    arms = json.loads(figures.read_text())["arms"]
    assert arms["transformers eager"]["measures"]["decode"]["ratio"] == [1.0, 1.0, 1.0], "of itself"
    assert len(arms["transformers sdpa"]["measures"]["forward 2x8"]["rounds_ms"]) == 2


def test_a_disturbed_measurement_is_repeated_and_the_least_disturbed_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    now, busy = [0.0], [0.0]
    monkeypatch.setattr(worker, "_PAUSE", 0.0)
    monkeypatch.setattr(worker, "busy_seconds", lambda: busy[0])
    monkeypatch.setattr(worker.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(worker.time, "process_time", lambda: 0.0)

    def measure(seconds_of_others: list[float]) -> tuple[float, float]:
        values, others = iter([50.0, 20.0, 40.0]), iter(seconds_of_others)

        def once() -> float:
            now[0] += 1.0
            busy[0] += next(others)
            return next(values)

        return worker.undisturbed(once, limit=3)

    assert measure([0.9, 0.01, 0.9]) == (20.0, pytest.approx(0.01)), "the second is undisturbed, and the last"
    assert measure([0.9, 0.5, 0.3]) == (40.0, pytest.approx(0.3)), "all tries are disturbed: the least"


def test_arms_are_compared_document_by_document() -> None:
    tokens = np.array([10.0, 30.0])
    plain = [Metric("perplexity", "lower", tokens * nll, tokens, "exp") for nll in (4.0, 4.2)]
    better = [Metric("perplexity", "lower", tokens * (nll - 0.1), tokens, "exp") for nll in (4.0, 4.2)]
    pairs = [("better", "plain"), ("better", "absent")]
    (found,) = paired.changes({"plain": plain, "better": better}, pairs).values()
    for change in found:
        assert (change.ratio, *change.interval_95) == pytest.approx([np.exp(-0.1)] * 3)  # type: ignore[misc]
    printed = paired.tables({"plain": plain, "better": better}, pairs, [1, 2])
    assert f"| plain | {np.exp(4.0):.4g} | {np.exp(4.2):.4g} | {np.exp(4.1):.4g} |" in printed
    assert "| better against plain | -9.52% (-9.52% to -9.52%) |" in printed


def test_fits_run_after_those_that_they_need_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def fit(folder: Path, name: str, arguments: list[str], threads: int) -> None:
        assert all((folder / part).exists() for part in arguments if part.startswith("checkpoints/"))
        ran.append(name)
        model = paired.model_folder(folder, name)
        model.mkdir(parents=True)
        (model / "scores.npz").touch()

    monkeypatch.setattr(paired, "lightgpt2", fit)
    for _ in range(2):
        paired.fit_all(tmp_path, {"teacher": []})
        for fits in joint.chains(50):
            paired.fit_all(tmp_path, paired.seeded(fits, [1, 2]), jobs=2)
    expected = ["base", "pruned", "joint", "one-after-another", "LoRA-taught", "LoRA"]
    assert sorted(ran) == sorted(["teacher", *(f"{arm}-{seed}" for arm in expected for seed in (1, 2))])


@pytest.mark.long
@pytest.mark.slow
def test_methods_of_classification_are_compared_with_the_trainer_of_transformers(tmp_path: Path) -> None:
    """On the same texts, with what is done already left as it is."""
    texts = [(f"text {number} is {word}", label) for number in range(40) for label, word in enumerate(("bad", "good"))]
    (tmp_path / "sst2").mkdir()
    for name, rows in (("train.tsv", texts[:64]), ("dev.tsv", texts[64:])):
        lines = "".join(f"{text}\t{label}\n" for text, label in rows)
        (tmp_path / "sst2" / name).write_text(f"sentence\tlabel\n{lines}")
    model = make_classifier("bert", classes=2, vocab_size=100, max_position_embeddings=128)
    train_wordpiece([text for text, _ in texts], 100, tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    options = [
        "--model",
        str(tmp_path / "model"),
        "--source",
        str(tmp_path / "sst2"),
        "--folder",
        str(tmp_path / "work"),
    ]
    options += ["--steps", "4", "--seeds", "1", "--threads", "1", "--arms", "trainer", "full"]
    printed = run("classification", *options).stdout
    found = json.loads((tmp_path / "work/results.json").read_text())["accuracy"]
    for arm in ("trainer", "full"):
        assert f"| {arm} | {found[arm][0]['value']:.4f} |" in printed
    assert re.search(r"^\| full against trainer \| [+-]\d", printed, flags=re.MULTILINE)
    assert re.search(r"^\| full \| [\d,]+ \| \d+ \| \d+ \|", printed, flags=re.MULTILINE), "what training took"
    assert "finished" not in run("classification", *options).stderr
