"""Encoder-decoders as arms of a benchmark."""

from pathlib import Path

import pytest

from lightgpt2.errors import UserError
from lightgpt2.measure.plan import plan
from lightgpt2.measure.worker import worker_of
from lightgpt2.models.workloads import Documents, Encoding, Generation, Workload
from tests.support.models import write_seq2seq

WORKLOADS: list[Workload] = [
    Encoding(2, 9), Generation(8, 4), Documents(((9, 5), (20, 3))), Documents(((9, 5), (20, 3)), beams=3),
]  # fmt: skip


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_each_is_measured_and_profiled(family: str, tmp_path: Path) -> None:
    write_seq2seq(tmp_path / "model", family)
    ((arm,), workloads) = plan([str(tmp_path / "model")], None, ["sdpa"], {"new_tokens": [4], "forward_tokens": [16]})
    assert [each.key for each in workloads] == ["encode 1x16", "generate 4", "documents greedy", "documents 4 beams"]
    worker = worker_of(arm, WORKLOADS, "cpu")
    sizes = worker.load()
    assert (sizes["weights_mb"] or 0) > 0
    measured = worker.round()
    assert len(measured["generate 4"]["others"]) == 3
    for key in ("documents greedy", "documents 3 beams"):
        assert len(measured[key]) == 2
        assert all(milliseconds > 0 for milliseconds in measured[key])
    figures = WORKLOADS[2].figures([measured["documents greedy"]])
    assert figures["documents_per_s"] == pytest.approx(2e3 / sum(measured["documents greedy"]))
    profiled = worker.profile(tmp_path / "trace.json")
    assert profiled["operators"]
    assert (tmp_path / "trace.json").is_file()


def test_settings_of_another_task_are_refused(tmp_path: Path) -> None:
    write_seq2seq(tmp_path / "model", "bart")
    with pytest.raises(UserError, match=r"^--concurrency: has no meaning for Summarization; remove it$"):
        plan([str(tmp_path / "model")], None, ["sdpa"], {"concurrency": [2]})
