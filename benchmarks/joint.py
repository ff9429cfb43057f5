"""What only combinations make possible, against what was there before, at the same budget of steps; three seeds.

    python -m benchmarks.joint --folder FOLDER [--jobs 16] [--steps 500] [--teacher-steps 1500] [--seeds 1 2 3]

Runs the real commands in FOLDER, `jobs` at once with one thread each, on the small teacher of `teacher.yaml` and its text:

- `joint`: 30 % of the teacher's heads and 60 % of its neurons removed by movement pruning while all weights are rounded to INT8
  (embeddings too), with the unpruned teacher; `one after another`: pruned for three fifths of the steps, rounded (QAT) for two
  fifths, with the same teacher, loss and learning rate;
- `LoRA, taught`: adapters (r = 8, all linear layers) on a student of half of the teacher's layers, trained for a tenth of the
  steps with cross-entropy, then through adapters from the teacher; `LoRA`: the same with cross-entropy.

All are scored from disk, document by document, on the validation split. The intervals are bootstraps over documents of the
difference between two arms, of each seed and of the mean over seeds. Figures are in FOLDER/joint.json too.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import machine, parser
from benchmarks.paired import Fit, changes, fit_all, mean, options_of, run_name, scored, steps, tables

TEACHER = "checkpoints/teacher/model"
INTEGERS = {"bits": 8, "activations": False, "embeddings": True}
ROUNDING = {"class_path": "lightgpt2.adaptations.FakeQuantize", "init_args": {"quantization": INTEGERS}}
OPTIMIZER = {"lr": 1e-3, "weight_decay": 0.3, "warmup_steps": 20, "decay": "cosine"}
FROM_TEACHER = {"model__teacher": TEACHER, "model__loss": {"ce": 0.0, "hidden": 0.0, "kd": 1.0, "temperature": 1.0}}
ADAPTERS = {"r": 8, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}
TAUGHT = {"model__teacher": TEACHER, "model__loss": {"ce": 0.1, "hidden": 0.0, "kd": 0.9, "temperature": 1.0}}
ARMS = ("joint", "one after another", "LoRA, taught", "LoRA")
PAIRS = [ARMS[:2], ARMS[2:]]


def chains(seed: int, count: int) -> list[Fit]:
    """The fits of one seed, those first that others need."""

    def fit(name: str, config: str, length: int, after: str = "teacher", **settings: Any) -> Fit:
        given = options_of(config=config, seed_everything=seed, **settings)
        start = [] if after == "teacher" else ["--model.model", f"checkpoints/{run_name(after, seed)}/model"]
        needs = ["teacher"] if after == "teacher" else [run_name(after, seed)]
        return Fit(run_name(name, seed), [*given, *start, *steps(length)], needs)

    first = round(count * 3 / 5)
    pruning: dict[str, Any] = {
        "config": "movement.yaml", "model__pruning": {"attention": 0.3, "ffn": 0.6}, "model__optimizer": OPTIMIZER,
        **FROM_TEACHER,
    }  # fmt: skip
    rounding = {"model__quantization": INTEGERS, "model__delay": 0.0, "model__optimizer": OPTIMIZER, **FROM_TEACHER}
    return [
        fit("base", "trim.yaml", max(2, count // 10), model__layers=2, model__width=None, model__heads=None),
        fit("pruned", length=first, **pruning),
        fit("joint", length=count, model__adaptations=[ROUNDING], **pruning),
        fit("one after another", "qat.yaml", count - first, "pruned", **rounding),
        fit("LoRA, taught", "lora.yaml", count, "base", model__lora=ADAPTERS, **TAUGHT),
        fit("LoRA", "lora.yaml", count, "base", model__lora=ADAPTERS),
    ]


def figures(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, for JSON."""
    found = {arm: [scored(options.folder, run_name(arm, seed)) for seed in options.seeds] for arm in ARMS}
    return {
        "machine": machine(),
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "teacher": scored(options.folder, "teacher").value(),
        "base": [scored(options.folder, run_name("base", seed)).value() for seed in options.seeds],
        "values": {arm: [each.value() for each in (*mine, mean(mine))] for arm, mine in found.items()},
        "ratios": {" / ".join(pair): [*map(asdict, each)] for pair, each in changes(found, PAIRS).items()},
        "table": tables(found, PAIRS, options.seeds),
    }


def main() -> None:
    """Runs everything that is not there yet, prints the tables and writes the figures."""
    options = parser(__doc__, folder=Path, jobs=1, steps=500, teacher_steps=1500, seeds=[1, 2, 3]).parse_args()
    teacher = Fit("teacher", options_of(config="teacher.yaml", trainer__max_steps=options.teacher_steps))
    fits = [fit for seed in options.seeds for fit in chains(seed, options.steps)]
    longest = sorted(fits, key=lambda fit: fit.needs != ["teacher"])  # what waits for another comes last
    fit_all(options.folder, [teacher, *longest], options.jobs)
    result = figures(options)
    (options.folder / "joint.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(f"\nteacher {result['teacher']:.4g}, base {', '.join(f'{value:.4g}' for value in result['base'])}\n")
    print(result["table"])


if __name__ == "__main__":
    main()
