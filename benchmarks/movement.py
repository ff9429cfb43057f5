"""Does learning what stays pay? Movement pruning against magnitude and random scores, at the same sparsity, three seeds.

    python -m benchmarks.movement --model MODEL --source SOURCE --folder FOLDER [--steps N]

Runs the real commands in FOLDER: MODEL without 30 % of its heads and 60 % of its neurons, pruned along the same schedule on the
same batches, with itself as teacher and without, by learnt scores, by the norm of the weights as they are at each step, and by
random scores that are frozen. All are scored from disk, after removal, document by document, on the validation split; the
intervals are bootstraps over documents of the difference between two arms, seeds averaged.
"""

from benchmarks.paired import SEED, arguments, compare, ledger, place, run_name


def _arm(criterion: str, *options: str) -> list[str]:
    return ["--config", "movement.yaml", "--model.pruning.criterion", criterion, "--model.pruning.seed", SEED, *options]


_ALONE = ["--model.teacher", "null", "--model.loss", "null"]
ARMS = {
    "movement": _arm("movement"),
    "magnitude": _arm("magnitude"),
    "random scores": _arm("random"),
    "movement, regrowth": _arm("movement", "--model.pruning.regrow", "true"),
    "movement, no teacher": _arm("movement", *_ALONE),
    "magnitude, no teacher": _arm("magnitude", *_ALONE),
}
_PAIRS = [
    ("movement", "magnitude"), ("magnitude", "random scores"), ("movement, regrowth", "movement"),
    ("movement, no teacher", "magnitude, no teacher"),
]  # fmt: skip


def main() -> None:
    """Runs everything that is not there yet and prints the table."""
    parser = arguments(__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--set", nargs="+", default=[], metavar="OPTION", help="further options of fit, without dashes")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    model = place(options.model)
    arms = {
        arm: [*given, *([] if "--model.teacher" in given else ["--model.teacher", model])]
        for arm, given in ARMS.items()
        if arm in options.arms
    }
    common = ["--model.model", model, "--data.source", place(options.source), *(f"--{each}" for each in options.set)]
    steps = ["--trainer.max_steps", str(options.steps), "--trainer.val_check_interval", str(options.steps)]
    found = compare(options.folder, arms, options.seeds, common, steps)
    before = ledger(options.folder, run_name(options.arms[0], options.seeds[0]))["quality"]["before"]["perplexity"]
    print(f"\n{options.source}: before pruning {before:.2f}, {options.steps} steps\n\n{found.table(options.seeds)}\n")
    for pair in _PAIRS:
        if set(pair) <= set(arms):
            print(found.difference(*pair))


if __name__ == "__main__":
    main()
