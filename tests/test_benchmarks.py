"""The measurements run, small, and the losses of their arms agree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import ROOT
from tests.support.models import write_corpus, write_model

SMALL = [
    "--rounds", "2", "--warmup", "1", "--batch", "2", "--length", "16", "--width", "32", "--heads", "2",
    "--teacher-width", "32", "--teacher-heads", "2", "--teacher-layers", "2", "--student-layers", "1", "--vocabulary", "300",
]  # fmt: skip


@pytest.mark.slow
def test_gpu_benchmark_runs_small_on_a_cpu() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", *SMALL, "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for arm in ("bare plain", "trainer plain", "bare fused", "lightgpt2"):
        assert re.search(rf"^\| {arm} \| [\d.]+ \|", done.stdout, flags=re.MULTILINE), done.stdout
    worst = re.search(r"largest relative difference .*: ([\d.e+-]+)$", done.stdout, flags=re.MULTILINE)
    assert worst is not None
    assert float(worst[1]) < 1e-5
    assert "of the peak" in done.stdout
    assert "heads and loss, fused" in done.stdout
    for arm in ("eager", "static cache, not compiled"):
        assert re.search(rf"^\| {arm} \| [\d.]+ \| [\d.]+x \|$", done.stdout, flags=re.MULTILINE), done.stdout


@pytest.mark.slow
def test_resistance_is_told_of_both_models_on_both_texts(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", documents=24)
    for name in ("general", "special"):
        write_model(tmp_path / name)
    command = [
        sys.executable, "-m", "benchmarks.resistance", "--general", str(tmp_path / "general"), "--specialised",
        str(tmp_path / "special"), "--source", "requirements:200", "--general-source", str(tmp_path / "corpus"), "--levels",
        "0.8", "--folder", str(tmp_path / "work"), "--set", "data.sequence_length=32",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for arm in ("general, general text", "general, domain", "specialised, domain"):
        row = rf"^\| {arm} \| (\d+) % \|.*\| ([\d.]+) \(.*\| ([\d.]+) \(.*$"
        rows = re.findall(row, done.stdout, flags=re.MULTILINE)
        assert [level for level, *_ in rows] == ["0", "80"], done.stdout
        assert rows[0][1:] == ("1.000", "1.000"), "of itself"
    assert "general, domain" in (tmp_path / "work/resistance.svg").read_text()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert again.stdout in done.stdout, "what was swept is kept"
