"""What a run prints: a header, lines of progress where there is no terminal, and what to do next; and `fit` from Python."""

from pathlib import Path

import pytest

from lightgpt2.callbacks import progress
from lightgpt2.callbacks.progress import changed
from lightgpt2.cli.api import fit
from lightgpt2.errors import UserError
from lightgpt2.models.ledger import Ledger
from tests.support.mistakes import Bench


@pytest.mark.slow
def test_header_lines_and_closing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0)
    bench.configure({"trainer.enable_progress_bar": True})
    code, out, err = bench.run("fit")
    assert code == 0, err
    lines = out.splitlines()
    assert [line[:8].strip() for line in lines[:4]] == ["model", "text", "device", "folder"]
    assert "parameters" in lines[0]
    assert "trained by Distill" in lines[0]
    assert lines[1].startswith("text    corpus: train ")
    assert lines[2] == "device  cpu, 1 process, precision 32-true"
    steps = [line for line in err.splitlines() if line.startswith("step ")]
    assert [line.split(" (")[0] for line in steps] == ["step 1/3", "step 2/3", "step 3/3"]
    assert all(" left, loss " in line and line.endswith(" tokens/s") for line in steps[1:])
    assert "report  lightgpt2 report checkpoints/r" in lines
    assert "next    lightgpt2 generate checkpoints/r/model --prompt 'The '" in lines


def test_changes_are_in_per_cent_for_any_task() -> None:
    def quality(accuracy: float) -> dict[str, object]:
        return {"accuracy": {"value": accuracy, "better": "higher"}, "primary": "accuracy", "texts": 9}

    first = {"sizes": {"parameters": 2000, "megabytes": 8.0}}
    last = {"sizes": {"parameters": 1000, "megabytes": 2.0}, "quality": {"before": quality(0.5), "after": quality(0.8)}}
    assert changed(Ledger([first, last])) == [
        "accuracy 0.5000 -> 0.8000 (+60.0%)", "parameters 2,000 -> 1,000 (-50.0%)", "MB on disk 8.0000 -> 2.0000 (-75.0%)",
    ]  # fmt: skip
    assert changed(Ledger()) == changed(Ledger([{"quality": {}}])) == []


@pytest.mark.slow
def test_fit_from_python(bench: Bench) -> None:
    result = fit("config.yaml", run="r", trainer__max_steps=2, **{"model.optimizer.lr": 1e-4})
    assert result.folder == Path("checkpoints/r/model")
    last = Ledger.read(result.folder).last
    assert (last["steps"], last["config"]["model"]["init_args"]["optimizer"]["lr"]) == (2, 1e-4)
    assert set(result.metrics) == {name for name, each in last["quality"]["after"].items() if isinstance(each, dict)}
    with pytest.raises(UserError, match=r"data\.sorce: no such key; did you mean source"):
        fit("config.yaml", data__sorce="x")
    with pytest.raises(UserError, match=r"gone\.yaml does not exist"):
        fit("gone.yaml")
