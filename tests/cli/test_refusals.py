"""A mistake in a configuration, a corpus or a model: one message that names the key and the fix, and nothing touched."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lightgpt2
from lightgpt2.cli.api import _as_arguments
from lightgpt2.errors import Problem, UserError
from lightgpt2.models.ledger import Ledger
from tests.support.cli import logged
from tests.support.mistakes import Bench, Evil, files
from tests.support.models import write_model

STRATEGY = "lightning.pytorch.strategies."
OTHERS = {"model.layers": None, "model.student": {"n_layer": 2}}
BENCHMARK = {"prompt_tokens": 32, "new_tokens": [4, 256], "forward_tokens": [16]}


def strategy(**changes: Any) -> dict[str, Any]:
    settings = {"tensor_parallel_size": 1, "save_distributed_checkpoint": False, **changes}
    return {"trainer.strategy": {"class_path": f"{STRATEGY}ModelParallelStrategy", "init_args": settings}}


# What a person may write, and words of the one message that it must give. The first begins the message.
SETTINGS: list[tuple[Any, ...]] = [
    ({"model.loss": {"ce": 0, "kd": 0, "hidden": 0}}, "model.loss: every weight is 0", "above 0"),
    ({"model": {"class_path": "lightgpt2.data.TaskData"}}, "model: ", "TaskData does not correspond to a subclass of Method"),
    ({"trainer.strategy": {}}, "trainer.strategy.class_path: required, but not given"),
    ({"data.separator": "("}, "data.separator: '(' is not a regular expression", "correct it"),
    ({"data.sequence_length": 1}, "data.sequence_length: 1 leaves nothing", "at least 2"),
    ({"data.stride": 32}, "data.stride: 32 skips tokens", "windows of 32", "at most 31"),
    (
        {"data.valid_fraction": 0.6, "data.test_fraction": 0.4},
        "data.valid_fraction: with data.test_fraction it leaves no training data", "less than 1",
    ),
    (
        {"data.tokenizer": "teacher", "data.vocab_size": 300},
        "data.vocab_size: cannot be given together with data.tokenizer", "remove one",
    ),
    ({"data.sequence_length": 65}, "data.sequence_length: 65 is longer than the 64 positions of model.teacher", "at most"),
    ({"model.layers": [0, 4]}, "model.layers: layers [4]", "4 layers has layers 0 to 3"),
    ({"model.layers": []}, "model.layers: layers list is empty", "layers 0 to 3"),
    ({"model.layer_map": [0, 9]}, "model.layer_map: layers [9]", "4 layers has layers 0 to 3"),
    ({"model.layer_map": [0, 1, 2]}, "model.layer_map: it lists 3 layers", "the student has 2"),
    ({"model.student": "teacher"}, "model.layers: cannot be given together with model.student", "remove one"),
    (
        {**OTHERS, "model.student": {"n_layer": 2, "vocab_size": 200}},
        "data.tokenizer: it has 300 tokens and the model of model.student has 200", "the model's own tokenizer",
    ),
    ({**OTHERS, "model.student": {"n_layr": 2}}, "model.student: a gpt2 configuration has no n_layr", "remove"),
    ({"trainer.max_steps": 0}, "trainer.max_steps: 0 trains nothing", "at least 1"),
    ({"trainer.limit_train_batches": 0}, "trainer.limit_train_batches: 0 trains nothing", "at least 1"),
    ({"trainer.max_steps": -1}, "trainer.max_steps: nothing ends the run", "trainer.max_epochs"),
    (
        {"trainer.check_val_every_n_epoch": 1, "trainer.val_check_interval": 5000},
        "trainer.val_check_interval: 5000 is more than the 98 batches of an epoch", "at most",
    ),
    ({"seed_everything": -1}, "seed_everything: must be true or false or a whole number from 0", "got -1"),
    ({"trainer.limit_val_batches": 1}, "trainer.limit_val_batches: a part of a split has no score"),
    ({"trainer.limit_train_batches": 1}, "trainer.limit_train_batches: cuts optimizer steps apart"),
    ({"trainer.fast_dev_run": True}, "trainer.fast_dev_run: not supported", "lightgpt2 check"),
    ({"trainer.enable_checkpointing": False}, "trainer.enable_checkpointing: ", "remove it"),
    ({"model.task.prompt_tokens": 64}, "model.task.prompt_tokens: 64 leaves none of the model's 64 positions", "at most 63"),
    (strategy(data_parallel_size=3), "trainer.strategy.data_parallel_size: 3 with 1 processes", "give 1"),
    (strategy(tensor_parallel_size=2), "trainer.strategy.tensor_parallel_size: 2 is not supported", "give 1"),
    (
        {"trainer.strategy": {"class_path": f"{STRATEGY}FSDPStrategy"}},
        "trainer.strategy: FSDPStrategy is not supported", "ModelParallelStrategy",
    ),
    ({"trainer.devices": 0}, "trainer: ", "devices=0"),
    ({"trainer.accelerator": "tpu"}, "trainer: ", "torch_xla"),
    (
        {"trainer.callbacks": [{"class_path": "lightgpt2.callbacks.InferenceBenchmark", "init_args": BENCHMARK}]},
        "trainer.callbacks.InferenceBenchmark.new_tokens: must be within the model's 64 positions after a prompt of 32, got",
        "256; give at most 32",
    ),
]  # fmt: skip

# -- corpora ---------------------------------------------------------------------------------------------------------------

TEXT = "\n\n".join(f"document {i} says that the function f{i} returns {i * 7}." for i in range(60))
SMALL = (
    "data.sequence_length: a.txt has ",
    "training tokens, which is ",
    " windows of 32, and one optimizer step takes 1000",
)


def corpus(name: str, content: bytes, **settings: Any) -> Callable[[], dict[str, Any]]:
    """Writes a file; the changes that make it, or its folder, the corpus."""

    def write() -> dict[str, Any]:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
        source = name.removesuffix("/a.png")
        return {"data.source": source, **{f"data.{key}": value for key, value in settings.items()}}

    return write


CORPORA: list[tuple[Any, ...]] = [
    (corpus("a.txt", b""), "data.source: a.txt holds no text", "give a corpus"),
    (corpus("a.csv", b""), "data.source: a.csv holds no text", "give a corpus"),
    (corpus("a.txt", b"one"), "data.valid_fraction: the 1 documents of a.txt leave none", "data.separator"),
    (corpus("a.txt", TEXT.encode() + b"\0\1\2"), "data.source: a.txt is binary, not text", "convert it"),
    (
        corpus("a.txt", TEXT.encode() + b"\ncaf\xe9\n"),
        "data.source: a.txt is not valid UTF-8 (", "in line 120)", "iconv -t utf-8",
    ),
    (corpus("a.csv", b"title,body\nx,y\n"), "data.text_field: a.csv has no field 'text'", "name one of title, body"),
    (corpus("a.jsonl", b'{"txt": "x"}\n'), "data.text_field: a.jsonl has no field 'text'", "name one of txt"),
    (corpus("a.jsonl", b'{"text": 1}\n'), "data.text_field: 'text' of a.jsonl holds int, not text"),
    (
        corpus("a.jsonl", b'{"text": "a"}\n{"text": "d\n'),
        "data.source: a.jsonl is not a readable jsonl file (Invalid control character at in line 2, column 12)", "correct",
    ),
    (corpus("a.parquet", b"PAR1"), "data.source: a.parquet is not a readable parquet file (", "correct it"),
    (corpus("./a.doc", b"x"), "data.source: a.doc is not one of .txt, .md, .jsonl", "convert it or rename it"),
    (corpus("photos/a.png", b"x"), "data.source: photos holds no .txt, .md, .jsonl", "not read: 1 (a.png)"),
    *((corpus("a.txt", TEXT.encode(), batch_size=1000, mode=mode), *SMALL, "give more text") for mode in ("packed", "padded")),
]  # fmt: skip

# -- models ----------------------------------------------------------------------------------------------------------------


def teacher(spoil: Callable[[Path], Any]) -> Callable[[], dict[str, Any]]:
    """Spoils the teacher's folder."""

    def change() -> dict[str, Any]:
        spoil(Path("teacher"))
        return {"model.teacher": "./teacher"}

    return change


def write(name: str, content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(content)


def remove(pattern: str) -> Callable[[Path], Any]:
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def pickle_weights(folder: Path) -> None:
    remove("*.safetensors")(folder)
    torch.save({"x": Evil()}, folder / "pytorch_model.bin")


def deepen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    write("config.json", json.dumps({**config, "n_layer": 5}))(folder)


def other_student() -> dict[str, Any]:
    write_model(Path("student"), vocab_size=400)
    return {"model.student": "student", "model.layers": None}


UNEVEN = '{"model_type": "gpt2", "n_layer": 2, "lightgpt2": {"heads": [1]}}'
TEACHER = "model.teacher: ./teacher"
NOT_LOADED = f"{TEACHER} could not be loaded ("
MODELS: list[tuple[Any, ...]] = [
    (teacher(shutil.rmtree), f"{TEACHER} does not exist", "a model folder"),
    (teacher(remove("config.json")), f"{TEACHER} has no config.json", "give a Hugging Face model folder"),
    (teacher(remove("*.safetensors")), f"{TEACHER} has no weights", "give a complete model folder"),
    (teacher(remove("token*")), f"{TEACHER} has no tokenizer (tokenizer.json)", "data.tokenizer"),
    (teacher(lambda folder: os.truncate(folder / "model.safetensors", 9000)), f"{TEACHER} is damaged (", "again"),
    (teacher(write("config.json", "{")), NOT_LOADED, "valid JSON"),
    (teacher(write("config.json", "{}")), NOT_LOADED, "model_type"),
    (teacher(write("config.json", UNEVEN)), f"{TEACHER} has sizes of 1 layers (lightgpt2.heads)", "complete model"),
    (teacher(pickle_weights), f"{TEACHER} has its weights in a pickle", "*.safetensors"),
    (teacher(deepen), f"{TEACHER} lacks 12 of its weights, first transformer.h.4.", "again"),
    (
        teacher(write("config.json", '{"model_type": "bert"}')),
        "model.teacher: models of type 'bert' are not supported", "gemma3_text, gpt2, ",
    ),
    (teacher(write("ledger.json", "[{")), "teacher/ledger.json: damaged"),
    (other_student, "data.tokenizer: it has 400 tokens and the model of model.teacher has 300", "that shares it"),
]  # fmt: skip
HUB = "'nobody/nothing' could not be loaded from the hub or its local cache ("
UNREACHABLE = [
    ({"model.teacher": "nobody/nothing"}, f"model.teacher: {HUB}", "check the name", "the path of a local folder"),
    ({"data.source": "nobody/nothing"}, f"data.source: {HUB}", "check the name", "--data.source path/to/file.txt"),
]
MISTAKES = SETTINGS + CORPORA + MODELS + UNREACHABLE


@pytest.mark.parametrize("mistake", MISTAKES, ids=[beginning for _, beginning, *_ in MISTAKES])
def test_one_mistake_gives_one_message(bench: Bench, monkeypatch: pytest.MonkeyPatch, mistake: tuple[Any, ...]) -> None:
    changes, *words = mistake
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    bench.configure(changes() if callable(changes) else changes)
    message = bench.refused("fit")
    assert message.startswith(words[0])
    assert all(word in message for word in words), message
    assert len(message) < 300, "a message for people is no dump"
    assert not Path("executed").exists(), "no code that a file brings is run"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["packed", "padded"])
def test_documents_shorter_than_a_window_train(bench: Bench, mode: str) -> None:
    Path("a.txt").write_text("\n\n".join(f"f{i}" for i in range(400)))  # shorter than the prompts of the samples, too
    bench.configure({"data.source": "a.txt", "data.mode": mode, "data.batch_size": 2})
    bench.succeed("fit")
    ledger = json.loads(Path("checkpoints/r/model/ledger.json").read_text())
    assert sum(split["documents"] for split in ledger[-1]["data"]["splits"].values()) == 400
    assert len(logged(Path(), "r")["train/loss"]) == 3


@pytest.mark.slow
def test_code_of_a_model_runs_only_when_it_is_trusted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A teacher that brings its own code, which leaves the file `executed`."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    Path("teacher/code.py").write_text(
        "from pathlib import Path\nfrom transformers import GPT2Config, GPT2LMHeadModel\nPath('executed').touch()\n"
        "class C(GPT2Config):\n    model_type = 'custom'\nclass M(GPT2LMHeadModel):\n    config_class = C\n"
    )
    config = json.loads(Path("teacher/config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    Path("teacher/config.json").write_text(json.dumps(config))
    bench.succeed("check")  # for a known type it is not needed
    Path("teacher/config.json").write_text(json.dumps({**config, "model_type": "custom"}))
    message = bench.refused("fit")
    assert message.startswith("model.teacher: teacher needs Python code in its folder")
    assert "set trust_remote_code (in a configuration model.trust_remote_code" in message
    assert not Path("executed").exists()
    bench.refuse("check", "--model.trust_remote_code=true")  # its type is none that is supported, but it has been read
    assert Path("executed").exists()


def test_check_reports_all_mistakes_of_sense_at_once(bench: Bench) -> None:
    changes = {
        "data.separator": "(", "data.stride": 99, "model.layer_map": [0, 9], "model.student": {"n_layer": 2},
        "trainer.limit_train_batches": 0, "trainer.max_steps": 0,
    }  # fmt: skip
    bench.configure(changes)
    assert {message.partition(":")[0] for message in bench.refuse("check")} == (
        {*changes, "model.layers"} - {"model.student"}
    )


def test_valid_configurations_are_not_refused(bench: Bench) -> None:
    for changes in ({}, {"seed_everything": True}):  # a seed that Lightning chooses
        bench.configure(changes)
        assert "ok" in bench.succeed("check").splitlines()
    assert files() == {}, "check writes nothing"
    Path("config.yaml").write_text(bench.succeed("fit", "--print_config"))
    Path("checkpoints/r").mkdir(parents=True)
    Path("checkpoints/r/predictions.jsonl").write_text("{}\n")  # which do not keep a run from being fitted
    assert "ok" in bench.succeed("check").splitlines()


# -- what the verb or the run's folder rules out -----------------------------------------------------------------------------


def test_generating_is_refused_where_each_process_holds_a_part_of_the_model(bench: Bench) -> None:
    bench.configure({**strategy(), "model.task.predict": "continuations"})
    assert bench.refused("predict").startswith(
        "trainer.strategy: continuations differ in length between processes; use"
    )


def test_nothing_that_is_needed_is_made_where_there_are_mistakes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightgpt2.cli.trainer.make_missing", lambda *_: pytest.fail("trained the teacher first"))
    needs = {"model.teacher": "checkpoints/t/model", "needs": {"checkpoints/t/model": "t.yaml"}}
    Path("t.yaml").write_text("run: t\n")
    bench.configure({"trainer.max_steps": 0, **needs})
    assert bench.refused("fit").startswith("trainer.max_steps: 0 trains nothing")
    bench.configure(needs)
    for verb in ("validate", "check"):
        assert bench.refused(verb) == "needs: not there yet: checkpoints/t/model (fit makes it with t.yaml)"


def test_folder_of_another_run_is_neither_touched_nor_scored_as_this(finished: Bench) -> None:
    finished.configure({"model.layers": 3})
    for verb, fix in (("fit", "--run NAME"), ("validate", "--ckpt_path checkpoints/r/model")):
        message = finished.refused(verb)
        assert message.startswith("--run r: ")
        assert "(model.layers: 2 there, 3 here)" in message
        assert fix in message
    assert "perplexity" in finished.succeed("validate", "--ckpt_path=checkpoints/r/model")


def test_unfinished_run_is_neither_started_afresh_nor_scored_as_finished(finished: Bench) -> None:
    model = Path("checkpoints/r/model")  # as a run leaves it that was finished at step 2 and killed when it was resumed
    Ledger.read(model).amended(steps=2).write(model)
    unfinished = "--run r: checkpoints/r holds an unfinished run; resume it with --ckpt_path last"
    assert finished.refused("fit").startswith(unfinished)
    assert "score the checkpoint with --ckpt_path last" in finished.refused("validate")
    shutil.rmtree("checkpoints/r/model")
    assert finished.refused("fit").startswith(unfinished)


def test_interruption_before_the_first_step_leaves_the_finished_run_alone(
    finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = files()
    monkeypatch.setattr("lightgpt2.tasks.base.Task.evaluate", interrupted)
    code, _, err = finished.run("fit")
    assert (code, err.splitlines()[-1]) == (130, "lightgpt2: interrupted between steps; what was saved is untouched")
    assert before.items() <= files().items()


def test_run_of_another_process_is_not_touched(bench: Bench) -> None:
    Path("checkpoints/r").mkdir(parents=True)
    other = os.open("checkpoints/r", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert "another process is at work in checkpoints/r" in bench.refused("fit", touches=True)
    os.close(other)


def test_failed_repetition_keeps_the_finished_run(finished: Bench) -> None:
    Path("corpus").rename("moved")
    Path("corpus").mkdir()
    Path("corpus/a.txt").write_text("")
    assert finished.refused("fit").startswith("data.source: corpus holds no text")
    assert yaml.safe_load(Path("checkpoints/r/config.yaml").read_text())["trainer"]["max_steps"] == 3


def test_from_python_messages_name_arguments(finished: Bench) -> None:
    finished.configure({"model.layers": 3})
    with pytest.raises(UserError) as refused:
        lightgpt2.fit("config.yaml", run="r")
    (problem,) = refused.value.problems
    assert problem.startswith('run="r": checkpoints/r belongs to another run (model.layers: 2 there, 3 here)')
    assert problem.endswith('give this run a name with run="NAME", or remove the folder')
    said = Problem("--ckpt_path", "no model", "run lightgpt2 fit --config a.yaml, or go on with --ckpt_path last")
    assert (
        _as_arguments(said) == 'ckpt_path: no model; run lightgpt2 fit --config a.yaml, or go on with ckpt_path="last"'
    )
    said = Problem("trainer.max_stepz", "no such key", "see lightgpt2 fit --trainer.help")
    assert _as_arguments(said).endswith("see lightgpt2 fit --trainer.help")
