"""Does distillation pay? The same student, the same steps, with and without the teacher, three seeds.

    python -m benchmarks.distillation --source pydoc --folder FOLDER [--teacher-steps N] [--steps N] [--seeds 1 2 3]

Runs the real commands in FOLDER: a teacher, then for each seed the student of `distill.yaml` with its loss, and the same
student from the same weights on the same batches with cross-entropy alone. Scored and compared as in `benchmarks.qat`.
"""

from benchmarks.common import parser, place
from benchmarks.paired import SETTINGS, compare, fit_all, options_of, scored

ARMS = {
    "alone": ["--config", "distill.yaml", "--model.loss", "{ce: 1.0, kd: 0.0, hidden: 0.0}"],
    "distilled": ["--config", "distill.yaml"],
}


def main() -> None:
    settings = {key: value for key, value in SETTINGS.items() if key != "model"}
    options = parser(__doc__, **settings | {"steps": 150, "teacher_steps": 1500}).parse_args()
    length = options_of(data__source=place(options.source), trainer__max_steps=options.teacher_steps)
    fit_all(options.folder, {"teacher": ["--config", "teacher.yaml", *length]})
    compare(options, ARMS, [("distilled", "alone")], [], "before")
    print(f"\nteacher: {scored(options.folder, 'teacher').value():.4g}")


if __name__ == "__main__":
    main()
