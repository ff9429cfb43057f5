"""`runs`, `show` and `clean`: what they say of real runs, and what they leave alone."""

import json
import os
from pathlib import Path

import pytest

from tests.support.cli import call, refused
from tests.support.mistakes import Bench
from tests.support.models import write_model

RUN = Path("checkpoints/r")


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    code, out, err = call(capsys, *args)
    assert code == 0, err
    return out


def row(text: str, name: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


def make_unfinished() -> None:
    """As a run that was resumed and stopped leaves its newest checkpoint."""
    os.utime(RUN / "last.ckpt", (2e9, 2e9))


def test_runs_are_listed_with_what_their_ledgers_say(finished: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(RUN / "model-other")
    text = printed(capsys, "runs")
    entry = json.loads((RUN / "model/ledger.json").read_text())[-1]
    perplexity = entry["quality"]["after"]["perplexity"]["value"]
    state, method, name, value, size, *_ = row(text, "r")[1:]
    assert (state, method, name) == ("finished", "Distill", "perplexity")
    assert float(value) == pytest.approx(perplexity, rel=1e-3)
    assert float(size) == pytest.approx((RUN / "model/model.safetensors").stat().st_size / 1e6, abs=0.005)
    assert row(text, "model-other")
    assert printed(capsys, "runs", "r") == text
    assert printed(capsys, "runs", "checkpoints/r/") == text, "as a shell completes it"
    make_unfinished()
    assert row(printed(capsys, "runs"), "r")[1] == "unfinished"
    (RUN / "model/ledger.json").write_text("[")
    assert row(printed(capsys, "runs"), "r")[1] == "damaged"


def test_a_run_is_shown_whole(finished: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "show", "r")
    assert "Distill of teacher" in text
    assert "3 steps" in text
    for path in ("model", "last.ckpt", "config.yaml"):
        assert f"checkpoints/r/{path}" in text
    assert [line.split()[0] for line in text.splitlines()[-2:]] == ["before", "after"]


def test_only_checkpoints_of_finished_runs_are_removed_and_only_on_request(
    finished: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    def files() -> set[str]:
        return {str(path) for path in Path("checkpoints").rglob("*") if path.is_file()}

    before, kept = files(), {str(path) for path in RUN.glob("*.ckpt")}
    text = printed(capsys, "clean")
    assert all(path in text for path in kept)
    assert files() == before
    make_unfinished()
    assert "nothing can go" in printed(capsys, "clean", "--yes")
    assert files() == before
    os.utime(RUN / "last.ckpt", (1e9, 1e9))
    printed(capsys, "clean", "r", "--yes")
    assert files() == before - kept
    assert "perplexity" in finished.succeed("validate")
    printed(capsys, "clean", "--data", "--yes")
    assert not any("/.data/" in path for path in files())


def test_a_run_that_is_not_there_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there are no runs" in printed(capsys, "runs")
    for verb in ("runs", "show", "clean"):
        assert refused([verb, "nowhere"], capsys) == [
            "nowhere: no such run under checkpoints/; run lightgpt2 fit first"
        ]
