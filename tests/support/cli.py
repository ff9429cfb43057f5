"""Runs the real command in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[2]


def run_cli(folder: Path, *args: str, timeout: float = 240, **env: str) -> subprocess.CompletedProcess[str]:
    """`lightgpt2 ARGS` in a folder; without a network, on one thread."""
    return subprocess.run(
        [sys.executable, "-m", "lightgpt2", *args],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def succeed(folder: Path, *args: str, **kwargs: Any) -> str:
    """Runs the command and returns what it printed; fails the test unless it exits with 0."""
    done = run_cli(folder, *args, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """Writes a configuration."""
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def logged(folder: Path, run: str) -> dict[str, dict[int, float]]:
    """Every scalar that a run has in TensorBoard by step, as a reader that honours purged steps sees it."""
    events = EventAccumulator(str(folder / "tb-logs" / run), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
