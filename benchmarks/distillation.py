"""Does distillation pay? The same student, the same steps, with and without the teacher, three seeds.

    python -m benchmarks.distillation --source pydoc --folder FOLDER [--teacher-steps N] [--steps N] [--seeds 1 2 3]

Runs the real commands in FOLDER: a teacher, then for each seed the student of `distill.yaml` with its loss, and the same
student from the same weights on the same batches with cross-entropy alone. All are scored from disk, document by document, on
the validation split. The interval is a bootstrap over documents of the difference between the two arms, seeds averaged.
"""

import argparse
from pathlib import Path

from benchmarks.paired import compare, ledger, lightgpt2, place, run_name

ARMS = {
    "alone": ["--config", "distill.yaml", "--model.loss", "{ce: 1.0, kd: 0.0, hidden: 0.0}"],
    "distilled": ["--config", "distill.yaml"],
}


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
    data = ["--data.source", place(options.source)]
    if not (folder / "checkpoints/teacher/model").exists():
        steps = ["--trainer.max_steps", str(options.teacher_steps)]
        lightgpt2(folder, "fit", "--config", "teacher.yaml", *data, "--ckpt_path", "last", *steps)
    steps = ["--trainer.max_steps", str(options.steps), "--trainer.val_check_interval", str(options.steps)]
    compared = compare(folder, ARMS, options.seeds, data, steps)
    quality = ledger(folder, run_name("distilled", options.seeds[0]))["quality"]
    teacher, before = quality["teacher"]["perplexity"], quality["before"]["perplexity"]
    print(f"\n{options.source}: teacher {teacher:.2f}, student before {before:.2f}, {options.steps} steps\n")
    print(compared.table(options.seeds))
    print(f"\n{compared.difference('distilled', 'alone')}")


if __name__ == "__main__":
    main()
