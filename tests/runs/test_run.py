"""A run's identity, and which checkpoint it goes on from; the messages of the command are in tests/cli."""

import copy
import functools
import operator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightgpt2.callbacks.checkpointing import AtomicCheckpointIO
from lightgpt2.errors import UserError
from lightgpt2.runs.fits import missing
from lightgpt2.runs.run import FORMAT, Run, check_folder, find_checkpoint, identity

# A method, an adaptation, an objective and a task that this package has never heard of.
CONFIG: dict[str, Any] = {
    "seed_everything": 1,
    "model": {
        "class_path": "mine.Method",
        "init_args": {
            "start": "gpt2", "blocks": [0, 2], "mixture": [0.5, 0.5], "compile": False,
            "objective": {"class_path": "mine.Objective", "init_args": {"weight": 0.5, "kind": "js"}},
            "adaptations": [
                {"class_path": "mine.Gates", "init_args": {"share": 0.5, "unit": "head", "compile": False}},
                {"class_path": "mine.Rounding", "init_args": {"bits": 8, "group": None}},
            ],
            "loss": {"kd": 1, "divergence": "kl"},
            "optimizer": {"lr": 1e-3, "warmup_steps": 3},
            "task": {"class_path": "mine.Parity", "init_args": {"samples": 3}},
        },
    },
    "data": {"class_path": "mine.Data", "init_args": {"source": "corpus", "batch_size": 4}},
}  # fmt: skip
INIT, ADAPTATIONS = ("model", "init_args"), ("model", "init_args", "adaptations")


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    functools.reduce(operator.getitem, path[:-1], config)[path[-1]] = value
    return config


def test_identity_of_a_method_of_somebody_else() -> None:
    assert identity(CONFIG) == {
        "model.class_path": "mine.Method",
        "model.start": "gpt2",
        "model.blocks": [0, 2],
        "model.objective.class_path": "mine.Objective",
        "model.objective.kind": "js",
        "model.adaptations.1.class_path": "mine.Gates",
        "model.adaptations.1.unit": "head",
        "model.adaptations.2.class_path": "mine.Rounding",
        "model.adaptations.2.bits": 8,
        "model.task.class_path": "mine.Parity",
        "data.source": "corpus",
    }
    assert identity({"model": {"class_path": "mine.Method"}}) == {"model.class_path": "mine.Method"}


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ((*INIT, "start"), "gpt2-medium", "model.start"),
        ((*INIT, "task", "class_path"), "mine.Other", "model.task.class_path"),
        ((*ADAPTATIONS, 1, "init_args", "bits"), 4, "model.adaptations.2.bits"),
        ((*ADAPTATIONS, 1, "init_args", "group"), 32, "model.adaptations.2.group"),
        ((*INIT, "optimizer"), {"class_path": "mine.Optimizer"}, "model.optimizer.class_path"),
        (("data", "init_args", "source"), "other", "data.source"),
        ((*INIT, "objective", "init_args", "weight"), 0.9, None),
        ((*INIT, "mixture"), [0.1, 0.9], None),
        ((*INIT, "loss"), None, None),
        ((*INIT, "optimizer", "warmup_steps"), 9, None),
        ((*INIT, "task", "init_args", "samples"), 0, None),
        ((*ADAPTATIONS, 0, "init_args", "compile"), True, None),
        (("data", "init_args", "batch_size"), 8, None),
        (("seed_everything",), 2, None),
    ],
)
def test_what_may_change_between_a_run_and_its_resumption(path: tuple[Any, ...], value: Any, key: str | None) -> None:
    ours, theirs = identity(changed(path, value)), identity(CONFIG)
    assert [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)] == ([key] if key else [])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    made = Run("r")
    made.folder.mkdir(parents=True)
    return made


def save(path: Path, **values: Any) -> None:
    AtomicCheckpointIO().save_checkpoint({"run": {"a": 1, "old": None}, "global_step": 7, **values}, path)


def test_a_setting_that_one_side_lacks_counts_as_null(run: Run) -> None:
    save(run.last, format=FORMAT)
    assert find_checkpoint(run, "last", {"a": 1}) == (run.last, 7, [])
    differences = r"last.ckpt is of another run \(b: null there, 2 here, a: 1 there, null here\);"
    with pytest.raises(UserError, match=differences):
        find_checkpoint(run, str(run.last), {"b": 2})


def test_a_checkpoint_of_another_format_is_refused_with_what_to_do(run: Run) -> None:
    for wanted, values in (("last", {"format": 1}), ("checkpoints/r/last.ckpt", {"format": FORMAT + 1}), ("last", {})):
        save(run.last, **values)
        with pytest.raises(UserError) as error:
            find_checkpoint(run, wanted, {"a": 1})
        fix = "start again with another --run (its model folder can be used as it is)"
        assert (
            str(error.value)
            == f"--ckpt_path: checkpoints/r/last.ckpt was written by another version of lightgpt2; {fix}"
        )


def refused(name: str) -> str:
    """The message with which a fit of CONFIG is kept out of a run's folder."""
    with pytest.raises(UserError) as error:
        check_folder(Run(name), identity(CONFIG), resuming=False)
    return str(error.value)


def test_a_run_goes_to_a_folder_that_is_new_or_its_own(run: Run) -> None:
    for name in ("../r", "a/b/c", ".data", "a/..", "a/", "/a"):
        assert refused(name).endswith("give NAME or GROUP/NAME without leading dots")
    run.predictions.write_text("{}\n")
    check_folder(run, identity(CONFIG), resuming=False)
    (run.folder / "thesis.txt").write_text("years of work")
    for content in (None, "", "a: [", "model: 3", "model: {}"):
        if content is not None:
            run.config.write_text(content)
        assert refused("r").startswith(
            "--run r: checkpoints/r was not made by lightgpt2; give this run a name with --run"
        )
    run.config.write_text(yaml.safe_dump(CONFIG))
    check_folder(run, identity(CONFIG), resuming=False)
    assert refused("r/inner").endswith("checkpoints/r is the folder of a run itself; give this run another GROUP")
    Path("checkpoints/group").mkdir()
    run.folder.rename("checkpoints/group/r")
    assert refused("group").startswith(
        "--run group: checkpoints/group holds other runs (r); give this run another name"
    )


def test_only_missing_models_that_the_settings_mention_are_needed(run: Run) -> None:
    needs = {str(run.folder): "there.yaml", "deep": "deep.yaml", "listed": "listed.yaml", "unused": "unused.yaml"}
    model = {"model": str(run.folder), "teachers": ["x", "listed"], "parts": [{"init_args": {"source": "deep"}}]}
    assert missing(needs, model) == {"deep": "deep.yaml", "listed": "listed.yaml"}
