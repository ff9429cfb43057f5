"""The published chain of summarization on real news, with a BART that is trained here: what each stage keeps and saves.

    python -m benchmarks.summarization --source BBC --folder FOLDER [--stages ...] [--accelerator gpu --precision bf16-mixed]

Runs the real commands in FOLDER. What is finished is not run again: stop it and start it as you like, some stages on one
machine and the others on another. BBC is a folder with train.jsonl and valid.jsonl, articles with their summaries, which are
sentences of the articles in another order. The stages:

- `copier`: a BART from scratch learns to copy: the source is sentences of several training articles, the target some of them
- `teacher`: the copier learns the summaries of the training articles
- `student`: layers 0, 2, 5, 7, 9 and 11 of both stacks of the teacher, with its logits and hidden states
- `pruned`: the student without 30 % of its heads and 60 % of its neurons, with the student as teacher
- `rounded`: the pruned model trained in INT8
- `onnx`, `onnx-int8`: the pruned model exported in FP32, the rounded one in INT8
- `summaries`: each reloaded model, exports too, writes the summaries of all validation articles, greedily
- `speed`: encoding, decoding and whole documents of real lengths, greedily and with 4 beams, on the processor

A fit writes 16 tokens of 8 articles when it scores: whole summaries take longer than it has. `results.json` in FOLDER has the
figures, from the summaries of the reloaded models.
"""

import argparse
import itertools
import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm
from transformers import PreTrainedModel

from benchmarks.common import machine, markdown, parser, place
from benchmarks.paired import fit_all, lightgpt2, model_folder
from lightgpt2.data import TextToTextData
from lightgpt2.data.base import Connection
from lightgpt2.measure.arms import GRAPH, Arm
from lightgpt2.measure.benchmark import measure
from lightgpt2.measure.plan import workloads_of
from lightgpt2.models.files import atomic_file, atomic_folder, folder_megabytes, write_json
from lightgpt2.models.loading import load_config, load_model
from lightgpt2.models.quality import Change, Metric
from lightgpt2.models.saving import positions_of
from lightgpt2.models.workloads import Positions
from lightgpt2.runtime.loading import load
from lightgpt2.tasks import Summarization, rouge
from lightgpt2.tasks.base import on_device
from lightgpt2.tasks.exported_seq2seq import first_examples

_FITS = ("copier", "teacher", "student", "pruned", "rounded")
_EXPORTS = {"onnx": "pruned", "onnx-int8": "rounded"}  # and the models that they are made from
_SCORED = (*_FITS[1:], *_EXPORTS)
_STAGES = [*_FITS, *_EXPORTS, "summaries", "speed"]
_PAIRS = [
    *itertools.pairwise(_SCORED[:4]),
    ("teacher", "onnx-int8"),
    ("rounded", "onnx-int8"),
]  # an earlier, a later one
_ARTICLES, _TOKENS = 8, 16  # that a fit scores
_SENTENCES, _COPIED = (
    (2, 3, 4, 6, 8, 12, 16),
    5,
)  # of sources to copy from, where short ones teach first; copied at most
_TAUGHT = {"ce": 0.1, "hidden": 3.0, "kd": 0.8, "temperature": 2.0}


def shape(options: argparse.Namespace) -> dict[str, Any]:
    """The model: of a width, with as many layers in either stack, of heads of 32."""
    width, layers, heads = options.width, options.layers, options.width // 32
    if options.family == "t5":
        sizes = {"num_layers": layers, "num_decoder_layers": layers, "num_heads": heads, "d_kv": 32, "d_ff": 4 * width}
        return {"model_type": "t5", "d_model": width, **sizes}
    sizes = {"layers": layers, "attention_heads": heads, "ffn_dim": 4 * width}
    stacks = {f"{stack}_{name}": size for stack in ("encoder", "decoder") for name, size in sizes.items()}
    about = {"model_type": options.family, "d_model": width, "max_position_embeddings": options.length, **stacks}
    # Pegasus adds its tokens to sinusoids of unit size, which are 50 times as large unless tokens are scaled too.
    return about | ({"scale_embedding": True} if options.family == "pegasus" else {})


def write_copies(options: argparse.Namespace, folder: Path) -> None:
    """Writes what the copier learns: random sentences of the training articles, and some of those in another order."""
    articles = [json.loads(line)["text"] for line in (Path(options.source) / "train.jsonl").open(encoding="utf-8")]
    sentences = [sentence for article in articles for sentence in rouge.sentences(article)]
    generator = random.Random(options.seed)

    def copy() -> str:
        source = generator.sample(sentences, generator.choice(_SENTENCES))
        target = generator.sample(source, generator.randint(1, min(_COPIED, len(source) - 1)))
        return json.dumps({"text": " ".join(source), "summary": "".join(target)}) + "\n"

    for split, count in (("train", options.copies), ("valid", _ARTICLES)):
        (folder / f"{split}.jsonl").write_text("".join(copy() for _ in range(count)), encoding="utf-8")


def write_articles(options: argparse.Namespace, folder: Path) -> None:
    """Writes the training articles, and the validation articles that a fit scores."""
    for split, count in (("train", None), ("valid", _ARTICLES)):
        lines = (Path(options.source) / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines[:count]), encoding="utf-8")


def configuration(options: argparse.Namespace, stage: str) -> dict[str, Any]:
    """What `lightgpt2 fit` reads."""

    def model(name: str) -> str:
        return str(model_folder(Path(), name))

    def optimizer(lr: float, decay: float = 0.01) -> dict[str, Any]:
        return {"lr": lr, "weight_decay": decay, "warmup_steps": steps // 10, "decay": "linear", "beta2": 0.98}

    steps = {
        "copier": options.copier_steps, "teacher": options.steps, "student": options.student_steps,
        "pruned": options.pruned_steps, "rounded": options.rounded_steps,
    }[stage]  # fmt: skip
    method, settings = {
        "copier": ("FineTune", {"model": shape(options), "optimizer": optimizer(options.lr)}),
        "teacher": ("FineTune", {"model": model("copier"), "optimizer": optimizer(options.lr / 2)}),
        "student": ("Distill", {
            "teacher": model("teacher"), "layers": options.kept, "loss": _TAUGHT, "optimizer": optimizer(options.lr / 2),
        }),
        "pruned": ("MovementPruning", {
            "model": model("student"), "teacher": model("student"), "loss": _TAUGHT | {"hidden": 0.0, "kd": 0.9},
            "pruning": {"attention": 0.3, "ffn": 0.6}, "optimizer": optimizer(options.lr / 2),
        }),
        "rounded": ("QAT", {
            "model": model("pruned"), "quantization": {"bits": 8, "activations": False, "embeddings": True},
            "optimizer": optimizer(options.lr / 10, 0.0),
        }),
    }[stage]  # fmt: skip
    task = {"class_path": "lightgpt2.tasks.Summarization", "init_args": {"max_new_tokens": _TOKENS, "samples": 0}}
    data = {"source": "copies" if stage == "copier" else "articles", "batch_size": options.batch}
    data |= {"vocab_size": options.vocabulary} if stage == "copier" else {}
    checked = {"val_check_interval": steps, "check_val_every_n_epoch": None, "gradient_clip_val": 1.0}
    where = {"accelerator": options.accelerator, "precision": options.precision}
    return {
        "seed_everything": options.seed,
        "model": {"class_path": f"lightgpt2.methods.{method}", "init_args": {"task": task, **settings}},
        "data": {"class_path": "lightgpt2.data.TextToTextData", "init_args": lengths(options) | data},
        "trainer": {"max_steps": steps, **checked, **where},
    }


def lengths(options: argparse.Namespace) -> dict[str, Any]:
    return {"max_source_length": options.length, "max_target_length": options.length // 2, "test_fraction": 0.0}


def fit(options: argparse.Namespace, stage: str) -> None:
    folder = options.folder / "configs"
    folder.mkdir(exist_ok=True)
    path = folder / f"{stage}.yaml"
    path.write_text(yaml.safe_dump(configuration(options, stage)))
    fit_all(options.folder, {stage: ["--config", str(path.resolve())]}, threads=options.threads)


def artefact(options: argparse.Namespace, stage: str) -> Path:
    """The folder that a stage made."""
    if stage not in _EXPORTS:
        return model_folder(options.folder, stage)
    made = model_folder(options.folder, _EXPORTS[stage])
    return made.with_name(f"{made.name}-{stage}")


def export(options: argparse.Namespace, stage: str) -> None:
    if not artefact(options, stage).exists():
        source = str(model_folder(Path(), _EXPORTS[stage]))
        given = ["--format", stage, "--data", place(options.source), "--documents", str(options.documents)]
        lightgpt2(options.folder, stage, ["export", source, *given], options.threads)


def validation(options: argparse.Namespace, stage: str) -> TextToTextData:
    """All validation articles, in the tokens of a stage's model."""
    folder = str(artefact(options, _EXPORTS.get(stage, stage)))
    sizes = {"batch_size": options.batch, "eval_batch_size": options.eval_batch}
    data = TextToTextData(source=str(options.source), **lengths(options), **sizes)
    data.connect(Connection(folder, "model", config=load_config(folder, "model")))
    data.prepare_data()
    data.setup("validate")
    return data


def write_summaries(options: argparse.Namespace, stage: str) -> None:
    """Writes what a model makes of the validation articles, each with its reference."""
    kept = options.folder / "summaries" / f"{stage}.jsonl"
    if kept.exists():
        return
    kept.parent.mkdir(exist_ok=True)
    folder, task, data = artefact(options, stage), Summarization(), validation(options, stage)
    task.bind(data)
    runner: Any = load(folder, options.threads) if stage in _EXPORTS else load_model(str(folder), "model").eval()
    if isinstance(runner, PreTrainedModel) and options.accelerator == "gpu":
        runner.to(device="cuda")
    rows = []
    for batch in tqdm([*first_examples(data.scoring_loader("valid"), options.documents)], desc=f"Summaries of {stage}"):
        if isinstance(runner, PreTrainedModel):
            written = task.summaries(runner, on_device(batch, runner.device))
        else:
            ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
            new = runner.tokens(ids, mask, task.decoding.runtime_options(task.most))
            written = [text.strip() for text in data.tokenizer.batch_decode(new, skip_special_tokens=True)]
        columns = batch["example"].tolist(), batch["texts"], written, batch["references"]
        names = ("example", "source", "summary", "reference")
        rows += [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    with atomic_file(kept) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def scores(options: argparse.Namespace, name: str, rows: list[dict[str, Any]]) -> dict[str, Metric]:
    """ROUGE and the other metrics of summaries; what was computed is kept in a file."""
    kept, task = options.folder / "scores" / f"{name}.json", Summarization()
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        columns = {"references": [row["reference"] for row in rows], "texts": [row["source"] for row in rows]}
        found = task.scored([row["summary"] for row in tqdm(rows, desc=f"ROUGE of {name}")], columns)
        write_json(kept, [{"example": row["example"], **each} for row, each in zip(rows, found, strict=True)])
    return task.metrics(json.loads(kept.read_text()))


def scored(options: argparse.Namespace) -> dict[str, dict[str, Metric]]:
    """The metrics of Lead-3, of the oracle, and of all models whose summaries are there."""
    folder = options.folder / "summaries"
    written = {stage: folder / f"{stage}.jsonl" for stage in _SCORED if (folder / f"{stage}.jsonl").exists()}
    rows = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in written.items()}
    articles = next(iter(rows.values()))
    plain = {
        "lead-3": [row | {"summary": rouge.lead(row["source"])} for row in articles],
        "oracle": [row | {"summary": rouge.oracle(row["source"], row["reference"])} for row in articles],
    }
    return {name: scores(options, name, found) for name, found in (plain | rows).items()}


def measure_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of all models that are there on the processor, the teacher first; measured once."""
    kept = options.folder / "speed.json"
    if not kept.exists():
        torch.set_num_threads(options.threads)
        names = [stage for stage in _SCORED if artefact(options, stage).exists() and stage != "rounded"]
        arms = [
            Arm(n, str(artefact(options, n)), *((n.replace("onnx-", ""), GRAPH) if n in _EXPORTS else ("fp32", "sdpa")))
            for n in names
        ]
        data = validation(options, names[0])
        config = load_config(str(artefact(options, names[0])), "model")
        workloads = workloads_of(Summarization(), {}, Positions(positions_of(config) or sys.maxsize), data)
        write_json(kept, measure(arms, workloads, options.rounds, "cpu", options.folder / "traces"))
    return json.loads(kept.read_text())


def table(options: argparse.Namespace, found: Mapping[str, Mapping[str, Metric]]) -> str:
    """The metrics of each model, and its megabytes."""
    header = ["", *(metric.name for metric in next(iter(found.values())).values()), "megabytes"]
    rows = []
    for name, metrics in found.items():
        size = f"{folder_megabytes(artefact(options, name)):.1f}" if name in _SCORED else ""
        rows.append([name, *(f"{each.value():.{each.digits}f}" for each in metrics.values()), size])
    return markdown(header, rows)


def pairs(found: Mapping[str, Mapping[str, Metric]]) -> dict[str, dict[str, Change]]:
    """Each metric of ROUGE as a multiple of another model's, with the paired interval over articles."""
    known = [(b, a) for b, a in _PAIRS if {a, b} <= {*found}]
    return {f"{a} of {b}": {n: found[a][n].against(found[b][n]) for n in rouge.NAMES} for b, a in known}


def speeds(result: Mapping[str, Any]) -> str:
    """Seconds of a document, and how many times as fast as the teacher, by workload."""
    arms = [arm for arm in result["arms"] if "error" not in arm]
    header = [
        "",
        *(f"s a document, {how}" for how in arms[0]["documents"]),
        *(f"times: {key}" for key in arms[0]["ratio"]),
    ]
    rows = [
        [
            arm["name"],
            *(f"{1 / each['documents_per_s']:.3f}" for each in arm["documents"].values()),
            *(f"{each['median']:.2f} ({each['low']:.2f} - {each['high']:.2f})" for each in arm["ratio"].values()),
        ]
        for arm in arms
    ]
    return markdown(header, rows)


def shares(changes: Mapping[str, Mapping[str, Change]]) -> str:
    def cell(change: Change) -> str:
        low, high = change.interval_95 or (change.ratio, change.ratio)
        return f"{change.ratio:.1%} ({low:.1%} - {high:.1%})"

    return markdown(["pair", *rouge.NAMES], [[name, *map(cell, each.values())] for name, each in changes.items()])


def report(options: argparse.Namespace) -> None:
    """Prints what is known, and writes it to `results.json`."""
    found, about = scored(options), {"machine": machine(), "settings": {k: str(v) for k, v in vars(options).items()}}
    changes = pairs(found)
    values = {name: {n: metric.as_dict() for n, metric in metrics.items()} for name, metrics in found.items()}
    kept = {a: {n: vars(change) for n, change in each.items()} for a, each in changes.items()}
    write_json(options.folder / "results.json", {**about, "quality": values, "kept": kept})
    print(f"\n{machine()}\n\n{table(options, found)}\n\n{shares(changes)}")
    if (speed := options.folder / "speed.json").exists():
        print(f"\n{speeds(json.loads(speed.read_text()))}")


def main() -> None:
    settings: dict[str, Any] = {
        "source": Path, "folder": Path, "family": {"choices": ["bart", "pegasus", "t5"], "default": "bart"},
        "width": 192, "layers": 12, "kept": [0, 2, 5, 7, 9, 11],
        "length": 512, "vocabulary": 8000, "copies": 12000, "batch": 32, "eval_batch": 40, "lr": 1e-3, "seed": 1,
        "copier_steps": 1200, "steps": 800, "student_steps": 500, "pruned_steps": 500, "rounded_steps": 100,
        "accelerator": "cpu", "precision": "32-true", "threads": 2, "documents": 200, "rounds": 5,
        "stages": {"nargs": "+", "choices": _STAGES, "default": _STAGES, "metavar": "STAGE"},
    }  # fmt: skip
    options = parser(__doc__, **settings).parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, write in (("copies", write_copies), ("articles", write_articles)):
        if not (options.folder / name).exists():
            with atomic_folder(options.folder / name) as folder:
                write(options, folder)
    for stage in [each for each in _STAGES if each in options.stages]:
        if stage in _FITS:
            fit(options, stage)
        elif stage in _EXPORTS:
            export(options, stage)
        elif stage == "summaries":
            for each in [each for each in _SCORED if artefact(options, each).exists()]:
                write_summaries(options, each)
        else:
            measure_speed(options)
    if (options.folder / "summaries").exists():
        report(options)


if __name__ == "__main__":
    main()
