"""`report --watch`: a page that follows runs from before they begin until a Ctrl-C."""

import json
import re
import time
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from tests.report.chains import chain, write
from tests.support.cli import call

PAGE = Path("out/report.html")
RUN = Path("checkpoints/q/tuned")


def log(step: int) -> None:
    losses = {"train/loss": 5 - step / 8, "val/loss": 6 - step / 8}
    values = [Summary.Value(tag=name, simple_value=value) for name, value in losses.items()]
    writer = EventFileWriter(f"tb-logs/{RUN.relative_to('checkpoints')}")
    writer.add_event(Event(wall_time=step, step=step, summary=Summary(value=values)))
    writer.close()


def row(page: str) -> list[str]:
    """The cells of the run, as a person reads them."""
    line = next(line for line in re.findall(r"<tr>.*?</tr>", page, re.DOTALL) if "<td>q/tuned</td>" in line)
    return re.findall(r"<td[^>]*>(.*?)</td>", line)


def test_a_page_follows_runs_until_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[str] = []

    def sleep(seconds: float) -> None:
        """What goes on between two pages."""
        seen.append(PAGE.read_text())
        if len(seen) == 1:
            RUN.mkdir(parents=True)
            (RUN / "config.yaml").write_text("trainer: {max_steps: 40}")
        elif len(seen) == 2:
            log(8)
        elif len(seen) == 3:
            log(16)
        elif len(seen) == 4:
            write(tmp_path, chain())
        elif len(seen) == 5:
            (RUN / "model/ledger.json").write_text("[{")
        else:
            write(tmp_path, chain())
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    code, out, err = call(capsys, "report", "checkpoints/q", "--watch", "--output", "out")
    assert (code, err) == (130, "lightgpt2: stopped; out/report.html is as of now\n")
    assert out == "report: out/report.html, renewed every 5 s; Ctrl-C ends it\n"
    before, begun, first, second, done, damaged = seen
    assert all('<meta http-equiv="refresh" content="5"/>' in page for page in seen)
    assert "No run has begun yet." in before
    assert row(begun)[1:5] == ["unfinished", "–", "–", "–"]
    assert row(first)[1:5] == ["unfinished", "8 of 40", "4.0000", "5.0000"]
    assert row(second)[2:5] == ["16 of 40", "3.0000", "4.0000"]
    assert "Validation loss against optimizer steps" in second
    assert "Verdicts" not in second
    assert row(done)[1] == "finished"
    assert "Verdicts" in done
    assert "damaged (" in damaged
    assert row(damaged)[1] == "damaged"
    last = PAGE.read_text()
    assert "refresh" not in last
    assert "Verdicts" in last
    assert not [*Path("out").rglob("*.tmp")]


def test_the_command_without_it_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "report", "checkpoints/q")[0] == 2
    write(tmp_path, chain())
    code, _, _ = call(capsys, "report", "checkpoints/q")
    assert code == 0
    assert "refresh" not in Path("report.html").read_text()
    assert json.loads(Path("checkpoints/q/tuned/model/ledger.json").read_text())
