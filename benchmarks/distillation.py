"""Does distillation pay? The same student, the same steps, with and without the teacher, three seeds.

    python -m benchmarks.distillation --source pydoc --folder FOLDER [--teacher-steps N] [--steps N] [--seeds 1 2 3]

Runs the real commands in FOLDER: a teacher, then for each seed the student of `distill.yaml` with its loss, and the same
student from the same weights on the same batches with cross-entropy alone. All are scored from disk, document by document, on
the validation split. The interval is a bootstrap over documents of the difference between the two arms, seeds averaged.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ARMS = {
    "alone": ["--model.loss.ce", "1", "--model.loss.kd", "0", "--model.loss.hidden", "0"],
    "distilled": [],
}


def lightgpt2(folder: Path, *args: str) -> None:
    """Runs the command in the folder."""
    print("lightgpt2", *args, flush=True)
    command = [sys.executable, "-m", "lightgpt2", *args, "--trainer.enable_progress_bar", "false"]
    subprocess.run(command, cwd=folder, check=True, stderr=subprocess.DEVNULL)


def document_scores(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Summed negative log likelihood and tokens of each document of a predictions file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return np.array([row["nll"] for row in rows]), np.array([row["tokens"] for row in rows])


def interval(difference: NDArray[np.float64], tokens: NDArray[np.int64]) -> tuple[float, float]:
    """95 % bootstrap interval over documents of a token-weighted mean difference."""
    count = len(tokens)
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=5000)
    low, high = np.quantile((draws @ difference) / (draws @ tokens), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Runs everything that is not there yet and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="pydoc", help="as data.source")
    parser.add_argument("--folder", type=Path, required=True, help="working folder; runs in it are gone on with")
    parser.add_argument("--teacher-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    data = ["--data.source", str(Path(options.source).resolve()) if Path(options.source).exists() else options.source]
    if not (folder / "checkpoints/teacher/model").exists():
        lightgpt2(
            folder,
            "fit",
            "--config",
            "teacher.yaml",
            *data,
            "--ckpt_path",
            "last",
            "--trainer.max_steps",
            str(options.teacher_steps),
        )
    scores: dict[str, list[NDArray[np.float64]]] = {arm: [] for arm in ARMS}
    tokens: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    for seed in options.seeds:
        for arm, loss in ARMS.items():
            run = f"{arm}-{seed}"
            common = ["--config", "distill.yaml", *data, "--seed_everything", str(seed), "--run", run, *loss]
            if not (folder / "checkpoints" / run / "predictions.jsonl").exists():
                steps = ["--trainer.max_steps", str(options.steps), "--trainer.val_check_interval", str(options.steps)]
                lightgpt2(folder, "fit", *common, *steps, "--ckpt_path", "last")
                lightgpt2(folder, "predict", *common, "--data.predict_split", "valid")
            nll, tokens = document_scores(folder / "checkpoints" / run / "predictions.jsonl")
            scores[arm].append(nll)
    ledger = json.loads(
        (folder / "checkpoints" / f"distilled-{options.seeds[0]}" / "model" / "ledger.json").read_text()
    )
    quality = ledger[-1]["quality"]
    teacher, before = quality["teacher"]["perplexity"], quality["before"]["perplexity"]
    print(f"\n{options.source}: teacher {teacher:.2f}, student before {before:.2f}, {options.steps} steps\n")
    print("| student | " + " | ".join(f"seed {s}" for s in options.seeds) + " | mean |")
    print("| --- |" + " --- |" * (len(options.seeds) + 1))
    for arm in ARMS:
        perplexities = [math.exp(nll.sum() / tokens.sum()) for nll in scores[arm]]
        cells = [*perplexities, math.exp(np.mean(np.log(perplexities)))]
        print(f"| {arm} | " + " | ".join(f"{value:.2f}" for value in cells) + " |")
    first, second = (np.mean(scores[arm], axis=0) for arm in ARMS)
    low, high = interval(second - first, tokens)
    change = math.exp((second - first).sum() / tokens.sum()) - 1
    bounds = f"{math.expm1(low):+.2%} to {math.expm1(high):+.2%}"
    print(f"\nperplexity, distilled against cross-entropy alone: {change:+.2%} (95 % interval {bounds})")


if __name__ == "__main__":
    main()
