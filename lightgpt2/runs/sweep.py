"""`lightgpt2 sweep`: what a model is worth at each value of one setting."""

import copy
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from lightgpt2.errors import Interrupted, UserError, refuse
from lightgpt2.models.files import atomic_file, write_json
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.quality import value_of
from lightgpt2.report.plots import sweep_plot
from lightgpt2.report.table import sweep_table
from lightgpt2.runs.configs import load_config
from lightgpt2.runs.fits import fit
from lightgpt2.runs.pipeline import run_stages
from lightgpt2.runs.recipes import Recipe, Stage
from lightgpt2.runs.run import Run
from lightgpt2.runs.settings import Settings, flat, override

SPARSITY = "sparsity"
Arms = dict[str, list[dict[str, Any]]]


def run_sweep(
    config: str, key: str, values: list[float], run: str | None, targets: str | None, budget: float, changes: list[str]
) -> None:
    """Sweep one setting of a configuration.

    `sparsity` is of the trained weights: the configuration is fitted once (or resumed), and copies of its result are pruned.
    For any other key, the dotted key of a number in the configuration, each value is a fit, all of them stages of a pipeline:
    finished ones are kept. `run` names the run, or the group of runs; by default the configuration's stem does, with the key.
    The `budget` is how many per cent worse than in the first row the primary metric may be; `changes` are `key=value` each.
    """
    path, settings = load_config(config)
    if broken := [change for change in changes if "=" not in change]:
        raise UserError(f"--set: must be key=value, got {broken[0]}; for example trainer.max_steps=50")
    pairs = (change.split("=", maxsplit=1) for change in changes)
    problems = override(settings, {name: yaml.safe_load(value) for name, value in pairs})
    values, stem = sorted(set(values)), str(settings.get("run") or path.stem)
    if key == SPARSITY:
        wrong = [f"--values: must be in [0, 1), got {value:g}" for value in values if not 0 <= value < 1]
    else:
        wrong = _key_problems(flat(settings), key, values)
    refuse([*problems, *wrong])
    if key == SPARSITY:
        _sweep_sparsity(settings, Run(run or stem), values, targets, budget)
    else:
        _sweep_key(settings, run or f"{stem.replace('/', '-')}-{key}", key, values, budget)


def _key_problems(found: Settings, key: str, values: list[float]) -> list[str]:
    numbers = []
    for name, value in found.items():
        with suppress(TypeError, ValueError):
            float(value)  # YAML takes 1e-2 for text, which jsonargparse does not
            numbers += [] if isinstance(value, bool) else [name]
    such = f"such as {', '.join(numbers[:8])}"
    if key not in found:
        return [f"--key: the configuration has no {key}; give one that it sets, {such}"]
    if key not in numbers:
        return [f"--key: must be that of a number, got {key}: {found[key]!r}; give one {such}"]
    return [] if values else [f"--values: give the values of {key}"]


def _sweep_sparsity(settings: Settings, run: Run, levels: list[float], targets: str | None, budget: float) -> None:
    arguments = {"targets": targets, "budget": budget, **({"levels": levels} if levels else {})}
    trainer = settings.setdefault("trainer", {})
    callback = {"class_path": "lightgpt2.callbacks.SparsitySweep", "init_args": arguments}
    trainer["callbacks"] = [*(trainer.get("callbacks") or []), callback]
    written = run.folder.with_name(f"{run.folder.name}-sweep.yaml")
    with atomic_file(written) as temporary:
        temporary.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    resume = ["--ckpt_path", "last"] if run.last.exists() else []
    code, stopped = fit(["--config", str(written), "--run", run.name, *resume])
    if stopped and code:
        raise Interrupted("stopped; the same command goes on")
    if code:
        raise UserError(f"the fit of {run.name} failed; see its message above")


def _sweep_key(settings: Settings, group: str, key: str, values: list[float], budget: float) -> None:
    whole = isinstance(flat(settings)[key], int)
    stages = []
    for number in (int(value) if whole and value.is_integer() else value for value in values):
        mine = copy.deepcopy(settings)
        override(mine, {key: number})
        stages.append(Stage(str(number), {**mine, "run": f"{group}/{number}"}))
    recipe = Recipe(group, stages)
    run_stages(recipe)
    models = [stage.run.model for stage in stages]
    arms = {"fit": [Ledger.read(model).last["quality"]["after"] for model in models]}
    write_sweep(recipe.folder, models[0], group, {"key": key, "values": values}, arms, budget)


def write_sweep(folder: Path, model: Path, name: str, about: dict[str, Any], arms: Arms, budget: float) -> None:
    """Write a sweep to `sweep.json`, a picture and the ledger of a model, where a report finds it; print its table.

    `about` has what was swept, `key` and `values`; `arms` the quality at each value, of which the first arm's decides what is
    inside the budget.
    """
    inside = largest_inside(about["values"], next(iter(arms.values())), budget)
    found = {**about, "arms": arms, "budget_percent": budget, "largest_inside_budget": inside}
    write_json(folder / "sweep.json", found)
    if plot := sweep_plot(found, found["key"], name):
        with atomic_file(folder / "sweep.svg") as temporary:
            temporary.write_text(plot.file(), encoding="utf-8")
    Ledger.read(model).amended(sweeps={found["key"]: found}).write(model)
    print(f"{sweep_table(found)}\n\n{folder}/sweep.json, sweep.svg", flush=True)


def largest_inside(values: list[float], rows: list[dict[str, Any]], budget: float) -> float | None:
    """The largest value up to which the quality stays inside a budget; None if the first row's metric is not a number."""
    first, inside = value_of(rows[0]), None
    worse = 1 if rows[0][rows[0]["primary"]]["better"] == "lower" else -1
    slack = abs(first) * budget / 100 if math.isfinite(first) else 0.0
    for value, row in zip(values, rows, strict=True):
        if not worse * value_of(row) <= worse * first + slack:
            break
        inside = value
    return inside
