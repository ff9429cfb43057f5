"""The form of a configuration: every mistake at once, in half a second, and nothing refused that the parser accepts."""

import inspect
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonargparse._parameter_resolvers import get_signature_parameters
from jsonargparse._util import import_object
from jsonargparse.typing import PositiveInt

import lightgpt2.callbacks
import lightgpt2.data
import lightgpt2.methods
from lightgpt2.cli import checking, pages
from lightgpt2.cli.checking import CHECKPOINT, TRAINER, check, describe, typed
from lightgpt2.cli.schema import Section, item, settings_of, union
from lightgpt2.errors import UserError
from lightgpt2.runs.configs import shipped_configs
from tests.support.cli import ROOT, write_config
from tests.support.mistakes import spoilt

SHIPPED = [
    f"{module.__name__}.{name}"
    for module in (lightgpt2.methods, lightgpt2.data, lightgpt2.callbacks)
    for name in module.__all__
    if isinstance(getattr(module, name), type)
]

MODEL = "lightgpt2.methods.Distill"
DATA_HELP, MODEL_HELP = "--data.help lightgpt2.data.LanguageModelingData", f"--model.help {MODEL}"
GROUP = "give its settings, or remove it"
CALLBACK_HELP = "lightgpt2 fit --trainer.callbacks.help lightgpt2.callbacks."

# What a person may write: the key, the value, and what the one message says of the key.
MISTAKES: list[tuple[str, Any, str]] = [
    ("data.sorce", "x", f"no such key; did you mean source? See lightgpt2 fit {DATA_HELP}"),
    ("trainer.max_step", 5, "no such key; did you mean max_steps? See lightgpt2 fit --trainer.help"),
    ("model.loss.temprature", 2.0, f"no such key; did you mean temperature? See lightgpt2 fit {MODEL_HELP}"),
    ("model.task.sample", 2, f"no such key; did you mean samples? See lightgpt2 fit {MODEL_HELP}"),
    ("model.start", "x", f"no such key; see lightgpt2 fit {MODEL_HELP}"),  # which the preset gives
    ("modle", 1, "no such key; did you mean model? See lightgpt2 fit --help"),
    ("zzz", 1, "no such key; see lightgpt2 fit --help"),
    ("data.stride", "x", "must be a whole number >0 or null, got 'x'"),
    ("data.stride", 6.5, "must be a whole number >0 or null, got 6.5"),
    ("model.optimizer.lr", "fast", "must be a number >0, got 'fast'"),
    ("model.loss.ce", -1.0, "must be a number ≥0, got -1.0"),
    ("model.loss", "kd", f"must be a group of settings, got 'kd'; {GROUP}"),
    ("model.loss", [1], f"must be a group of settings, got [1]; {GROUP}"),
    ("model.optimizer", 3, f"must be a group of settings, got 3; {GROUP}"),
    ("trainer.max_steps", "many", "must be a whole number, got 'many'"),
    ("checkpoint.every_n_steps", 0, "must be a whole number >0, got 0"),
    ("data.mode", "pack", "must be one of packed, padded, got 'pack'"),
    ("model.teacher", None, "required, but not given"),
    ("data", None, "required, but not given"),
    ("model", {"class_path": f"{MODEL}l"}, f"there is no {MODEL}l; did you mean Distill?"),
    ("seed_everything", 2**32, "must be true or false or a whole number from 0 to 4294967295, got 4294967296"),
    ("data.source", "./gone", "./gone does not exist; give a file, a folder or a hub id"),
    ("data.source", "gone.txt", "gone.txt does not exist; give a file, a folder or a hub id"),
    ("model.teacher", "./gone", "./gone does not exist; give a hub id, a model folder or a .gguf file"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(changes: dict[str, Any], *args: str) -> list[str]:
    """The messages with which a configuration is refused."""
    write_config(Path("config.yaml"), spoilt(changes))
    with pytest.raises(UserError) as caught:
        check(["fit", "--config", "config.yaml", *args])
    return [*map(str, caught.value.problems)]


@pytest.mark.parametrize(("key", "value", "message"), MISTAKES)
def test_one_mistake_gives_one_message(key: str, value: Any, message: str) -> None:
    assert refused({key: value}) == [f"{key}: {message}"]


@pytest.mark.parametrize(
    ("path", "key", "what"),
    [
        ("lightgpt2.callbacks.Export", "Export.grup", f"no such key; did you mean group? See {CALLBACK_HELP}Export"),
        ("lightgpt2.callbacks.artefact.No", "No", "there is no lightgpt2.callbacks.artefact.No"),
        ("lightning.pytorch.callbacks.Timer", "Timer.grup", "no such key; see lightgpt2 fit"),
    ],
)
def test_a_mistake_in_a_callback_is_named_by_its_class(path: str, key: str, what: str) -> None:
    message, *_ = refused({"trainer.callbacks": [{"class_path": path, "init_args": {"grup": 1}}]})
    assert message.startswith(f"trainer.callbacks.{key}: {what}")


def test_all_mistakes_of_files_and_command_line_are_named_at_once_by_their_whole_keys() -> None:
    write_config(Path("more.yaml"), {"data": {"init_args": {"seeed": 1}}})
    changes = {
        "data.stride": "x", "model.optimizer.lr": "abc", "model.nope": 3, "model.loss.ce": -1, "model.loss.tempp": 1,
        "nokey": 1, "model.teacher": None, "checkpoint.every_n_steps": 0,
    }  # fmt: skip
    options = "--config more.yaml --trainer.max_steps y --model.task.smples=2 --other 3 --trainer.bar=1"
    keys = [message.partition(":")[0] for message in refused(changes, *options.split())]
    assert sorted(keys) == sorted(
        [*changes, "data.seeed", "trainer.max_steps", "model.task.smples", "other", "trainer.bar"]
    )


def test_what_the_command_line_mends_or_a_need_makes_is_no_mistake() -> None:
    changes = {"model.teacher": "checkpoints/t/model", "data.stride": "x", "needs": {"checkpoints/t/model": "t.yaml"}}
    write_config(Path("config.yaml"), spoilt(changes))
    for options in (
        ["--data.stride", "5", "--trainer.callbacks+=x.Y", "--trainer.callbacks.z=3"],
        ["--data.stride=null", "--model=lightgpt2.methods.QAT", "--model.model=x"],
        ["--print_config"],
    ):
        args = ["fit", "--config=config.yaml", *options]
        assert check(args)[0] == "fit", "nothing is refused"


@pytest.mark.parametrize("path", SHIPPED)
def test_null_on_the_command_line_is_what_it_is_in_a_file(path: str) -> None:
    settings = settings_of(path) or {}
    for name, setting in settings.items():
        found = [[*checking._value(name, value, setting, "")] for value in (None, "null")]
        assert type(None) not in setting.types or found == [[], []], name


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [b", "is not valid YAML"), (b"\xff\xfe\x00", "is not valid YAML"),
        (b"", "holds no settings"), (b"- 1\n", "holds no settings"), (None, "does not exist; give a path"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("flag", [["--config", "bad.yaml"], ["--config=bad.yaml"], ["-c=bad.yaml"]])
def test_unreadable_configuration(content: bytes | None, words: str, flag: list[str]) -> None:
    if content is not None:
        Path("bad.yaml").write_bytes(content)
    with pytest.raises(UserError, match=f"--config: bad.yaml {words}"):
        check(["fit", *flag])


def test_the_source_says_what_the_parser_takes() -> None:
    """So that no configuration is refused here that the parser accepts."""
    for path in {*SHIPPED, CHECKPOINT, TRAINER} - {"lightgpt2.data.TaskData"}:
        wanted = {each.name: each for each in get_signature_parameters(import_object(path))}
        read = settings_of(path)
        assert read is not None
        assert {*read} == {*wanted}, path
        for key, setting in read.items():
            assert setting.required == (wanted[key].default is inspect.Parameter.empty), (path, key)
            if setting.types and not any(isinstance(each, Section) or item(each) for each in setting.types):
                assert union(setting.types) == wanted[key].annotation, (path, key)


def test_a_class_of_the_user_is_read_too_and_what_cannot_be_read_is_left_to_the_parser(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    Path("mine.py").write_text(
        "from elsewhere import Odd, made\n"
        "class Other(Odd): ...\n"
        "class Kept:\n    def __init__(self, **more): self.more = more\n"
        "class Base:\n    def __init__(self, depth: int): ...\n"
        "class Mine(Base):\n    def __init__(self, a: made, b: 'int | None' = 3, **more): super().__init__(**more)\n"
    )
    assert settings_of("mine.Other") is settings_of("mine.Kept") is settings_of("no_such_module.X") is None
    found = settings_of("mine.Mine")
    assert found is not None
    assert {name: (setting.types, setting.required) for name, setting in found.items()} == {
        "depth": ((int,), True), "a": ((), True), "b": ((), False),
    }  # fmt: skip


def test_types_in_words() -> None:
    kind = PositiveInt | list[int] | None
    assert describe(kind) == "a whole number >0 or a list of whole numbers or null"
    assert (describe(Literal["a", "b"]), describe(dict[str, str])) == ("one of a, b", "a mapping")
    assert [typed("k", value, kind) for value in (3, "3", [0, 1], "[0, 1]", None)] == [3, 3, [0, 1], [0, 1], None]
    for value in ("x", 0, 1.5):
        with pytest.raises(UserError, match=r"^k: must be a whole number >0 or a list of whole numbers or null, got "):
            typed("k", value, kind)


# -- help ------------------------------------------------------------------------------------------------------------


def test_help_of_fit_is_a_page() -> None:
    page = pages.page("fit", ["--help"])
    assert page
    assert len(page.splitlines()) <= 60
    shipped = [path.name for path in shipped_configs().glob("*.yaml")]
    for words in (
        *shipped,
        "--data.source",
        "--trainer.max_steps",
        "--print_config",
        "--model.help lightgpt2.methods.",
    ):
        assert words in page
    assert len(page.partition("The usual settings")[2].partition("Examples")[0].splitlines()) == 18
    assert not [line for line in page.splitlines() if len(line) > 120]


def test_help_of_a_class_describes_its_settings() -> None:
    page = pages.page("fit", ["--model.help", "lightgpt2.methods.Distill"]) or ""
    for words in (
        "--model.layers (a whole number >0 or a number >0 and <1 or a list",
        "Which of the teacher's layers", "--model.loss.temperature",
        "Softmax temperature", "--model.teacher (text, required)",
    ):  # fmt: skip
        assert words in page
    assert "--trainer.max_steps (a whole number, default: -1)" in (pages.page("fit", ["--trainer.help"]) or "")
    assert "lightgpt2.callbacks.Export" in (pages.page("fit", ["--trainer.callbacks.help"]) or "")
    assert pages.page("fit", ["--model.help=mine.Unknown"]) is None, "left to the parser"
    assert pages.page("fit", ["--config", "x.yaml"]) is None


@pytest.mark.parametrize("args", [["--data"], ["--data", "--run", "x"], ["--data="]])
def test_data_without_a_value_lists_what_there_is(args: list[str]) -> None:
    page = pages.page("fit", args) or ""
    assert len(page.splitlines()) < 14
    for words in ("pydoc", "requirements", "wikitext", ".jsonl", "name:config"):
        assert words in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "code", "seconds"),
    [
        (["--help"], 0, 1), (["generate", "--help"], 0, 1), (["fit", "--help"], 0, 3), (["report", "gone"], 2, 1),
        (["fit", "--config", "distill.yaml", "--data.sorce=x"], 2, 2), (["fit", "--config", "gone.yaml"], 2, 2),
        (["fit", "--config", "distill.yaml", "--data.source=./gone"], 2, 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_answers_come_at_once(args: list[str], code: int, seconds: float) -> None:
    """In time of the processor, of which a busy machine takes no more."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def once() -> float:
        before = spent()
        done = subprocess.run(
            [sys.executable, "-m", "lightgpt2", *args], env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=False
        )
        assert done.returncode == code, done.stderr
        return spent() - before

    assert once() < seconds or once() < seconds  # the first may compile what it imports
