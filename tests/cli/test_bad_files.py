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


def check_refused(bench: Bench, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    """`fit` refuses with one message, which the first words begin, and runs no code that a file brings."""
    bench.configure(changes)
    (message,) = bench.refuse("fit")
    assert message.startswith(words[0])
    assert all(word in message for word in words), message
    assert not Path("executed").exists()


# -- corpora ---------------------------------------------------------------------------------------------------------------

# The file, what it holds, and words of the message.
CORPORA: list[tuple[str, bytes, *tuple[str, ...]]] = [
    ("a.txt", b"", "data.source: a.txt holds no text", "give a corpus"),
    ("a.csv", b"", "data.source: a.csv holds no text", "give a corpus"),
    ("a.txt", b"one", "data.valid_fraction: the 1 documents of a.txt leave none", "data.separator"),
    ("a.txt", TEXT.encode() + b"\0\1\2", "data.source: a.txt is binary, not text", "convert it"),
    ("a.txt", TEXT.encode() + b"\ncaf\xe9\n", "data.source: a.txt is not valid UTF-8 (", "in line 120)", "iconv -t utf-8"),
    ("a.csv", b"title,body\nx,y\n", "data.text_field: a.csv has no field 'text'", "name one of title, body"),
    ("a.jsonl", b'{"txt": "x"}\n', "data.text_field: a.jsonl has no field 'text'", "name one of txt"),
    ("a.jsonl", b'{"text": 1}\n', "data.text_field: 'text' of a.jsonl holds int, not text"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "d\n', "data.source: a.jsonl is not a readable jsonl file (JSON parse", "correct"),
    ("a.parquet", b"PAR1", "data.source: a.parquet is not a readable parquet file (", "correct it"),
    ("./a.doc", b"x", "data.source: a.doc is not one of .txt, .jsonl", "convert it or rename it"),
    ("photos/a.png", b"x", "data.source: photos holds no .txt, .jsonl"),
]  # fmt: skip


@pytest.mark.parametrize("case", CORPORA, ids=[f"{name} {content[:9]!r}" for name, content, *_ in CORPORA])
def test_bad_corpus(bench: Bench, case: tuple[Any, ...]) -> None:
    source, content, *words = case
    Path(source).parent.mkdir(exist_ok=True)
    Path(source).write_bytes(content)
    check_refused(bench, {"data.source": source.removesuffix("/a.png")}, tuple(words))


@pytest.mark.parametrize("mode", ["packed", "padded"])
def test_corpus_smaller_than_a_step(bench: Bench, mode: str) -> None:
    Path("a.txt").write_text(TEXT)
    wanted = (
        "data.sequence_length: a.txt has ",
        "training tokens, which is ",
        " windows of 32, and one optimizer step takes 1000",
    )
    fix = "give more text, shorter windows or a smaller data.batch_size"
    check_refused(bench, {"data.source": "a.txt", "data.batch_size": 1000, "data.mode": mode}, (*wanted, fix))


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


def write(path: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / path).write_text(content)


def remove(pattern: str) -> Callable[[Path], object]:
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def pickle_weights(folder: Path) -> None:
    remove("*.safetensors")(folder)
    torch.save({"x": Evil()}, folder / "pytorch_model.bin")


def deepen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 5}))


UNEVEN = '{"model_type": "gpt2", "n_layer": 2, "lightgpt2": {"heads": [1]}}'
NOT_LOADED = "could not be loaded ("
MODELS: dict[str, tuple[Callable[[Path], object], *tuple[str, ...]]] = {
    "missing": (shutil.rmtree, "does not exist", "a model folder"),
    "no config": (remove("config.json"), "has no config.json", "give a Hugging Face model folder"),
    "no weights": (remove("*.safetensors"), "has no weights", "give a complete model folder"),
    "no tokenizer": (remove("token*"), "has no tokenizer (tokenizer.json)", "data.tokenizer"),
    "half the weights": (shorten("model.safetensors", 9000), "is damaged (", "again"),
    "broken config": (write("config.json", "{"), NOT_LOADED, "valid JSON"),
    "empty config": (write("config.json", "{}"), NOT_LOADED, "model_type"),
    "sizes of too few layers": (write("config.json", UNEVEN), f"{NOT_LOADED}list index out of range", "complete model"),
    "pickled command": (pickle_weights, "has its weights in a pickle", "*.safetensors"),
    "missing weights": (deepen, "lacks 12 of its weights, first transformer.h.4.", "again"),
}


@pytest.mark.parametrize("name", MODELS)
def test_bad_model_folder(bench: Bench, name: str) -> None:
    spoil, what, *words = MODELS[name]
    spoil(Path("teacher"))
    check_refused(bench, {"model.teacher": "./teacher"}, (f"model.teacher: ./teacher {what}", *words))


def test_unsupported_model(bench: Bench) -> None:
    write("config.json", '{"model_type": "bert"}')(Path("teacher"))
    check_refused(bench, {}, ("model.teacher: models of type 'bert' are not supported", "gpt2 or llama"))


def test_damaged_ledger_is_found_before_training(bench: Bench) -> None:
    Path("teacher/ledger.json").write_text("[{")
    check_refused(bench, {}, ("teacher/ledger.json: damaged",))


def test_students_of_another_vocabulary(bench: Bench) -> None:
    write_model(Path("student"), vocab_size=400)
    what = "model.student: its vocabulary has 400 tokens and the teacher's 300"
    fix = "choose models that share a tokenizer"
    check_refused(bench, {"model.student": "student", "model.layers": None}, (what, fix))


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
    for model_type in ("gpt2", "custom"):  # for a known type it is not needed
        Path("teacher/config.json").write_text(json.dumps({**config, "model_type": model_type}))
        if model_type == "gpt2":
            bench.succeed("check")
            assert not Path("executed").exists()
    check_refused(bench, {}, ("model.teacher: teacher brings code of its own", "set model.trust_remote_code to true"))
    bench.refuse("check", "--model.trust_remote_code=true")  # its type is none that is supported, but it has been read
    assert Path("executed").exists()


@pytest.mark.parametrize(
    ("key", "fix"), [("model.teacher", "the path of a local folder"), ("data.source", "--data.source path/to/file.txt")]
)
def test_unreachable_hub(bench: Bench, monkeypatch: pytest.MonkeyPatch, key: str, fix: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    what = f"{key}: 'nobody/nothing' could not be loaded from the hub or its local cache ("
    check_refused(bench, {key: "nobody/nothing"}, (what, "check the name and the network", fix))
