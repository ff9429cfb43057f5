"""`lightgpt2 pipeline`: the stages of a recipe, in order, each made only when it has to be."""

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

from lightgpt2.errors import Interrupted, UserError
from lightgpt2.models.files import atomic_file, write_json
from lightgpt2.runs import fingerprints
from lightgpt2.runs.fingerprints import Parts, Plan, Record, plan
from lightgpt2.runs.fits import fit, missing, rehearse
from lightgpt2.runs.recipes import Recipe, Stage, read_recipe
from lightgpt2.runs.run import Run
from lightgpt2.runs.settings import section

_STATE = "pipeline.json"


def run_recipe(name: str, dry_run: bool = False, run: str | None = None) -> None:
    """Runs the stages of a recipe that are not done yet, or not from what they would be made from now.

    Args:
        name: The recipe: its path, or the name of a shipped one.
        dry_run: Whether only to say what would be run, and why.
        run: The folder of its stages under `checkpoints/`; its stem unless given.

    Raises:
        UserError: There are mistakes in the recipe, its folder is another's, or a stage failed.
        Interrupted: A stage was interrupted.
    """
    recipe = read_recipe(name, run)
    if dry_run:
        _check_folders(recipe)
        plans = _plans(recipe)
        _show(recipe, plans)
        _rehearse(recipe, plans)
        return
    run_stages(recipe)
    print(f"What each stage bought: lightgpt2 report {recipe.folder}", flush=True)


def run_stages(recipe: Recipe) -> None:
    """Runs the stages of a recipe that are not done yet, or not from what they would be made from now.

    Args:
        recipe: The recipe.

    Raises:
        UserError: There are mistakes in the stages, the recipe's folder is another's, or a stage failed.
        Interrupted: A stage was interrupted.
    """
    _check_folders(recipe)
    with _lock(recipe.folder) as held:
        _clean(recipe.folder)
        _rehearse(recipe, _plans(recipe))
        done = [_settle(recipe, number, held) for number in range(len(recipe.stages))]
    width = max(len(stage.name) for stage in recipe.stages)
    for stage, seconds in zip(recipe.stages, done, strict=True):
        print(f"{stage.name:{width}}  {'skipped' if seconds is None else f'ran, {seconds:.0f} s'}", flush=True)


def _clean(folder: Path) -> None:
    """Removes what a pipeline that was killed was writing or removing."""
    for leftover in folder.glob(".*.stale"):
        shutil.rmtree(leftover)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()


def _check_folders(recipe: Recipe) -> None:
    """Makes sure that nothing lies where the stages go that this pipeline did not make."""
    if (recipe.folder / "config.yaml").exists():
        raise UserError(f"{recipe.folder}: is the folder of a run; give the recipe's runs another with --run NAME")
    known = _read_state(recipe)
    strange = [recipe.run(s.name).folder for s in recipe.stages if s.name not in known]
    problems = [
        f"{folder}: was not made by this pipeline ({_STATE} beside it does not name it); move it away, or rename the stage"
        for folder in strange
        if folder.exists()
    ]
    if problems:
        raise UserError(problems)


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Keeps other pipelines out of a folder, as long as this process or a stage that it has started lives."""
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
    if not path.is_file():
        return {}
    try:
        state: dict[str, Record] = json.loads(path.read_text(encoding="utf-8"))
        if not all({"state", "parts"} <= record.keys() for record in state.values()):
            raise ValueError("it lacks what a pipeline writes")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); restore it, or move {recipe.folder} away to start anew") from error
    return state


def _note(recipe: Recipe, stage: Stage, state: str, made_from: Parts, **more: Any) -> None:
    """Notes what has become of a stage."""
    record = {"state": state, "fingerprint": fingerprints.fingerprint(made_from), "parts": made_from, **more}
    write_json(recipe.folder / _STATE, {**_read_state(recipe), stage.name: record})


def _plans(recipe: Recipe) -> list[Plan]:
    """What is to be done about each stage, as far as can be said before any has run."""
    state, found = _read_state(recipe), dict[str, Plan]()
    for stage in recipe.stages:
        anew = [folder for folder in stage.inputs.values() if found[folder.partition("/")[0]].action != "skip"]
        if anew:
            found[stage.name] = Plan("run", f"its input {', '.join(anew)} will be made anew")
        else:
            made_from = fingerprints.parts(recipe, stage)
            found[stage.name] = plan(state.get(stage.name), made_from, recipe.run(stage.name))
    return list(found.values())


def _show(recipe: Recipe, plans: list[Plan]) -> None:
    width = max(len(stage.name) for stage in recipe.stages)
    for stage, (action, reason) in zip(recipe.stages, plans, strict=True):
        absent = missing(stage.settings.get("needs") or {}, section(stage.settings, "model", "init_args"))
        made = [f"; first makes {path} with lightgpt2 fit --config {maker}" for path, maker in absent.items()]
        print(f"{stage.name:{width}}  {action:6}  {reason}{''.join(made if action != 'skip' else [])}", flush=True)


def _rehearse(recipe: Recipe, plans: list[Plan]) -> None:
    """Reads the configurations of the stages that are to run.

    Raises:
        UserError: There are mistakes in them.
    """
    stages = [stage for stage, found in zip(recipe.stages, plans, strict=True) if found.action != "skip"]
    if problems := rehearse({f"stages.{stage.name}": stage.settings for stage in stages}):
        raise UserError(problems)


def _settle(recipe: Recipe, number: int, held: int) -> float | None:
    """Does what is to be done about a stage; the seconds that it took, or nothing where there was nothing to do."""
    stage = recipe.stages[number]
    made_from, run = fingerprints.parts(recipe, stage), recipe.run(stage.name)
    action, reason = plan(_read_state(recipe).get(stage.name), made_from, run)
    print(f"[{number + 1}/{len(recipe.stages)}] {stage.name}: {action} ({reason})", flush=True)
    if action == "skip":
        return None
    config = _write_config(recipe, stage)
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
        raise UserError(
            f"stages.{stage.name}: lightgpt2 fit {' '.join(options)} {how}. The stages before it stay as they are, and the "
            "same command goes on with this one"
        )
    return seconds


def _write_config(recipe: Recipe, stage: Stage) -> Path:
    path = recipe.folder / f"{stage.name}.yaml"
    text = yaml.safe_dump(stage.settings, sort_keys=False, allow_unicode=True)
    with atomic_file(path) as temporary:
        temporary.write_text(f"# Written by lightgpt2 pipeline; change the recipe instead.\n{text}", encoding="utf-8")
    return path


def _discard(run: Run) -> None:
    """Removes a run; its folder is out of the way at once, so that nobody finds half of it."""
    if run.folder.exists():
        stale = run.folder.with_name(f".{run.folder.name}.stale")
        run.folder.replace(stale)
        shutil.rmtree(stale)
    shutil.rmtree(run.logs, ignore_errors=True)


def _finish(recipe: Recipe, stage: Stage, made_from: Parts, seconds: float) -> None:
    """Notes that a stage has ended well.

    Raises:
        UserError: It has not made what a stage makes.
    """
    run = recipe.run(stage.name)
    made = fingerprints.outputs(run.folder)
    if "model" not in made or not _scored(run.model):
        raise UserError(
            f"stages.{stage.name}: it ended without an artefact that was scored ({run.model}); see what it printed above"
        )
    # What the stage's `needs` made on its way is known now.
    known = {key: digest for key, digest in made_from["sources"].items() if digest}
    made_from = {**made_from, "sources": fingerprints.sources(stage) | known}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    _note(recipe, stage, "finished", made_from, outputs=made, seconds=round(seconds, 1), finished=now)


def _scored(model: Path) -> bool:
    """Whether the ledger says how good a model is, which is noted last."""
    try:
        entries = json.loads((model / "ledger.json").read_text(encoding="utf-8"))
        return "after" in entries[-1]["quality"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
