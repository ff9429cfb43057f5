"""Long runs of tiny models: whether memory and time per unit stay what they are at the beginning.

    python -m benchmarks.soak [--prompts 20000] [--steps 10000] [--megabytes 200]

Each is one process, of which the resident memory is read ten times a second. Its progress is the size of what it writes: the
journal of `generate --prompts`, a byte for each step of `fit`, the tokens of the text. The first and the last tenth of that are
compared: medians of the memory, and the time that each took. `own` is the memory without the pages of mapped files.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from lightning.pytorch import Callback

from benchmarks.common import ROOT, gpt2, machine, markdown, parser
from benchmarks.corpora import write_corpus
from lightgpt2.data.corpora import Corpus
from lightgpt2.data.tokenizer import train_tokenizer
from lightgpt2.models.saving import save_model
from lightgpt2.models.tokenizers import load_tokenizer

_EVERY, _STEPS = 0.1, Path("steps")  # seconds between two looks; a byte for each step
_PREPARE = (
    "from lightgpt2.data import LanguageModelingData as Data; Data({!r}, tokenizer='model', processes=1).prepare_data()"
)


class StepLog(Callback):
    """Writes a byte for each optimizer step."""

    def on_train_batch_end(self, *_: Any) -> None:
        with _STEPS.open("a") as file:
            file.write(".")


Sample = tuple[float, int, float, float]  # seconds, bytes of progress, resident MB, its own MB


def memory(pid: int) -> tuple[float, float]:
    """The resident memory of a process in MB, and that part of it which is no mapped file."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = {
        name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }
    return kilobytes.get("VmRSS", 0) * 1024 / 1e6, kilobytes.get("RssAnon", 0) * 1024 / 1e6


def watch(folder: Path, written: str, *args: str) -> list[Sample]:
    """What a Python process did while the files of a pattern grew."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    samples: list[Sample] = []
    with (folder / "said").open("w") as said:
        process = subprocess.Popen([sys.executable, *args], cwd=folder, env=environment, stdout=said, stderr=said)
        while process.poll() is None:
            size = 0
            for path in folder.glob(written):
                try:
                    size += path.stat().st_size
                except FileNotFoundError:  # it has just got its final name
                    size = 0
            if size and (not samples or size > samples[-1][1]):
                samples.append((time.monotonic(), size, *memory(process.pid)))
            time.sleep(_EVERY)
    if process.returncode:
        raise SystemExit((folder / "said").read_text())
    return samples


def row(name: str, units: float, samples: list[Sample]) -> list[str]:
    """First and last tenth: memory, its own, and milliseconds a unit; the peak."""
    sizes = np.array([size for _, size, *_ in samples], float)
    first, last = sizes[0], sizes[-1]
    tenths = []
    for low, high in ((0.0, 0.1), (0.9, 1.0)):
        ends = first + np.array([low, high]) * (last - first)
        begun, ended = np.interp(ends, sizes, [seconds for seconds, *_ in samples])
        inside = [each for each in samples if ends[0] <= each[1] <= ends[1]]
        milliseconds = (ended - begun) * 1e3 / (units * (ends[1] - ends[0]) / last)
        tenths.append((median(each[2] for each in inside), median(each[3] for each in inside), milliseconds))
    pairs = [f"{a:,.{digits}f} - {b:,.{digits}f}" for digits, a, b in zip((0, 0, 2), *tenths, strict=True)]
    return [name, *pairs[:2], f"{max(s[2] for s in samples):,.0f}", pairs[2]]


def config(steps: int) -> dict[str, Any]:
    every = {"val_check_interval": steps, "check_val_every_n_epoch": None, "enable_progress_bar": False}
    data = {"source": "pydoc", "tokenizer": "model", "sequence_length": 32, "batch_size": 4}
    return {
        "seed_everything": 1,
        "model": {"class_path": "lightgpt2.methods.FineTune", "init_args": {"model": "model"}},
        "data": {"class_path": "lightgpt2.data.LanguageModelingData", "init_args": data},
        "checkpoint": {"every_n_steps": max(1, steps // 100)},
        "trainer": {"max_steps": steps, **every, "callbacks": [{"class_path": "benchmarks.soak.StepLog"}]},
    }


def main() -> None:
    options = parser(__doc__, prompts=20_000, steps=10_000, megabytes=200).parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_tokenizer((str(text) for _, text in Corpus("pydoc").documents()), 1000, folder / "tokenizer")
        tokenizer = load_tokenizer(str(folder / "tokenizer"), "tokenizer")
        save_model(gpt2(2, 32, 2, 64, len(tokenizer)), tokenizer, folder / "model")
        lines = (json.dumps({"id": number, "prompt": "The statement"}) for number in range(options.prompts))
        (folder / "p.jsonl").write_text("".join(f"{line}\n" for line in lines))
        (folder / "fit.yaml").write_text(yaml.safe_dump(config(options.steps)))
        write_corpus(folder / "text.txt", options.megabytes)
        generate = "-m lightgpt2 generate model --prompts p.jsonl --output o.jsonl --max-new-tokens 16 --temperature 1"
        found = watch(folder, "o.jsonl.partial", *generate.split())
        rows.append(row(f"{options.prompts:,} prompts", options.prompts, found))
        fit = ["-m", "lightgpt2", "fit", "--config", "fit.yaml"]
        found = watch(folder, str(_STEPS), *fit)
        rows.append(row(f"{options.steps:,} steps", options.steps, found))
        found = watch(folder, "checkpoints/.data/.*.partial/train.bin", "-c", _PREPARE.format("text.txt"))
        rows.append(row(f"{options.megabytes} MB of text", options.megabytes, found))
    print(machine(), end="\n\n")
    print(markdown(["run", "MB", "own MB", "peak MB", "ms a prompt, step, MB"], rows))


if __name__ == "__main__":
    main()
