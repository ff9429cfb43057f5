"""Standard output that is closed, full, or read no further: the artefact is complete, and the exit code says so."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import ENVIRONMENT
from tests.support.mistakes import Bench

_HEAD, _FULL, _CLOSED = "| head -n 1 >&2", "> /dev/full", ">&- 2>&-"


def shell(*args: str, ending: str) -> tuple[int, str]:
    """`lightgpt2 ARGS` with an ending in bash: its exit code, and what is on standard error."""
    command = f"{sys.executable} -m lightgpt2 {' '.join(args)} {ending}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("ending", [_HEAD, _FULL, _CLOSED])
def test_a_fit_whose_output_nobody_takes_is_complete(bench: Bench, ending: str) -> None:
    bench.configure({"trainer.max_steps": 1})
    code, said = shell("fit", "--config", "config.yaml", "--run", "r", ending=ending)
    assert code == 0, said
    assert Path("checkpoints/r/model/scores.npz").is_file()
    assert ("standard output: cannot be written (No space left on device)" in said) == (ending == _FULL)


@pytest.mark.parametrize(("ending", "code"), [("| true", 0), (_FULL, 2), (">&-", 2)])
def test_text_that_cannot_be_printed_is_said(bench: Bench, ending: str, code: int) -> None:
    found, said = shell("generate", "teacher", "--prompt", "'a b'", "--max-new-tokens", "3", ending=ending)
    assert found == code, said
    assert ("error: standard output: cannot be written" in said) == (code == 2)
