"""Corpora of 10 MB, 100 MB and 1 GB: preparing them, the first step, a step, resuming, and the memory of each.

    python -m benchmarks.corpora [--megabytes 10 100 1000] [--steps 200] [--rounds 3]

The text is made by this script: shuffled sentences of CPython's language reference, about 2 KB a document, none of
them twice. The tokenizer is trained on that reference, the model is a small GPT-2 with random weights, and a run scores as much
text at every size, so that only the size of the corpus differs. Each figure is of a process of its own; those of training are
medians over rounds that take the sizes in turn.
"""

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback

import lightgpt2
from benchmarks.common import ROOT, gpt2, machine, markdown, parser
from lightgpt2.data import LanguageModelingData
from lightgpt2.data.corpora import Corpus
from lightgpt2.data.tokenizer import train_tokenizer
from lightgpt2.models.saving import save_model
from lightgpt2.models.tokenizers import load_tokenizer

_VOCABULARY, _DOCUMENT, _SCORED = 8192, 2000, 0.5  # tokens; characters; megabytes that a run is scored on
_RESULT = Path("result.json")  # of a child, in its working folder


class Clock(Callback):
    """Notes when steps end, from the start of the process on."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.time() - float(os.environ["STARTED"]))

    def on_train_end(self, *_: Any) -> None:
        steps = [(b - a) * 1e3 for a, b in zip(self.ends, self.ends[1:], strict=False)]
        _write(first=self.ends[0], step=sorted(steps)[len(steps) // 2])


def _write(**figures: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    _RESULT.write_text(json.dumps({**figures, "peak": peak}))


def documents() -> Iterator[str]:
    """Documents without end: sentences in random order, each document with its number."""
    texts = [str(text) for _, text in Corpus("pydoc").documents()]
    sentences = [part for text in texts for part in text.replace("\n", " ").split(". ") if 20 < len(part) < 300]
    generator = random.Random(0)
    for number in count():
        parts, size = [f"Document {number}"], 0
        while size < _DOCUMENT:
            parts.append(generator.choice(sentences))
            size += len(parts[-1])
        yield ". ".join(parts)


def write_corpus(path: Path, megabytes: int) -> None:
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for text in documents():
            size += file.write(f"{text}\n\n")
            if size >= megabytes * 1e6:
                return


def settings(megabytes: int, processes: int | None) -> dict[str, Any]:
    held_out = {"valid_fraction": _SCORED / megabytes, "test_fraction": 0.0}
    return {"source": f"{megabytes}.txt", "tokenizer": "../model", "processes": processes, **held_out}


def prepare(megabytes: int, processes: int) -> None:
    """A child: tokenizes a corpus."""
    start = time.perf_counter()
    data = LanguageModelingData(**settings(megabytes, processes))
    data.prepare_data()
    seconds = time.perf_counter() - start
    data.setup("validate")
    _write(seconds=seconds, tokens=sum(split["tokens"] for split in data.meta["splits"].values()))


def train(megabytes: int, steps: int, checkpoint: str) -> None:
    """A child: trains on a corpus that is prepared."""
    every = {"val_check_interval": steps, "check_val_every_n_epoch": None}
    config = {
        "seed_everything": 1,
        "model": {"class_path": "lightgpt2.methods.FineTune", "init_args": {"model": "../model"}},
        "data": {"class_path": "lightgpt2.data.LanguageModelingData", "init_args": settings(megabytes, None)},
        "trainer": {"max_steps": steps, **every, "callbacks": [{"class_path": "benchmarks.corpora.Clock"}]},
    }
    path = Path(f"{megabytes}.yaml")
    path.write_text(yaml.safe_dump(config))
    lightgpt2.fit(str(path), **({"ckpt_path": checkpoint} if checkpoint else {}))


def run(folder: Path, *args: object) -> dict[str, float]:
    """The figures of a child."""
    code = f"from benchmarks.corpora import {args[0]}; {args[0]}(*{args[1:]!r})"
    script = folder / "child.py"  # the processes that tokenize read it again
    script.write_text(f'if __name__ == "__main__":\n    {code}\n')
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STARTED": str(time.time())}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads((folder / _RESULT).read_text())
    return found


def main() -> None:
    options = parser(__doc__, megabytes=[10, 100, 1000], steps=200, rounds=3).parse_args()
    processes = len(os.sched_getaffinity(0))
    preparing: list[list[str]] = []
    trained: dict[int, list[list[float]]] = {megabytes: [] for megabytes in options.megabytes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_tokenizer((str(text) for _, text in Corpus("pydoc").documents()), _VOCABULARY, folder / "tokenizer")
        tokenizer = load_tokenizer(str(folder / "tokenizer"), "tokenizer")
        save_model(gpt2(2, 128, 2, 128, len(tokenizer)), tokenizer, folder / "model")
        for megabytes in options.megabytes:
            place = folder / str(megabytes)
            place.mkdir()
            write_corpus(place / f"{megabytes}.txt", megabytes)
            for number in (1, processes):
                subprocess.run(["rm", "-rf", str(place / "checkpoints")], check=True)
                found = run(place, "prepare", megabytes, number)
                speed = f"{found['tokens'] / found['seconds']:,.0f}", f"{megabytes / found['seconds']:.2f}"
                preparing.append([f"{megabytes} MB", str(number), *speed, f"{found['peak']:.0f}"])
        for _ in range(options.rounds):  # in turn, so that all sizes see the same machine
            for megabytes, rounds in trained.items():
                fit = run(folder / str(megabytes), "train", megabytes, options.steps, "")
                resumed = run(folder / str(megabytes), "train", megabytes, options.steps + 20, "last")
                rounds.append([fit["first"], fit["step"], resumed["first"], fit["peak"]])
    training = []
    for megabytes, rounds in trained.items():
        figures = [statistics.median(column) for column in zip(*rounds, strict=True)]
        training.append(
            [f"{megabytes} MB", *(f"{figure:.{digits}f}" for figure, digits in zip(figures, (2, 2, 2, 0), strict=True))]
        )
    print(machine(), end="\n\n")
    print(markdown(["corpus", "processes", "tokens/s", "MB/s", "peak MB"], preparing), end="\n\n")
    print(markdown(["corpus", "s to the first step", "ms a step", "s to resume", "peak MB"], training))


if __name__ == "__main__":
    main()
