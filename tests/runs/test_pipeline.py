"""A recipe's stages: what is done about each, and why.

`tests/support/fake_fit.py` stands in the place of `lightgpt2 fit`; the real command is in test_pipeline_real.py.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from lightgpt2.runs.fingerprints import changes, content, parts, plan
from lightgpt2.runs.recipes import read_recipe
from tests.support.cli import ROOT, write_config
from tests.support.pipelines import NAMES, Chain, artefacts, everything, starts, state

HEAVY = ("torch", "lightning", "transformers", "datasets", "numpy")


def test_starts_without_importing_anything_heavy() -> None:
    script = f"import sys, lightgpt2.runs.pipeline; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_finished_pipeline_says_what_it_did_and_does_nothing_again(pipe: Chain) -> None:
    _, out, _ = pipe.run()
    assert [line.split()[:2] for line in out.splitlines()[-4:-1]] == [[name, "ran,"] for name in NAMES]
    assert "lightgpt2 report checkpoints/chain" in out.splitlines()[-1]
    for name, record in state().items():
        digest = content(Path(f"checkpoints/chain/{name}/model"))
        assert (record["state"], record["outputs"]) == ("finished", {"model": digest})
        assert record["seconds"] > 0
        assert datetime.fromisoformat(record["finished"]).tzinfo == UTC
    config = yaml.safe_load(Path("checkpoints/chain/b.yaml").read_text())
    assert config["run"] == "chain/b"
    arguments = {"lr": 1.0, "teacher": "checkpoints/chain/a/model"}
    assert config["model"] == {"class_path": "x.Student", "init_args": arguments}
    before = everything()
    code, out, _ = pipe.run()
    assert (code, starts()) == (0, [])
    assert everything() == before
    assert [line.split() for line in out.splitlines()[-4:-1]] == [[name, "skipped"] for name in NAMES]


def test_dry_run_of_a_new_recipe(pipe: Chain) -> None:
    assert pipe.plans() == {
        "a": ("run", "not done yet"),
        "b": ("run", "its input a/model will be made anew"),
        "c": ("run", "its input b/model will be made anew"),
    }
    assert not Path("checkpoints").exists()


def test_a_changed_override_makes_its_stage_and_the_following_anew(done: Chain) -> None:
    done.change("b", trainer__max_steps=7)
    skip = ("skip", "done, and nothing has changed")
    anew = ("run", "its input b/model will be made anew")
    assert done.plans() == {"a": skip, "b": ("run", "trainer.max_steps: 5 -> 7"), "c": anew}
    old = artefacts()
    logs = [Path("tb-logs/chain") / name for name in NAMES]
    for folder in logs:
        folder.mkdir(parents=True)
    assert done.started() == ["chain/b new", "chain/c new"]
    assert [folder.exists() for folder in logs] == [True, False, False], "the old curves go with a run"
    new = artefacts()
    assert [name for name in NAMES if old[name] != new[name]] == ["b", "c"]
    assert done.started() == []


def test_a_stage_whose_input_came_out_the_same_is_not_made_anew(done: Chain) -> None:
    done.change("a", trainer__log_every_n_steps=3)
    assert done.plans()["a"] == ("run", "trainer.log_every_n_steps: not set -> 3")
    assert done.started() == ["chain/a new"]


def test_a_change_is_taken_back_before_anything_was_removed(done: Chain) -> None:
    """What is stale stays until its own stage begins."""
    done.change("a", trainer__fail_at=0)
    done.change("b", trainer__max_steps=7)
    err = done.fails("chain/a new")
    assert "stages.a: lightgpt2 fit --config checkpoints/chain/a.yaml --run chain/a failed" in err
    assert set(artefacts()) == {"b", "c"}
    del done.stages["a"]["overrides"]["trainer.fail_at"], done.stages["b"]["overrides"]["trainer.max_steps"]
    done.write()
    assert done.started() == ["chain/a new"], "whose weights are what they were"


def swap(path: str) -> Callable[[], object]:
    return lambda: Path(path).write_text("other")


AFTER_B = {"c": "its input b/model will be made anew"}
# What a person may do, and what is then said of the stages that are not skipped.
CHANGES: dict[str, tuple[Callable[[], object], dict[str, str]]] = {
    "artefact removed": (lambda: shutil.rmtree("checkpoints/chain/b/model"), {"b": "its artefact is gone", **AFTER_B}),
    "run removed": (lambda: shutil.rmtree("checkpoints/chain/c"), {"c": "its artefact is gone"}),
    "artefact replaced": (
        swap("checkpoints/chain/b/model/model.safetensors"), {"b": "its artefact has changed", **AFTER_B},
    ),
    "more text": (
        lambda: Path("text/two.txt").write_text("more"),
        {"a": "the text has changed", "b": "its input a/model will be made anew", **AFTER_B},
    ),
    "other adapters": (swap("base/adapter_model.safetensors"), {"c": "model.start: base has changed"}),
    "another tokenizer": (swap("base/tokenizer.json"), {"c": "model.start: base has changed"}),
    "another model under the adapters": (swap("under/pytorch_model.bin"), {"c": "model.start: base has changed"}),
    "another model inside a list": (swap("deep/model.safetensors"), {"c": "model.parts.1.source: deep has changed"}),
    "benchmarked since": (swap("base/ledger.json"), {}),
}  # fmt: skip


@pytest.mark.slow
def test_what_has_changed_on_disk_is_seen_and_named(pipe: Chain, tmp_path: Path) -> None:
    for path, text in {
        "base/adapter_model.safetensors": "weights", "base/tokenizer.json": "tokenizer", "under/pytorch_model.bin": "weights",
        "base/adapter_config.json": '{"base_model_name_or_path": "under"}', "deep/model.safetensors": "weights",
    }.items():  # fmt: skip
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text)
    pipe.change("c", model__start="base", model__parts=[{"class_path": "x.Part", "init_args": {"source": "deep"}}])
    pipe.started()
    work = Path.cwd()
    shutil.copytree(work, tmp_path / "whole")
    for name, (change, expected) in CHANGES.items():
        change()
        plans = pipe.plans()
        assert {stage: why for stage, (action, why) in plans.items() if action == "run"} == expected, name
        if name == "artefact replaced":
            pipe.started()
            assert {action for action, _ in pipe.plans().values()} == {"skip"}
        for path in work.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(tmp_path / "whole", work, dirs_exist_ok=True)
    assert {action for action, _ in pipe.plans().values()} == {"skip"}


def test_all_reasons_are_given_and_the_text_is_named_once(done: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load(Path("next.yaml").read_text())
    write_config(Path("renamed.yaml"), {**config, "needs": {"some/model": "first.yaml"}})
    done.stages["c"]["config"] = "renamed.yaml"
    done.write()
    assert done.plans()["c"][0] == "skip", "where things lie does not matter"
    before = state()["a"]["parts"]["lightgpt2"]
    with monkeypatch.context() as patch:
        patch.setattr("lightgpt2.runs.fingerprints.__version__", "9.9")
        assert done.plans()["a"] == ("run", f"lightgpt2 {before} -> 9.9")
    Path("other.txt").write_text("other")
    done.change("c", data__source="other.txt", trainer__max_steps=6, model__lr=None, model__x=None)
    done.stages["c"]["from"] = "a"
    done.write()
    _, reason = done.plans()["c"]
    assert reason.split("; ") == [
        "model.lr: 1.0 -> null", "data.source: text -> other.txt", "trainer.max_steps: 5 -> 6", "model.x: not set -> null",
        "model.model: b/model -> a/model",
    ]  # fmt: skip


def test_a_changed_callback_is_named_by_what_changed(pipe: Chain) -> None:
    for amount in (0.8, 0.5):
        callbacks = [{"class_path": "x.A"}, {"class_path": "x.B", "init_args": {"targets": "lora", "amount": amount}}]
        pipe.change("a", trainer__callbacks=callbacks)
        made = parts(read_recipe("chain.yaml").stages[0])
        if amount == 0.8:
            before = made
    assert changes(before, made) == ["trainer.callbacks.2.amount: 0.8 -> 0.5"]


def test_a_model_that_was_made_on_the_way_is_no_change(pipe: Chain) -> None:
    """What `needs` names is not there when the stage is begun."""
    config = yaml.safe_load(Path("first.yaml").read_text())
    config["model"]["init_args"]["start"] = "needed"
    write_config(Path("first.yaml"), {**config, "needs": {"needed": "maker.yaml"}})
    stage = read_recipe("chain.yaml").stages[0]
    begun = parts(stage)
    assert begun["sources"] == {"model.start": None}
    Path("needed").mkdir()
    Path("needed/model.safetensors").write_text("made")
    stage.run.folder.mkdir(parents=True)
    stage.run.last.write_text("")
    running = {"state": "running", "parts": begun}
    assert plan(running, parts(stage), stage.run) == ("resume", "it was interrupted")
    shutil.rmtree("checkpoints")
    shutil.rmtree("needed")
    pipe.started()
    assert pipe.plans()["a"][0] == "skip"
    Path("needed/model.safetensors").write_text("another")
    assert pipe.plans()["a"] == ("run", "model.start: needed has changed")


def test_inputs_may_be_other_folders_of_a_stage(done: Chain) -> None:
    done.stages["c"]["from"] = "b/adapter"
    done.write()
    what = "stages.c.from: must be a folder with weights, got checkpoints/chain/b/adapter; b wrote b/model"
    assert what in done.fails()
    Path("checkpoints/chain/b/adapter").mkdir()
    Path("checkpoints/chain/b/adapter/one.safetensors").write_text("one")
    assert done.plans()["c"] == ("run", "model.model: b/model -> b/adapter")


def test_weights_in_several_files_are_one(tmp_path: Path) -> None:
    assert content(tmp_path) is None
    for part in ("one", "two"):
        (tmp_path / f"{part}.safetensors").write_text(part)
    whole = content(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert content(tmp_path) == whole
    (tmp_path / "two.safetensors").write_text("2")
    assert content(tmp_path) != whole


def test_what_the_pipeline_did_not_make_is_not_touched(done: Chain) -> None:
    done.stages |= {"d": done.stages["b"], "e": done.stages["c"]}
    done.change("a", trainer__max_steps=6)
    for name in ("d", "e"):
        Path(f"checkpoints/chain/{name}").mkdir()
    before = everything()
    err = done.fails()
    assert [line.split(":")[2].strip() for line in err.splitlines()] == ["checkpoints/chain/d", "checkpoints/chain/e"]
    assert "was not made by this pipeline" in err
    assert everything() == before


def test_a_run_of_the_recipe_s_name_is_not_touched(pipe: Chain) -> None:
    Path("checkpoints/chain").mkdir(parents=True)
    Path("checkpoints/chain/config.yaml").write_text("")
    assert "checkpoints/chain: is the folder of a run; give the recipe's runs another with --run" in pipe.fails()
    assert "else/where names no folder" in pipe.fails(options="--run else/where")
    code, _, err = pipe.run("--run elsewhere")
    assert code == 0, err
    assert Path("checkpoints/elsewhere/c/model").is_dir()
    assert not Path("checkpoints/chain/a").exists()


def test_a_damaged_state_is_a_message(done: Chain) -> None:
    for text in ("{", "[]", '{"a": {}}'):
        Path("checkpoints/chain/pipeline.json").write_text(text)
        assert "checkpoints/chain/pipeline.json: damaged" in done.fails()
