"""`lightgpt2 pipeline`: the stages of a recipe, in order, each run only if it has to be."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from lightgpt2.errors import Interrupted, UserError, refuse
from lightgpt2.models.files import atomic_file, clear_leftovers, remove, write_json
from lightgpt2.models.ledger import Ledger
from lightgpt2.runs import fingerprints
from lightgpt2.runs.fingerprints import Parts, Plan, Record, plan
from lightgpt2.runs.fits import check_stages, fit, missing
from lightgpt2.runs.recipes import Recipe, Stage, read_recipe
from lightgpt2.runs.run import Run
from lightgpt2.runs.settings import section

_STATE = "pipeline.json"


def run_recipe(name: str, dry_run: bool = False, run: str | None = None) -> None:
    """Run the stages of a recipe that are not done yet, or whose settings or inputs have changed; see `commands.pipeline`."""
    recipe = read_recipe(name, run)
    if dry_run:
        _check_folders(recipe)
        plans = _plans(recipe)
        for stage in recipe.stages:
            action, reason = plans[stage.name]
            absent = missing(section(stage.settings, "needs"), section(stage.settings, "model", "init_args"))
            first = [f"; first makes {path} with lightgpt2 fit --config {config}" for path, config in absent.items()]
            _say(recipe, stage, f"{action:6}  {reason}{''.join(first if action != 'skip' else [])}")
        _check_configs(recipe, plans)
        return
    run_stages(recipe)
    print(f"What each stage bought: lightgpt2 report {recipe.folder}", flush=True)


def run_stages(recipe: Recipe) -> None:
    """Run the stages of a recipe that has been read, as `run_recipe` does."""
    _check_folders(recipe)
    with _lock(recipe.folder) as held:
        for leftover in recipe.folder.glob(".*.stale"):  # of a pipeline that was killed while it removed these
            remove(leftover)
        clear_leftovers(recipe.folder)
        _check_configs(recipe, _plans(recipe))
        done = [_run_stage(recipe, number, held) for number in range(len(recipe.stages))]
    for stage, seconds in zip(recipe.stages, done, strict=True):
        _say(recipe, stage, "skipped" if seconds is None else f"ran, {seconds:.0f} s")


def _say(recipe: Recipe, stage: Stage, text: str) -> None:
    print(f"{stage.name:{max(len(each.name) for each in recipe.stages)}}  {text}", flush=True)


def _check_folders(recipe: Recipe) -> None:
    """Check that this pipeline made whatever lies where the stages go."""
    if (recipe.folder / "config.yaml").exists():
        raise UserError(f"{recipe.folder}: is the folder of a run; give the recipe's runs another with --run NAME")
    known = _read_state(recipe)
    folders = [stage.run.folder for stage in recipe.stages if stage.name not in known]
    how = f"was not made by this pipeline ({_STATE} beside it does not name it); move it away, or rename the stage"
    refuse(f"{folder}: {how}" for folder in folders if folder.exists())


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Keep other pipelines out of a folder, as long as this process or a stage that it has started lives."""
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{folder}: another pipeline, or a stage of one, is at work there; wait for it") from error
        yield held
    finally:
        os.close(held)


def _read_state(recipe: Recipe) -> dict[str, Record]:
    path = recipe.folder / _STATE
    if not os.path.lexists(path):
        return {}
    try:
        state: dict[str, Record] = json.loads(path.read_text(encoding="utf-8"))
        if not all(fingerprints.is_record(record) for record in state.values()):
            raise ValueError("it lacks what a pipeline writes")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); restore it, or move {recipe.folder} away to start anew") from error
    return state


def _note(recipe: Recipe, stage: Stage, state: str, made_from: Parts, **more: Any) -> None:
    """Note what has become of a stage."""
    record = {"state": state, "parts": made_from, **more}
    write_json(recipe.folder / _STATE, {**_read_state(recipe), stage.name: record})


def _plans(recipe: Recipe) -> dict[str, Plan]:
    """What to do about each stage, as far as it is known before any has run."""
    state, found = _read_state(recipe), dict[str, Plan]()
    for stage in recipe.stages:
        anew = [folder for folder in stage.inputs.values() if found[folder.partition("/")[0]].action != "skip"]
        if anew:
            found[stage.name] = Plan("run", f"its input {', '.join(anew)} will be made anew")
        else:
            found[stage.name] = plan(state.get(stage.name), fingerprints.parts(stage), stage.run)
    return found


def _check_configs(recipe: Recipe, plans: dict[str, Plan]) -> None:
    """Read the configurations of the stages that are to run, so that a mistake in the last shows before the first runs."""
    stages = [stage for stage in recipe.stages if plans[stage.name].action != "skip"]
    refuse(check_stages({f"stages.{stage.name}": stage.settings for stage in stages}))


def _run_stage(recipe: Recipe, number: int, held: int) -> float | None:
    """Do what is to be done about a stage; the seconds that it took, or None if it was skipped."""
    stage = recipe.stages[number]
    made_from, run = fingerprints.parts(stage), stage.run
    action, reason = plan(_read_state(recipe).get(stage.name), made_from, run)
    print(f"[{number + 1}/{len(recipe.stages)}] {stage.name}: {action} ({reason})", flush=True)
    if action == "skip":
        return None
    config = recipe.folder / f"{stage.name}.yaml"
    text = yaml.safe_dump(stage.settings, sort_keys=False, allow_unicode=True)
    with atomic_file(config) as temporary:
        temporary.write_text(f"# Written by lightgpt2 pipeline; change the recipe instead.\n{text}", encoding="utf-8")
    options = ["--config", str(config), "--run", run.name]
    if action == "resume":
        options += ["--ckpt_path", "last"]
    else:
        _discard(run)  # before it is noted: a stage with the new parts and an old checkpoint would be resumed
        _note(recipe, stage, "running", made_from)
    started = time.monotonic()
    code, stopped = fit(options, held)
    seconds = time.monotonic() - started
    if code == 0:
        _finish(recipe, stage, made_from, seconds)
    if stopped:
        where = f"{stage.name} was interrupted" if code else "interrupted between two stages"
        raise Interrupted(f"{where}; the same command goes on from there")
    if code:
        how = f"was killed by signal {-code}" if code < 0 else "failed; see its message above"
        rest = "The stages before it stay as they are, and the same command goes on with this one"
        raise UserError(f"stages.{stage.name}: lightgpt2 fit {' '.join(options)} {how}. {rest}")
    return seconds


def _discard(run: Run) -> None:
    """Remove a run; its folder is out of the way at once, so that nobody finds half of it."""
    if run.folder.is_symlink():  # to another disk, where the next run lies again
        for path in run.folder.glob("*"):
            remove(path)
    elif run.folder.exists():
        stale = run.folder.with_name(f".{run.folder.name}.stale")
        run.folder.replace(stale)
        shutil.rmtree(stale)
    shutil.rmtree(run.logs, ignore_errors=True)


def _finish(recipe: Recipe, stage: Stage, made_from: Parts, seconds: float) -> None:
    """Note that a stage has ended well: with an artefact that was scored, which fit does last."""
    made = fingerprints.outputs(stage.run.folder)
    if "model" not in made or "after" not in Ledger.read(stage.run.model).last.get("quality", {}):
        what = f"it ended without an artefact that was scored ({stage.run.model})"
        raise UserError(f"stages.{stage.name}: {what}; see what it printed above")
    # What the stage's `needs` made on its way is known now.
    known = {key: digest for key, digest in made_from["sources"].items() if digest}
    made_from = {**made_from, "sources": fingerprints.sources(stage) | known}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    _note(recipe, stage, "finished", made_from, outputs=made, seconds=round(seconds, 1), finished=now)
