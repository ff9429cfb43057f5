"""Does learning what stays pay? Movement pruning against magnitude and random scores, at the same sparsity, three seeds.

    python -m benchmarks.movement --model MODEL --source SOURCE --folder FOLDER [--steps N]

Runs the real commands in FOLDER: MODEL without 30 % of its heads and 60 % of its neurons, pruned along the same schedule on the
same batches, with itself as teacher and without, by learned scores, by the norm of the weights as they are at each step, and by
random scores that are frozen. Scored, after removal, and compared as in `benchmarks.qat`.
"""

from benchmarks.common import parser, place
from benchmarks.paired import SEED, SETTINGS, compare

_CRITERIA = {
    "movement": ["movement"], "magnitude": ["magnitude"], "random scores": ["random"],
    "movement, regrowth": ["movement", "--model.pruning.regrow", "true"],
    "movement, no teacher": ["movement"], "magnitude, no teacher": ["magnitude"],
}  # fmt: skip
_ALONE = ["--model.teacher", "null", "--model.loss", "null"]
PAIRS = [
    ("movement", "magnitude"), ("magnitude", "random scores"), ("movement, regrowth", "movement"),
    ("movement, no teacher", "magnitude, no teacher"),
]  # fmt: skip


def main() -> None:
    arms = {"nargs": "+", "choices": _CRITERIA, "default": list(_CRITERIA)}
    further = {"nargs": "+", "default": [], "metavar": "OPTION", "help": "further options of fit, without dashes"}
    options = parser(__doc__, **SETTINGS, arms=arms, set=further).parse_args()
    model, start = place(options.model), ["--config", "movement.yaml", "--model.pruning.seed", SEED]
    fits = {
        arm: [
            *start, *(_ALONE if "no teacher" in arm else ["--model.teacher", model]),
            "--model.pruning.criterion", *_CRITERIA[arm],
        ]
        for arm in options.arms
    }  # fmt: skip
    compare(options, fits, PAIRS, ["--model.model", model, *(f"--{each}" for each in options.set)], "before")


if __name__ == "__main__":
    main()
