"""A pipeline that was killed, stopped or interrupted is the one that was not; `fit` has the stand-in of test_pipeline.py."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.kill import children, kill_with_children
from tests.support.pipelines import Chain, artefacts, starts, state, wait_for


@pytest.mark.slow
def test_an_interrupted_stage_is_resumed_or_begun_again(pipe: Chain) -> None:
    pipe.change("a", trainer__fail_at=2)  # before its first checkpoint, which is at 3
    pipe.fails("chain/a new")
    assert state()["a"]["state"] == "running"
    assert pipe.plans()["a"] == ("run", "it ended before its first checkpoint")
    pipe.change("a", trainer__fail_at=4)
    assert pipe.plans()["a"] == ("run", "trainer.fail_at: 2 -> 4")
    pipe.fails("chain/a new")
    assert pipe.plans()["a"] == ("resume", "it was interrupted")
    pipe.fails("chain/a last")
    pipe.change("a", trainer__fail_at=None)
    assert pipe.started()[0] == "chain/a new", "a changed stage never goes on from an old checkpoint"


@pytest.mark.slow
def test_an_interrupted_stage_whose_input_has_moved_is_begun_again(pipe: Chain) -> None:
    pipe.change("c", trainer__fail_at=4)
    pipe.fails("chain/a new", "chain/b new", "chain/c new")
    pipe.stages = {"a": pipe.stages["a"], "second": pipe.stages["b"], "c": pipe.stages["c"]}
    pipe.write()
    pipe.fails("chain/second new", "chain/c new")  # the same weights in another folder


@pytest.mark.slow
def test_a_stage_that_died_is_run_again_or_resumed_where_it_had_a_checkpoint(pipe: Chain) -> None:
    pipe.change("b", trainer__max_steps=0, trainer__dies=True)  # it trains nothing
    assert "was killed by signal 9. The stages before it stay" in pipe.fails("chain/a new", "chain/b new")
    pipe.change("b", trainer__max_steps=5)
    pipe.fails("chain/b new")
    assert pipe.plans()["b"] == ("resume", "it was interrupted"), "it had scored"
    pipe.change("b", trainer__dies=None)
    assert pipe.started() == ["chain/b new", "chain/c new"]


@pytest.mark.parametrize("lacks", ["saves", "scores"])
def test_a_stage_without_a_scored_artefact_is_an_error(pipe: Chain, lacks: str) -> None:
    pipe.change("b", **{f"trainer__{lacks}": False})
    err = pipe.fails("chain/a new", "chain/b new")
    assert "stages.b: it ended without an artefact that was scored (checkpoints/chain/b/model)" in err
    assert state()["b"]["state"] == "running"


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_equals_uninterrupted(pipe: Chain) -> None:
    pipe.change("a", trainer__max_steps=20, trainer__seconds=0.01)
    pipe.change("b", trainer__max_steps=10, trainer__seconds=0.02)
    began = time.monotonic()
    pipe.started()
    whole = artefacts()
    seconds = time.monotonic() - began
    chance, kills = random.SystemRandom(), list[float]()
    for _ in range(4):
        shutil.rmtree("checkpoints")
        for _ in range(3):
            kills.append(chance.uniform(0.2, seconds))
            process = pipe.process()
            time.sleep(kills[-1])
            kill_with_children(process.pid)
            process.communicate()
        pipe.started()
        assert artefacts() == whole, kills
        assert not list(Path("checkpoints/chain").glob(".*"))


def test_killed_while_a_stale_run_is_removed(done: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its old checkpoint is gone, which a changed stage never goes on from; or after it was out of the way."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    whole = artefacts()
    done.change("b", trainer__max_steps=7)
    with monkeypatch.context() as patch:
        patch.setattr("lightgpt2.runs.pipeline._discard", killed)
        assert done.run()[0] == 130
    assert done.plans()["b"] == ("run", "trainer.max_steps: 5 -> 7")
    done.change("b", trainer__max_steps=5)
    Path("checkpoints/chain/b").rename("checkpoints/chain/.b.stale")
    Path("checkpoints/chain/.pipeline.json.1.tmp").write_text("{")
    assert done.plans()["b"] == ("run", "its artefact is gone")
    assert done.started() == ["chain/b new"]
    assert artefacts() == whole
    assert not list(Path("checkpoints/chain").glob(".*"))


@pytest.fixture
def busy(pipe: Chain) -> Iterator[subprocess.Popen[str]]:
    """A pipeline that is at work on its second stage, and would be for a while."""
    pipe.change("b", trainer__max_steps=400, trainer__seconds=0.02)
    process = pipe.process()
    wait_for(Path("checkpoints/chain/b/last.ckpt").exists)
    yield process
    kill_with_children(process.pid)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True], ids=["a supervisor's", "the terminal's"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_stage_once_and_lets_it_save(
    pipe: Chain, busy: subprocess.Popen[str], signum: signal.Signals, whole_group: bool
) -> None:
    os.killpg(busy.pid, signum) if whole_group else os.kill(busy.pid, signum)
    _, err = busy.communicate(timeout=30)
    assert busy.returncode == 130
    assert err.strip() == "lightgpt2: b was interrupted; the same command goes on from there"
    assert starts("signals") == [signum.name], "a second one would stop it without saving"
    assert pipe.plans()["b"] == ("resume", "it was interrupted")


@pytest.mark.slow
def test_a_second_signal_is_passed_on_too(pipe: Chain) -> None:
    """And where the stage ends well all the same, the pipeline stops before the next."""
    pipe.change("b", trainer__max_steps=30, trainer__seconds=0.02, trainer__deaf=True)
    process = pipe.process()
    wait_for(Path("checkpoints/chain/b/last.ckpt").exists)
    for count in (1, 2):
        process.send_signal(signal.SIGINT)
        wait_for(lambda count=count: len(starts("signals")) == count)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "lightgpt2: interrupted between two stages; the same command goes on from there"
    assert state()["b"]["state"] == "finished"
    assert starts() == ["chain/a new", "chain/b new"]
    assert pipe.started() == ["chain/c new"]


def test_ctrl_z_pauses_the_stage_too(busy: subprocess.Popen[str]) -> None:
    def written() -> int:
        return Path("checkpoints/chain/b/last.ckpt").stat().st_mtime_ns

    busy.send_signal(signal.SIGTSTP)
    os.waitid(os.P_PID, busy.pid, os.WSTOPPED)
    time.sleep(0.1)
    paused = written()
    time.sleep(0.3)
    assert written() == paused
    busy.send_signal(signal.SIGCONT)
    wait_for(lambda: written() > paused)


def test_two_pipelines_do_not_share_a_folder(pipe: Chain, busy: subprocess.Popen[str]) -> None:
    before = state()
    code, out, err = pipe.run()
    assert (code, out) == (2, "")
    assert "checkpoints/chain: another pipeline, or a stage of one, is at work there" in err
    assert state() == before
    (stage,) = children(busy.pid)
    os.kill(busy.pid, signal.SIGKILL)  # the pipeline alone: its stage goes on, and keeps the lock to its end
    os.waitid(os.P_PID, busy.pid, os.WEXITED | os.WNOWAIT)
    assert pipe.run()[0] == 2
    os.kill(stage, signal.SIGKILL)
