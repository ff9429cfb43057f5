"""Stages that make each other's input: a recipe's in order, and those that a single configuration needs."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from lightgpt2 import fingerprints
from lightgpt2.errors import Interrupted, UserError
from lightgpt2.fingerprints import Parts, Plan, Record, plan
from lightgpt2.models.files import atomic_file, write_json
from lightgpt2.recipes import Recipe, Stage, read_recipe
from lightgpt2.runs import Run

_STATE = "pipeline.json"


# -- what a single configuration needs -----------------------------------------------------------------------------------


def _mentions(values: Any, path: str) -> bool:
    if isinstance(values, dict):
        return any(_mentions(value, path) for value in values.values())
    return bool(values == path)


def missing(needs: dict[str, str], model: dict[str, Any]) -> dict[str, str]:
    """The model folders that a stage starts from and that are not there yet, with the configurations that make them.

    Args:
        needs: For each model folder the configuration whose `fit` makes it.
        model: The stage's model settings; folders that they do not mention (any more) are not needed.
    """
    return {path: config for path, config in needs.items() if _mentions(model, path) and not Path(path).exists()}


def provide(absent: dict[str, str]) -> None:
    """Makes model folders, each by a `fit` in a process of its own; one that was interrupted is resumed.

    Args:
        absent: For each folder the configuration that makes it.

    Raises:
        UserError: The fit failed, or did not make the folder.
        Interrupted: It was interrupted.
    """
    if "LOCAL_RANK" in os.environ:  # a process that Lightning launched beside the first, which has done this
        return
    for path, config in absent.items():
        options = ["--config", config]
        if Run(Path(config).stem).last.exists():
            options += ["--ckpt_path", "last"]
        print(f"{path} is needed and not there: making it with lightgpt2 fit {' '.join(options)}", flush=True)
        started = time.monotonic()
        code, stopped = fit(options)
        if stopped:
            raise Interrupted(f"{config} was interrupted; the same command goes on with it")
        if code or not Path(path).exists():
            raise UserError(f"needs.{path}: lightgpt2 fit {' '.join(options)} did not make it; see its message above")
        print(f"{path} made in {time.monotonic() - started:.0f} s", flush=True)


def fit(options: list[str], held: int | None = None) -> tuple[int, bool]:
    """Runs `lightgpt2 fit` in a process of its own.

    That process gets the terminal's Ctrl-C itself and saves; a SIGTERM, which it does not get, is passed on.

    Args:
        options: Its options.
        held: A lock that it keeps too, so that it is not left behind by a killed pipeline for another one to run into.

    Returns:
        Its exit code, and whether it or this process was asked to stop.
    """
    process: subprocess.Popen[bytes] | None = None
    asked: list[int] = []

    def stop(signum: int, _: Any) -> None:
        asked.append(signum)
        if process and signum == signal.SIGTERM:
            process.terminate()

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        command = [sys.executable, "-m", "lightgpt2", "fit", *options]
        process = subprocess.Popen(command, pass_fds=() if held is None else (held,))
        if signal.SIGTERM in asked:  # before there was a process to pass it on to
            process.terminate()
        code = process.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return code, bool(asked) or code in (130, -signal.SIGINT, -signal.SIGTERM)


# -- recipes -------------------------------------------------------------------------------------------------------------


def run_recipe(name: str, dry_run: bool = False) -> None:
    """Runs the stages of a recipe that are not done yet, or not from what they would be made from now.

    Args:
        name: The recipe: its path, or the name of a shipped one.
        dry_run: Whether only to say what would be run, and why.

    Raises:
        UserError: There are mistakes in the recipe, its folder is another's, or a stage failed.
        Interrupted: A stage was interrupted.
    """
    recipe = read_recipe(name)
    if dry_run:
        _check_folders(recipe)
        _show_plans(recipe)
        return
    run_stages(recipe)
    print(f"What each stage bought: lightgpt2 report {recipe.folder}", flush=True)


def run_stages(recipe: Recipe) -> None:
    """Runs the stages of a recipe that are not done yet, or not from what they would be made from now.

    Args:
        recipe: The recipe.

    Raises:
        UserError: Its folder is another's, or a stage failed.
        Interrupted: A stage was interrupted.
    """
    _check_folders(recipe)
    with _lock(recipe.folder) as held:
        _clean(recipe.folder)
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
        raise UserError(f"{recipe.folder}: is the folder of a run; rename the recipe, or move that folder away")
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


def _show_plans(recipe: Recipe) -> None:
    state, remade = _read_state(recipe), set[str]()
    width = max(len(stage.name) for stage in recipe.stages)
    for stage in recipe.stages:
        anew = [folder for folder in stage.inputs.values() if folder.partition("/")[0] in remade]
        if anew:
            found = Plan("run", f"its input {', '.join(anew)} will be made anew")
        else:
            found = plan(state.get(stage.name), fingerprints.parts(recipe, stage), recipe.run(stage.name))
        if found.action != "skip":
            remade.add(stage.name)
        print(f"{stage.name:{width}}  {found.action:6}  {found.reason}", flush=True)


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
