"""What only combinations make possible, against what was there before, at the same budget of steps; three seeds.

    python -m benchmarks.joint --folder FOLDER [--jobs 16] [--steps 500] [--teacher-steps 1500] [--seeds 1 2 3]

Runs the real commands in FOLDER, `jobs` at once with one thread each, on the small teacher of `teacher.yaml` and its text:

- `joint`: heads and neurons removed by movement pruning while all weights are rounded to INT8, with the unpruned teacher; `one
  after another`: pruned for three fifths of the steps, then QAT for two fifths, with the same teacher, loss and learning rate;
- `LoRA, taught`: adapters on a student of half of the teacher's layers, trained for a tenth of the steps with cross-entropy,
  then through adapters from the teacher; `LoRA`: the same with cross-entropy.

Scored and compared as in `benchmarks.qat`. Figures are in FOLDER/joint.json too.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import machine, parser
from benchmarks.paired import SEED, Fits, changes, fit_all, mean, options_of, run_name, scored, seeded, steps, tables

TEACHER = "checkpoints/teacher/model"
INTEGERS = {"bits": 8, "activations": False, "embeddings": True}
ROUNDING = {"class_path": "lightgpt2.adaptations.FakeQuantize", "init_args": {"quantization": INTEGERS}}
OPTIMIZER = {"lr": 1e-3, "weight_decay": 0.3, "warmup_steps": 20, "decay": "cosine"}
FROM_TEACHER = {"model__teacher": TEACHER, "model__loss": {"ce": 0.0, "hidden": 0.0, "kd": 1.0, "temperature": 1.0}}
ADAPTERS = {"r": 8, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}
TAUGHT = {"model__teacher": TEACHER, "model__loss": {"ce": 0.1, "hidden": 0.0, "kd": 0.9, "temperature": 1.0}}
ARMS = ("joint", "one after another", "LoRA, taught", "LoRA")
PAIRS = [ARMS[:2], ARMS[2:]]


def chains(count: int) -> tuple[Fits, Fits]:
    """The fits of one seed: those from the teacher, then those that go on from these."""

    def fit(config: str, length: int, after: str = "", **settings: Any) -> list[str]:
        start = {"model__model": f"checkpoints/{run_name(after, SEED)}/model"} if after else {}
        return [*options_of(config=config, seed_everything=SEED, **settings, **start), *steps(length)]

    first = round(count * 3 / 5)
    pruning: dict[str, Any] = {
        "model__pruning": {"attention": 0.3, "ffn": 0.6},
        "model__optimizer": OPTIMIZER,
        **FROM_TEACHER,
    }
    rounding = {"model__quantization": INTEGERS, "model__delay": 0.0, "model__optimizer": OPTIMIZER, **FROM_TEACHER}
    return {
        "base": fit("trim.yaml", max(2, count // 10), model__layers=2, model__width=None, model__heads=None),
        "pruned": fit("movement.yaml", first, **pruning),
        "joint": fit("movement.yaml", count, model__adaptations=[ROUNDING], **pruning),
    }, {
        "one after another": fit("qat.yaml", count - first, "pruned", **rounding),
        "LoRA, taught": fit("lora.yaml", count, "base", model__lora=ADAPTERS, **TAUGHT),
        "LoRA": fit("lora.yaml", count, "base", model__lora=ADAPTERS),
    }


def main() -> None:
    options = parser(__doc__, folder=Path, jobs=1, steps=500, teacher_steps=1500, seeds=[1, 2, 3]).parse_args()
    fit_all(options.folder, {"teacher": options_of(config="teacher.yaml", trainer__max_steps=options.teacher_steps)})
    for fits in chains(options.steps):
        fit_all(options.folder, seeded(fits, options.seeds), options.jobs)
    arms = {arm: [scored(options.folder, run_name(arm, seed)) for seed in options.seeds] for arm in (*ARMS, "base")}
    values = {arm: [each.value() for each in (*mine, mean(mine))] for arm, mine in arms.items()}
    values["teacher"] = [scored(options.folder, "teacher").value()]
    result = {
        "machine": machine(),
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "values": values,
        "ratios": {" / ".join(pair): [*map(asdict, each)] for pair, each in changes(arms, PAIRS).items()},
    }
    (options.folder / "joint.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(f"\nteacher {values['teacher'][0]:.4g}\n\n{tables(arms, PAIRS, options.seeds)}")


if __name__ == "__main__":
    main()
