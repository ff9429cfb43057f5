"""Arms that differ in one thing, each with several seeds: real commands, scored document by document, compared in pairs."""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
SEED = "{seed}"  # in an arm's options: the seed of the run


def place(name: str) -> str:
    """A path as another folder sees it; other names as they are."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def lightgpt2(folder: Path, *args: str) -> None:
    """Runs the command in the folder."""
    print("lightgpt2", *args, flush=True)
    command = [sys.executable, "-m", "lightgpt2", *args, "--trainer.enable_progress_bar", "false"]
    subprocess.run(command, cwd=folder, check=True, stderr=subprocess.DEVNULL)


def arguments(text: str | None) -> argparse.ArgumentParser:
    """The options that all comparisons of one model's arms have."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--source", default="pydoc", help="as data.source")
    parser.add_argument("--folder", type=Path, required=True, help="working folder; runs in it are gone on with")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    return parser


def run_name(arm: str, seed: int) -> str:
    """What the run of an arm is called."""
    return f"{arm.replace(',', '').replace(' ', '-')}-{seed}"


def ledger(folder: Path, run: str) -> dict[str, Any]:
    """The last entry of a run's ledger."""
    path = folder / "checkpoints" / run / "model" / "ledger.json"
    return json.loads(path.read_text(encoding="utf-8"))[-1]


@dataclass
class Compared:
    """What the arms scored on the validation split.

    Attributes:
        scores: For each arm and seed the summed negative log likelihood of each document, in nats.
        tokens: Scored tokens of each document.
    """

    scores: dict[str, list[Scores]]
    tokens: NDArray[np.int64]

    def table(self, seeds: Sequence[int]) -> str:
        """Perplexities, one row an arm; the last column is their geometric mean."""
        rows = [
            "| arm | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean |",
            "| --- |" + " --- |" * (len(seeds) + 1),
        ]
        for arm, scores in self.scores.items():
            perplexities = [math.exp(nll.sum() / self.tokens.sum()) for nll in scores]
            cells = [*perplexities, math.exp(np.mean(np.log(perplexities)))]
            rows.append(f"| {arm} | " + " | ".join(f"{value:.4g}" for value in cells) + " |")
        return "\n".join(rows)

    def difference(self, arm: str, against: str) -> str:
        """By how much an arm's perplexity differs, with a 95 % bootstrap interval over documents, seeds averaged."""
        paired = np.mean(self.scores[arm], axis=0) - np.mean(self.scores[against], axis=0)
        count = len(self.tokens)
        draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=5000)
        low, high = np.expm1(np.quantile((draws @ paired) / (draws @ self.tokens), [0.025, 0.975]))
        change = math.expm1(paired.sum() / self.tokens.sum())
        return f"perplexity, {arm} against {against}: {change:+.2%} (95 % interval {low:+.2%} to {high:+.2%})"


def compare(
    folder: Path,
    arms: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    common: Sequence[str],
    training: Sequence[str],
) -> Compared:
    """Fits and scores whatever is not there yet.

    Args:
        folder: Working folder.
        arms: Options of each arm, its configuration first.
        seeds: Seeds of each arm.
        common: Options of all, which come after those.
        training: Options of `fit` alone.
    """
    scores: dict[str, list[Scores]] = {arm: [] for arm in arms}
    tokens: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    for seed in seeds:
        for arm, options in arms.items():
            run = run_name(arm, seed)
            found = folder / "checkpoints" / run / "predictions.jsonl"
            if not found.exists():
                own = [str(seed) if option == SEED else option for option in options]
                settings = [*own, *common, "--seed_everything", str(seed), "--run", run]
                lightgpt2(folder, "fit", *settings, *training, "--ckpt_path", "last")
                lightgpt2(folder, "predict", *settings, "--data.predict_split", "valid")
            rows = [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]
            scores[arm].append(np.array([row["nll"] for row in rows]))
            tokens = np.array([row["tokens"] for row in rows])
    return Compared(scores, tokens)
