"""A bench for pipelines: a recipe whose stages `fake_fit.py` makes in the place of `lightgpt2 fit`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import ROOT, call, write_config

FAKE = ROOT / "tests/support/fake_fit.py"
NAMES = ("a", "b", "c")


class Chain:
    """A working folder with a recipe of three stages, and the pipeline in this process with a stand-in for `fit`."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        Path("text").mkdir()
        Path("text/one.txt").write_text("some text")
        for name, start in (("first", {}), ("student", {"teacher": "hub/teacher"}), ("next", {})):
            model = {"class_path": f"x.{name.title()}", "init_args": {"lr": 1.0, **start}}
            data = {"class_path": "x.Data", "init_args": {"source": "text"}}
            write_config(Path(f"{name}.yaml"), {"model": model, "data": data, "trainer": {"max_steps": 5}})
        configs = dict(zip(NAMES, ("first.yaml", "student.yaml", "next.yaml"), strict=True))
        self.stages: dict[str, dict[str, Any]] = {k: {"config": v, "overrides": {}} for k, v in configs.items()}
        self.write()
        fake = folder / "python"
        fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
        fake.chmod(0o755)
        self.python = str(fake)

    def write(self) -> None:
        write_config(Path("chain.yaml"), {"stages": [{"name": name, **stage} for name, stage in self.stages.items()]})

    def change(self, stage: str, **overrides: Any) -> None:
        """Changes overrides of a stage, written with two underscores for a dot."""
        self.stages[stage]["overrides"] |= {key.replace("__", "."): value for key, value in overrides.items()}
        self.write()

    def call(self, args: str) -> tuple[int, str, str]:
        """`lightgpt2 ARGS`: exit code, standard output, standard error."""
        Path("started").unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", self.python)
            return call(self._capsys, *args.split())

    def run(self, options: str = "") -> tuple[int, str, str]:
        return self.call(f"pipeline chain.yaml {options}")

    def started(self) -> list[str]:
        """Runs the recipe, which must succeed; the stages that it has started, and from where."""
        code, _, err = self.run()
        assert (code, err) == (0, "")
        return starts()

    def fails(self, *started: str, options: str = "") -> str:
        """Runs the recipe, which must fail after it has started these stages; what it says."""
        code, _, err = self.run(options)
        assert (code, starts()) == (2, [*started])
        return err

    def plans(self) -> dict[str, tuple[str, str]]:
        """What a dry run says of each stage; it must touch nothing."""
        before = everything()
        code, out, err = self.run("--dry-run")
        assert (code, err) == (0, "")
        assert everything() == before
        split = [line.split(maxsplit=2) for line in out.splitlines()]
        return {name: (action, reason) for name, action, reason in split}

    def process(self) -> subprocess.Popen[str]:
        """The pipeline in another process and process group."""
        script = f"import sys; from lightgpt2.cli import verbs; sys.executable = {self.python!r}; verbs.main()"
        return subprocess.Popen(
            [sys.executable, "-c", script, "pipeline", "chain.yaml"],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip


def starts(file: str = "started") -> list[str]:
    """The stages that the last command has started, and from where; or other lines of the stand-in."""
    return Path(file).read_text().splitlines() if Path(file).exists() else []


def everything() -> dict[Path, tuple[int, bytes]]:
    """Every file with its time and content, but the stand-in's list of what was started."""
    files = (path for path in Path().rglob("*") if path.is_file() and path.name != "started")
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def artefacts(folder: Path = Path()) -> dict[str, bytes]:
    runs = sorted((folder / "checkpoints/chain").glob("*/model/model.safetensors"))
    return {path.parts[-3]: path.read_bytes() for path in runs}


def state(folder: Path = Path()) -> dict[str, Any]:
    return json.loads((folder / "checkpoints/chain/pipeline.json").read_text())


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


@pytest.fixture
def pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chain:
    """A recipe of which nothing is done."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return Chain(tmp_path, capsys)


@pytest.fixture
def done(pipe: Chain) -> Chain:
    """A recipe of which everything is done."""
    assert pipe.started() == [f"chain/{name} new" for name in NAMES]
    return pipe
