"""The measurements run, small, and the losses of their arms agree."""

import re
import subprocess
import sys

import pytest

from tests.support.cli import ROOT

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
