"""`lightgpt2 sweep`: what a model is worth at each value of one setting."""

import copy
import json
import math
from typing import Any

import yaml

from lightgpt2.errors import Interrupted, UserError
from lightgpt2.models.files import atomic_file, write_json
from lightgpt2.report.plots import sweep_plot
from lightgpt2.report.table import sweep_table
from lightgpt2.runs.configs import find_config
from lightgpt2.runs.fits import fit
from lightgpt2.runs.pipeline import run_stages
from lightgpt2.runs.recipes import Recipe, Stage
from lightgpt2.runs.run import Run
from lightgpt2.runs.settings import Settings, flat, override, section

SPARSITY = "sparsity"


def run_sweep(
    config: str, key: str, values: list[float], run: str | None, targets: str | None, budget: float, changes: list[str]
) -> None:
    """Sweeps one setting of a configuration.

    `sparsity` is of the trained weights: the configuration is fitted once (or gone on with), and copies of its result are
    pruned. For any other key each value is a fit of its own, all of them stages of a pipeline: finished ones are kept.

    Args:
        config: The configuration: its path, or the name of a shipped one.
        key: `sparsity`, or the dotted key of a number in the configuration.
        values: Its values.
        run: Name of the run, or of the group of runs; the default is the configuration's stem, and the key.
        targets: What is pruned, as for `GlobalL1Pruning`; the default is the adapters where there are any.
        budget: How much the perplexity may rise above that of sparsity 0, or above the lowest.
        changes: Further settings for all fits, `key=value` each.

    Raises:
        UserError: A value cannot be, or a fit failed.
        Interrupted: It was interrupted; what is done is kept.
    """
    path = find_config(config)
    settings: Settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    problems = override(settings, _parsed(changes))
    values = sorted(set(values))
    if key == SPARSITY:
        problems += [f"--values: {v:g} is no sparsity; give numbers in [0, 1)" for v in values if not 0 <= v < 1]
    else:
        problems += _key_problems(settings, key, values)
    if problems:
        raise UserError(problems)
    stem = str(settings.get("run") or path.stem)
    if key == SPARSITY:
        _sweep_sparsity(settings, Run(run or stem), values, targets, budget)
    else:
        _sweep_key(settings, run or f"{stem.replace('/', '-')}-{key}", key, values, budget)


def _parsed(changes: list[str]) -> Settings:
    broken = [change for change in changes if "=" not in change]
    if broken:
        raise UserError(f"--set: {broken[0]} is no setting; give key=value, for example trainer.max_steps=50")
    return {key: yaml.safe_load(value) for key, _, value in (change.partition("=") for change in changes)}


def _key_problems(settings: Settings, key: str, values: list[float]) -> list[str]:
    found = flat(settings)
    if key not in found:
        return [
            f"--key: the configuration has no {key}; give one that it sets, such as {', '.join(_numbers(found)[:5])}"
        ]
    if key not in _numbers(found):
        return [f"--key: {key} is {found[key]!r} and no number; give one of {', '.join(_numbers(found)[:8])}"]
    return [] if values else [f"--values: give the values of {key}"]


def _numbers(found: Settings) -> list[str]:
    return [key for key, value in found.items() if _is_number(value)]


def _is_number(value: Any) -> bool:
    try:
        float(value)  # YAML takes 1e-2 for text, which jsonargparse does not
    except (TypeError, ValueError):
        return False
    return not isinstance(value, bool)


def _sweep_sparsity(settings: Settings, run: Run, levels: list[float], targets: str | None, budget: float) -> None:
    adapters = str(section(settings, "model").get("class_path")).endswith("LoRA")
    arguments: dict[str, Any] = {"targets": targets or ("lora" if adapters else "linear"), "budget": budget}
    if levels:
        arguments["levels"] = levels
    trainer = settings.setdefault("trainer", {})
    callback = {"class_path": "lightgpt2.callbacks.SparsitySweep", "init_args": arguments}
    trainer["callbacks"] = [*(trainer.get("callbacks") or []), callback]
    written = run.folder.with_name(f"{run.folder.name}-sweep.yaml")
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    resume = ["--ckpt_path", "last"] if run.last.exists() else []
    code, stopped = fit(["--config", str(written), "--run", run.name, *resume])
    if stopped and code:
        raise Interrupted("stopped; the same command goes on")
    if code:
        raise UserError(f"the fit of {run.name} failed; see its message above")


def _sweep_key(settings: Settings, group: str, key: str, values: list[float], budget: float) -> None:
    stages = []
    for value in values:
        mine = copy.deepcopy(settings)
        number = int(value) if float(value).is_integer() and isinstance(flat(settings)[key], int) else value
        override(mine, {key: number})
        name = str(number)
        stages.append(Stage(name, {**mine, "run": f"{group}/{name}"}))
    recipe = Recipe(group, stages)
    run_stages(recipe)
    rows = []
    for stage in stages:
        ledger = json.loads((recipe.run(stage.name).model / "ledger.json").read_text(encoding="utf-8"))
        rows.append(ledger[-1]["quality"]["after"])
    lowest = min(row["perplexity"] for row in rows)
    inside = [v for v, row in zip(values, rows, strict=True) if row["perplexity"] <= lowest + budget]
    found = {"key": key, "values": values, "arms": {"fit": rows}, "budget": budget}
    found["largest_inside_budget"] = max(inside) if inside and math.isfinite(lowest) else None
    write_json(recipe.folder / "sweep.json", found)
    first = recipe.run(stages[0].name).model / "ledger.json"  # where the report finds it
    entries = json.loads(first.read_text(encoding="utf-8"))
    entries[-1].setdefault("sweeps", {})[key] = found
    write_json(first, entries)
    if plot := sweep_plot(found, key, group):
        with atomic_file(recipe.folder / "sweep.svg") as temporary:
            temporary.write_text(plot.file(), encoding="utf-8")
    print(f"{sweep_table(found)}\n\n{recipe.folder}/sweep.json, sweep.svg", flush=True)
