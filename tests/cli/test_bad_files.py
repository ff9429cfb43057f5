"""A bad corpus or model: one message that names the file and the fix, and nothing written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.cli import logged
from tests.support.mistakes import Bench, Evil
from tests.support.models import write_model

TEXT = "\n\n".join(f"document {i} says that the function f{i} returns {i * 7}." for i in range(60))

# -- corpora ---------------------------------------------------------------------------------------------------------------

CORPORA: dict[str, tuple[str, bytes | None, list[str]]] = {
    "missing": ("./gone.txt", None, ["data.source: ./gone.txt does not exist", "give a file, a folder or a hub id"]),
    "empty": ("a.txt", b"", ["data.source: a.txt holds no text", "give a corpus"]),
    "blank": ("a.txt", b"\n \n\n\t\n", ["data.source: a.txt holds no text", "give a corpus"]),
    "empty csv": ("a.csv", b"", ["data.source: a.csv holds no text", "give a corpus"]),
    "empty jsonl": ("a.jsonl", b"", ["data.source: a.jsonl holds no text", "give a corpus"]),
    "one document": ("a.txt", b"one", ["data.valid_fraction: the 1 documents of a.txt leave none", "data.separator"]),
    "binary": ("a.txt", TEXT.encode() + b"\0\1\2", ["data.source: a.txt is binary, not text", "convert it"]),
    "binary, no UTF-8": ("a.txt", bytes(range(256)) * 9, ["data.source: a.txt is binary, not text", "convert it"]),
    "invalid UTF-8": (
        "a.txt",
        TEXT.encode() + b"\ncaf\xe9 au lait\n",
        ["data.source: a.txt is not valid UTF-8 (", "in line 120)", "iconv -t utf-8"],
    ),
    "no column": (
        "a.csv",
        b"title,body\nx,y\n",
        ["data.text_field: a.csv has no field 'text'", "name one of title, body"],
    ),
    "no field": ("a.jsonl", b'{"txt": "x"}\n', ["data.text_field: a.jsonl has no field 'text'", "name one of txt"]),
    "no text": ("a.jsonl", b'{"text": 1}\n', ["data.text_field: 'text' of a.jsonl holds int, not text"]),
    "broken jsonl": (
        "a.jsonl",
        b'{"text": "abc"}\n{"text": "de\n{"text": "x"}\n',
        ["data.source: a.jsonl is not a readable jsonl file (JSON parse error", "correct it"],
    ),
    "broken parquet": ("a.parquet", b"PAR1", ["data.source: a.parquet is not a readable parquet file (", "correct it"]),
    "unknown kind": ("a.doc", b"x", ["data.source: a.doc is not one of .txt, .jsonl", "convert it or rename it"]),
}


@pytest.mark.parametrize("name", CORPORA)
def test_bad_corpus(bench: Bench, name: str) -> None:
    source, content, words = CORPORA[name]
    if content is not None:
        Path(source).write_bytes(content)
    bench.configure({"data.source": f"./{source}" if content is not None and source == "a.doc" else source})
    (message,) = bench.refuse("fit")
    message = message.replace("./a.doc", "a.doc")
    assert message.startswith(words[0])
    assert all(word in message for word in words), message


def test_folder_without_text(bench: Bench) -> None:
    Path("photos").mkdir()
    Path("photos/a.png").write_bytes(b"x")
    bench.configure({"data.source": "photos"})
    (message,) = bench.refuse("fit")
    assert message.startswith("data.source: photos holds no .txt, .jsonl")


@pytest.mark.parametrize("mode", ["packed", "padded"])
def test_corpus_smaller_than_a_step(bench: Bench, mode: str) -> None:
    Path("a.txt").write_text(TEXT)
    bench.configure({"data.source": "a.txt", "data.batch_size": 1000, "data.mode": mode})
    (message,) = bench.refuse("fit")
    assert message.startswith("data.sequence_length: a.txt has ")
    assert "training tokens, which is " in message
    assert " windows of 32, and one optimizer step takes 1000" in message
    assert "give more text, shorter windows or a smaller data.batch_size" in message


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["packed", "padded"])
def test_documents_shorter_than_a_window_train(bench: Bench, mode: str) -> None:
    Path("a.txt").write_text("\n\n".join(f"f{i}" for i in range(400)))  # shorter than the prompts of the samples, too
    bench.configure({"data.source": "a.txt", "data.mode": mode, "data.batch_size": 2})
    bench.succeed("fit")
    ledger = json.loads(Path("checkpoints/r/model/ledger.json").read_text())
    assert sum(split["documents"] for split in ledger[-1]["data"]["splits"].values()) == 400
    assert len(logged(Path(), "r")["train/loss"]) == 3


# -- models ----------------------------------------------------------------------------------------------------------------


def shorten(path: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / path, size)


def write(path: str, content: str) -> Callable[[Path], None]:
    return lambda folder: void((folder / path).write_text(content))


def remove(*patterns: str) -> Callable[[Path], None]:
    return lambda folder: [path.unlink() for pattern in patterns for path in folder.glob(pattern)] and None


def void(_: Any) -> None:
    pass


def pickle_weights(folder: Path) -> None:
    remove("*.safetensors")(folder)
    torch.save({"x": Evil()}, folder / "pytorch_model.bin")


MODELS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "missing": (shutil.rmtree, ["model.teacher: ./teacher does not exist", "a model folder"]),
    "no config": (
        remove("config.json"),
        ["model.teacher: ./teacher has no config.json", "give a Hugging Face model folder"],
    ),
    "no weights": (
        remove("*.safetensors"),
        ["model.teacher: ./teacher has no weights", "give a complete model folder"],
    ),
    "no tokenizer": (
        remove("token*"),
        ["model.teacher: ./teacher has no tokenizer (tokenizer.json)", "data.tokenizer"],
    ),
    "half the weights": (shorten("model.safetensors", 9000), ["model.teacher: ./teacher is damaged (", "again"]),
    "empty weights": (shorten("model.safetensors", 0), ["model.teacher: ./teacher is damaged (", "again"]),
    "broken config": (write("config.json", "{"), ["model.teacher: ./teacher could not be loaded (", "valid JSON"]),
    "empty config": (write("config.json", "{}"), ["model.teacher: ./teacher could not be loaded (", "model_type"]),
    "list as config": (
        write("config.json", "[]"),
        ["model.teacher: ./teacher could not be loaded (", "complete model"],
    ),
    "sizes of too few layers": (
        write("config.json", '{"model_type": "gpt2", "n_layer": 2, "lightgpt2": {"heads": [1]}}'),
        ["model.teacher: ./teacher could not be loaded (list index out of range", "complete model"],
    ),
    "unsupported": (
        write("config.json", '{"model_type": "bert"}'),
        ["model.teacher: models of type 'bert' are not supported", "gpt2 or llama"],
    ),
    "pickled command": (pickle_weights, ["model.teacher: ./teacher has its weights in a pickle", "*.safetensors"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_bad_model_folder(bench: Bench, name: str) -> None:
    spoil, words = MODELS[name]
    spoil(Path("teacher"))
    bench.configure({"model.teacher": "./teacher"})
    (message,) = bench.refuse("fit")
    assert message.startswith(words[0])
    assert all(word in message for word in words), message
    assert not Path("executed").exists()


def test_damaged_ledger_is_found_before_training(bench: Bench) -> None:
    Path("teacher/ledger.json").write_text("[{")
    (message,) = bench.refuse("check")
    assert message.startswith("teacher/ledger.json: damaged")


def test_missing_weight(bench: Bench) -> None:
    config = json.loads(Path("teacher/config.json").read_text())
    Path("teacher/config.json").write_text(json.dumps({**config, "n_layer": 5}))
    (message,) = bench.refuse("fit")
    assert message.startswith("model.teacher: teacher lacks 12 of its weights, first transformer.h.4.")
    assert "again" in message


def test_students_of_another_vocabulary(bench: Bench) -> None:
    write_model(Path("student"), vocab_size=400)
    bench.configure({"model.student": "student", "model.layers": None})
    (message,) = bench.refuse("fit")
    assert message.startswith("model.student: its vocabulary has 400 tokens and the teacher's 300")
    assert "choose models that share a tokenizer" in message


@pytest.fixture
def custom(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    """A teacher that brings code of its own, which leaves the file `executed`."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    code = (
        "from pathlib import Path\nfrom transformers import GPT2Config, GPT2LMHeadModel\nPath('executed').touch()\n"
        "class C(GPT2Config):\n    model_type = 'custom'\nclass M(GPT2LMHeadModel):\n    config_class = C\n"
    )
    Path("teacher/code.py").write_text(code)
    return bench


def declare(model_type: str) -> None:
    config = json.loads(Path("teacher/config.json").read_text())
    auto_map = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    Path("teacher/config.json").write_text(json.dumps({**config, "model_type": model_type, "auto_map": auto_map}))


def test_code_of_a_model_does_not_run(custom: Bench) -> None:
    declare("custom")
    (message,) = custom.refuse("fit")
    assert message.startswith("model.teacher: teacher brings code of its own")
    assert "set model.trust_remote_code to true" in message
    assert not Path("executed").exists()


def test_code_of_a_model_is_not_needed_for_a_known_type(custom: Bench) -> None:
    declare("gpt2")
    custom.succeed("check")
    assert not Path("executed").exists()


def test_code_of_a_model_runs_when_trusted(custom: Bench) -> None:
    declare("custom")
    custom.refuse("check", "--model.trust_remote_code=true")  # its type is none that is supported, but it has been read
    assert Path("executed").exists()


def assert_unreachable(message: str, key: str, fix: str) -> None:
    assert message.startswith(f"{key}: 'nobody/nothing' could not be loaded from the hub or its local cache (")
    assert "check the name and the network" in message
    assert message.endswith(fix)


@pytest.mark.parametrize(("key", "fix"), [("model.teacher", "path/to/folder"), ("data.source", "path/to/file.txt")])
def test_unreachable_hub(bench: Bench, monkeypatch: pytest.MonkeyPatch, key: str, fix: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    bench.configure({key: "nobody/nothing"})
    (message,) = bench.refuse("fit")
    assert_unreachable(message, key, f"--{key} {fix}")
