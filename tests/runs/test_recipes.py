"""Recipes: what they say, every mistake in them, and those that ship."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightgpt2.cli.check_stages import check_stages
from lightgpt2.errors import UserError
from lightgpt2.runs.recipes import Stage, in_order, read_recipe
from lightgpt2.runs.settings import override
from tests.support.cli import ROOT, write_config


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_recipe(stages: Any, **more: Any) -> str:
    write_config(Path("chain.yaml"), {"stages": stages, **more})
    return "chain.yaml"


def refused(recipe: str) -> list[str]:
    """The messages with which a recipe is refused."""
    with pytest.raises(UserError) as error:
        read_recipe(recipe)
    return [*error.value.problems]


A = {"name": "a", "config": "teacher.yaml"}
B = {"name": "b", "config": "distill.yaml"}

# The stages, and words of the one message that they must give. The first begins it.
MISTAKES: list[tuple[Any, ...]] = [
    ([], "stages: there are none", "give a list"),
    ([A, "b"], "stages.2: must be a mapping with a name and a config, got 'b'"),
    ([A | {"override": {}}], "stages.a.override: no such key", "overrides"),
    ([{"config": "teacher.yaml"}], "stages.1.name: required"),
    ([A | {"name": 1}], "stages.1.name: must be the name of a folder, got 1"),
    ([A | {"name": "x/y"}], "stages.x/y.name: ", "got 'x/y'; give one without slashes"),
    ([A | {"name": ".a"}], "stages..a.name: must be the name of a folder, got '.a'", "leading dots"),
    ([A | {"name": "pipeline.json"}], "stages.pipeline.json.name: ", "not ending in"),
    ([A | {"name": "model"}], "stages.model.name: ", "not model"),
    ([A, A | {"from": None}], "stages.a.name: an earlier stage has this name"),
    ([{"name": "a"}], "stages.a.config: required"),
    ([A | {"config": ["teacher.yaml"]}], "stages.a.config: must be the name of a configuration, got ["),
    ([A | {"config": "no.yaml"}], "stages.a.config: no.yaml does not exist", "teacher.yaml"),
    ([A | {"config": "x" * 10_000}], "stages.a.config: xxx", "... does not exist; give a path"),
    ([A | {"config": "empty.yaml"}], "stages.a.config: empty.yaml has no model.class_path"),
    ([A, B | {"from": "c"}], "stages.b.from: there is no stage c", "of a, b"),
    ([A, B | {"from": {"model.student": "c"}}], "stages.b.from: there is no stage c"),
    ([A, B | {"from": "a/"}], "stages.b.from: a/ names no folder", "give a, or", "a/adapter"),
    ([A, B | {"from": "a/../x"}], "stages.b.from: a/../x names no folder"),
    ([A, B | {"from": 1}], "stages.b.from: there is no stage 1"),
    ([A | {"from": "b"}, B], "stages: a -> b -> a wait for each other's model", "change the from:"),
    ([A | {"overrides": [1]}], "stages.a.overrides: must be a mapping of keys to values, got [1]"),
    ([A | {"overrides": {"trainer..x": 1}}], "stages.a.overrides.trainer..x: not a dotted key"),
    (
        [A | {"overrides": {"trainer.max_steps.x": 1}}],
        "stages.a.overrides.trainer.max_steps.x: trainer.max_steps is 1500", "as a whole",
    ),
    ([A | {"overrides": {"run": "x"}}], "stages.a.overrides.run: the pipeline sets it itself", "remove it"),
    (
        [A, B | {"overrides": {"model.teacher": "gpt2"}}],
        "stages.b.overrides.model.teacher: the stage's input is put there (from: a)", "from: null",
    ),
    (
        [A, B | {"from": {"model.student": "a"}, "overrides": {"model": {"student": {"n_layer": 2}}}}],
        "stages.b.overrides.model.student.n_layer: the stage's input is put there",
    ),
    ([A | {"overrides": {"data.source": "no.txt"}}], "stages.a.data.source: no.txt does not exist"),
]  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES, ids=[words[:40] for _, words, *_ in MISTAKES])
def test_a_mistake_gives_one_message_with_key_and_fix(case: tuple[Any, ...]) -> None:
    stages, *words = case
    write_config(Path("empty.yaml"), {"seed_everything": 1})
    (message,) = refused(write_recipe(stages))
    assert message.startswith(words[0])
    assert all(word in message for word in words)


def test_all_mistakes_are_reported_at_once() -> None:
    stages = [A | {"name": "x/y"}, B | {"config": "no.yaml"}, {"name": "c", "config": "lora.yaml", "from": "d"}]
    messages = refused(write_recipe(stages, stage=1))
    assert [message.partition(": ")[0] for message in messages] == [
        "stage", "stages.x/y.name", "stages.b.config", "stages.c.from",
    ]  # fmt: skip


def test_recipes_are_found_here_then_among_the_shipped() -> None:
    for content, words in (("- a\n", "holds no settings"), ("a: [", "is not valid YAML"), ("", "holds no settings")):
        Path("chain.yaml").write_text(content)
        (message,) = refused("chain.yaml")
        assert message.startswith(f"recipe: chain.yaml {words}")
    (message,) = refused("no.yaml")
    assert message.startswith("recipe: no.yaml does not exist")
    assert "quickstart.yaml" in message, "those that ship are named"
    assert read_recipe("quickstart.yaml").name == read_recipe("recipes/quickstart.yaml").name == "quickstart"
    write_config(Path("quickstart.yaml"), {"stages": [A]})
    assert [stage.name for stage in read_recipe("quickstart.yaml").stages] == ["a"]
    assert len(read_recipe("recipes/quickstart.yaml").stages) > 1


def test_a_config_is_looked_for_here_then_beside_the_recipe_then_among_the_shipped() -> None:
    def source() -> Any:
        return read_recipe("elsewhere/r.yaml").stages[0].settings["model"]["init_args"]["model"]

    Path("elsewhere").mkdir()
    write_config(Path("elsewhere/r.yaml"), {"stages": [{"name": "a", "config": "finetune.yaml"}]})
    assert source() == "checkpoints/teacher/model"
    for place in ("elsewhere/finetune.yaml", "finetune.yaml"):
        write_config(Path(place), {"model": {"class_path": "x.FineTune", "init_args": {"model": place}}})
        assert source() == place


def test_inputs_are_put_where_the_method_takes_them() -> None:
    stages = [
        A, B, {"name": "c", "config": "lora.yaml"}, {"name": "d", "config": "lora.yaml", "from": "c/adapter"},
        {"name": "e", "config": "distill.yaml", "from": {"model.teacher": "a", "model.student": "c"}},
        {"name": "f", "config": "lora.yaml", "from": None},
    ]  # fmt: skip
    recipe = read_recipe(write_recipe(stages))
    made = {s.name: s.settings["model"]["init_args"] for s in recipe.stages}
    assert made["a"]["model"]["n_layer"] == 4
    assert made["e"] | {"teacher": "checkpoints/chain/a/model", "student": "checkpoints/chain/c/model"} == made["e"]
    assert [made[name][key] for name, key in zip("bcdf", ("teacher", "model", "model", "model"), strict=True)] == [
        "checkpoints/chain/a/model", "checkpoints/chain/b/model", "checkpoints/chain/c/adapter", "checkpoints/teacher/model",
    ]  # fmt: skip
    assert [s.settings["run"] for s in recipe.stages] == [f"chain/{s.name}" for s in recipe.stages]
    assert [s.parents for s in recipe.stages] == [set(), {"a"}, {"b"}, {"c"}, {"a", "c"}, set()]


def test_an_input_goes_to_the_teacher_where_only_that_is_set() -> None:
    for arguments, key in (
        ({"teacher": "t"}, "model.teacher"), ({"teacher": "t", "model": "m"}, "model.model"), ({}, "model.model"),
        ({"teacher": None}, "model.model"),
    ):  # fmt: skip
        write_config(Path("own.yaml"), {"model": {"class_path": "mine.Method", "init_args": arguments}})
        stages = read_recipe(write_recipe([A, {"name": "b", "config": "own.yaml", "from": "a/special"}])).stages
        assert stages[1].inputs == {key: "a/special"}


def test_stages_come_after_their_inputs_and_else_as_they_are_written() -> None:
    inputs = {"a": "d", "b": None, "c": "a", "d": None}
    stages = [Stage(name, inputs={"model.model": f"{of}/model"} if of else {}) for name, of in inputs.items()]
    assert [stage.name for stage in in_order(stages)] == ["b", "d", "a", "c"]
    stages[3].inputs = {"model.teacher": "b/model", "model.model": "c/model"}
    with pytest.raises(UserError, match="a -> d -> c -> a wait for each other"):
        in_order(stages)


def test_overrides_are_keys_of_the_command_line() -> None:
    arguments = {"loss": {"kd": 1, "ce": 2}, "model": {"model_type": "gpt2", "n": 1}}
    settings: dict[str, Any] = {
        "model": {"class_path": "x.A", "init_args": arguments},
        "trainer": {"max_steps": 1, "callbacks": [{"class_path": "x.C"}], "strategy": {"class_path": "x.S"}},
    }
    changes = {
        "model.loss.kd": 3, "model.model.m": 4, "model.layers": [0, 1], "trainer": {"max_steps": 5, "callbacks": []},
        "trainer.strategy.stage": 2, "checkpoint.every_n_steps": 7, "model.init_args.compile": True,
    }  # fmt: skip
    assert override(settings, changes) == []
    model = {"model_type": "gpt2", "n": 1, "m": 4}
    arguments = {"loss": {"kd": 3, "ce": 2}, "model": model, "layers": [0, 1], "compile": True}
    strategy = {"class_path": "x.S", "init_args": {"stage": 2}}
    assert settings == {
        "model": {"class_path": "x.A", "init_args": arguments},
        "trainer": {"max_steps": 5, "callbacks": [], "strategy": strategy},
        "checkpoint": {"every_n_steps": 7},
    }
    override(settings, {"model.model": {"model_type": "llama", "k": 1}, "trainer.strategy": {"class_path": "x.T"}})
    assert settings["model"]["init_args"]["model"] == {"model_type": "llama", "k": 1}, "another kind replaces the first"
    assert settings["trainer"]["strategy"] == {"class_path": "x.T"}
    override(settings, {"model.loss": None})
    assert settings["model"]["init_args"]["loss"] is None


def test_an_override_never_reaches_another_stage() -> None:
    shared = {"r": 4}  # which YAML writes once, with an anchor
    first = {"model.lora": shared, "model.lora.r": 8}
    stages = [A | {"overrides": first}, A | {"name": "b", "from": None, "overrides": {"model.lora": shared}}]
    one, two = (stage.settings["model"]["init_args"] for stage in read_recipe(write_recipe(stages)).stages)
    assert "&id001" in Path("chain.yaml").read_text()
    assert (one["lora"]["r"], two["lora"]["r"]) == (8, 4)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["configs", pytest.param("benchmarks", marks=pytest.mark.long)])
def test_all_that_ships_or_was_measured_fits_the_real_signatures(place: str) -> None:
    row = {"text": "It may stop.", "summary": "It may."}
    for text, content in {
        "WIKITEXT2/train.txt": "a",
        "BBC/train.jsonl": json.dumps(row),
    }.items():  # which the reader gets
        Path(text).parent.mkdir()
        Path(text).write_text(content)
    configs = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / place).glob("*.yaml")}
    for path in (ROOT / place / "recipes").glob("*.yaml"):
        assert path.read_text().startswith("# "), "the first line says what it is"
        configs |= {f"{path} {stage.name}": stage.settings for stage in read_recipe(str(path)).stages}
    assert len(configs) > 40
    assert check_stages(configs) == []
