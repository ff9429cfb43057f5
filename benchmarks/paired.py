"""Arms that differ in one thing, each with several seeds: real fits, scored document by document, compared in pairs."""

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, markdown, place
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.quality import Change, Metric, read_scores

SEED = "{seed}"  # in an arm's options: the seed of the run
SETTINGS = {"model": str, "source": "pydoc", "folder": Path, "steps": 200, "seeds": [1, 2, 3], "jobs": 1}
Arms = Mapping[str, Sequence[Metric]]  # what each arm scored, a metric a seed
Pairs = Iterable[tuple[str, str]]
Fits = Mapping[str, Sequence[str]]  # options of `lightgpt2 fit` by the names of the runs


def options_of(**settings: Any) -> list[str]:
    """Options of the command line: `model__lr=1` is `--model.lr 1`; what is no text is given as JSON."""
    texts = {key: each if isinstance(each, str) else json.dumps(each) for key, each in settings.items()}
    return [part for key, text in texts.items() for part in (f"--{key.replace('__', '.')}", text)]


def steps(count: int) -> list[str]:
    """Options of a run with this many steps, which is scored at its end."""
    return options_of(trainer__max_steps=count, trainer__val_check_interval=count)


def fit_all(folder: Path, fits: Fits, jobs: int = 1, threads: int = 1) -> None:
    """Runs the fits that a folder does not have yet, each in its own process."""

    def fit(run: str) -> None:
        if not (model_folder(folder, run) / "scores.npz").exists():  # which is written last
            more = ["--run", run, "--ckpt_path", "last", "--trainer.enable_progress_bar", "false"]
            lightgpt2(folder, run, ["fit", *fits[run], *more], threads)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(fit, fits))


def lightgpt2(folder: Path, name: str, arguments: Sequence[str], threads: int = 1) -> None:
    """Runs the command in a folder; what it prints goes to `logs/NAME.txt`."""
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    begun, log = time.monotonic(), folder / "logs" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{name}: lightgpt2", *arguments, file=sys.stderr, flush=True)
    with log.open("w") as file:
        command = [sys.executable, "-m", "lightgpt2", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, stdout=file, stderr=file, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed with exit code {done.returncode}:\n{log.read_text()[-2000:]}")
    print(f"{name}: finished after {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)


def model_folder(folder: Path, run: str) -> Path:
    """The model that a run made."""
    return folder / "checkpoints" / run / "model"


def scored(folder: Path, run: str, label: str = "after") -> Metric:
    """The primary metric of a model that a run scored, document by document."""
    quality = Ledger.read(model_folder(folder, run)).last["quality"][label]
    return read_scores(model_folder(folder, run), label, quality)[quality["primary"]]


def run_name(arm: str, seed: int | str) -> str:
    """The name of an arm's run."""
    return f"{arm.replace(',', '').replace(' ', '-')}-{seed}"


def seeded(arms: Fits, seeds: Iterable[int]) -> Fits:
    """The fits of all arms with every seed."""
    pairs = itertools.product(seeds, arms.items())
    return {run_name(arm, seed): [each.replace(SEED, str(seed)) for each in given] for seed, (arm, given) in pairs}


def mean(metrics: Sequence[Metric]) -> Metric:
    """The metric whose numerators are the mean over seeds: of perplexities the geometric mean."""
    return dataclasses.replace(metrics[0], numerators=np.mean([each.numerators for each in metrics], axis=0))


def changes(arms: Arms, pairs: Pairs) -> dict[tuple[str, str], list[Change]]:
    """An arm's metric as a multiple of another's, with bootstrap intervals over documents: of each seed, then of the mean."""
    whole = {arm: [*found, mean(found)] for arm, found in arms.items()}
    known = [pair for pair in pairs if {*pair} <= {*arms}]
    return {(a, b): [x.against(y) for x, y in zip(whole[a], whole[b], strict=True)] for a, b in known}


def tables(arms: Arms, pairs: Pairs, seeds: Sequence[int]) -> str:
    """The arms' metrics, then the differences of pairs in per cent with their 95 % intervals."""
    header = [*(f"seed {seed}" for seed in seeds), "mean"]
    values = [[arm, *(f"{each.value():.4g}" for each in (*found, mean(found)))] for arm, found in arms.items()]
    rows = [[f"{arm} against {other}", *map(_percent, found)] for (arm, other), found in changes(arms, pairs).items()]
    return f"{markdown(['arm', *header], values)}\n\n{markdown(['pair', *header], rows)}"


def _percent(change: Change) -> str:
    low, high = (f"{bound - 1:+.2%}" for bound in change.interval_95 or (change.ratio, change.ratio))
    return f"{change.ratio - 1:+.2%} ({low} to {high})"


def compare(options: argparse.Namespace, arms: Fits, pairs: Pairs, common: Sequence[str], before: str) -> None:
    """Fits what is not there yet, every arm with every seed, and prints the tables.

    `options` are as `SETTINGS`; `arms` and `common` are options of fit; `before` is the ledger's label of the model before
    training.
    """
    common = [*common, "--data.source", place(options.source), *steps(options.steps)]
    whole = {arm: [*given, *common, "--seed_everything", SEED] for arm, given in arms.items()}
    fits = seeded(whole, options.seeds)
    fit_all(options.folder, fits, options.jobs)
    found = {arm: [scored(options.folder, run_name(arm, seed)) for seed in options.seeds] for arm in arms}
    start = scored(options.folder, [*fits][-1], before)
    print(f"\n{options.source}: {start.name} {start.value():.4g} before, {options.steps} steps\n")
    print(tables(found, pairs, options.seeds))
