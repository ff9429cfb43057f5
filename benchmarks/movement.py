"""Does learning what stays pay? Movement pruning against magnitude and random scores, at the same sparsity, three seeds.

    python -m benchmarks.movement --model MODEL --source SOURCE --folder FOLDER [--steps N] [--set OPTION ...]

Runs the real commands in FOLDER: MODEL without 30 % of its heads and 60 % of its neurons, pruned along the same schedule on the
same batches by learnt scores, by the norm of the weights as they are at each step, and by frozen random scores; and at random
before the first step, with all steps left for training. All are scored from disk, after removal, document by document, on the
validation split; the intervals are bootstraps over documents of the difference between two arms, seeds averaged.
"""

import argparse
from pathlib import Path

from benchmarks.paired import SEED, compare, ledger, place


def _arm(criterion: str, *options: str) -> list[str]:
    return ["--config", "movement.yaml", "--model.pruning.criterion", criterion, "--model.pruning.seed", SEED, *options]


ARMS = {
    "movement": _arm("movement"),
    "movement, regrowth": _arm("movement", "--model.pruning.regrow", "true"),
    "magnitude": _arm("magnitude"),
    "random scores": _arm("random"),
    "random at once": _arm("random", "--model.pruning.warmup", "0", "--model.pruning.cooldown", "0.99"),
}


def main() -> None:
    """Runs everything that is not there yet and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--source", default="pydoc", help="as data.source")
    parser.add_argument("--folder", type=Path, required=True, help="working folder; runs in it are gone on with")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", nargs="+", default=[], metavar="OPTION", help="further options of fit, without dashes")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    further = [f"--{option}" for option in options.set]
    common = ["--model.model", place(options.model), "--data.source", place(options.source)]
    alone = ["--model.teacher", "null", "--model.loss", "null"]
    steps = ["--trainer.max_steps", str(options.steps), "--trainer.val_check_interval", str(options.steps)]
    found = compare(options.folder, ARMS, options.seeds, [*common, *alone, *further], steps)
    before = ledger(options.folder, f"movement-{options.seeds[0]}")["quality"]["before"]["perplexity"]
    print(f"\n{options.source}: before pruning {before:.2f}, {options.steps} steps\n\n{found.table(options.seeds)}\n")
    for pair in (
        ("movement", "magnitude"),
        ("movement, regrowth", "movement"),
        ("magnitude", "random scores"),
        ("random at once", "random scores"),
    ):
        print(found.difference(*pair))


if __name__ == "__main__":
    main()
