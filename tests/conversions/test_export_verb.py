"""`lightgpt2 export`, through the real command."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lightgpt2
from lightgpt2.cli.verbs import run
from lightgpt2.conversions.packing import pack_folder
from lightgpt2.conversions.target import Target, default_output
from lightgpt2.models.integers import Integers
from lightgpt2.models.loading import load_model
from lightgpt2.models.saving import whole_weights
from tests.support.cli import ENVIRONMENT, refused, succeed
from tests.support.models import (
    make_restless_model,
    save_integers,
    write_corpus,
    write_model,
    write_tokenizer,
    write_uneven_model,
)
from tests.support.onnx_client import Client, torch_logits

PROMPT = "The assert statement"
ARTEFACTS = ["gpt2", "llama", "uneven gpt2", "packed", "int8", "int4", "int8 of all"]
FORMATS = ["onnx", "onnx-int8", "onnx-int4", "gguf"]


LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with artefacts of all kinds, and text."""
    folder = tmp_path_factory.mktemp("export")
    write_corpus(folder / "corpus")
    write_corpus(folder / "three", 3, 200)
    for family in ("gpt2", "llama"):
        tokenizer = write_tokenizer(folder / family)
        make_restless_model(family).save_pretrained(folder / family)
    write_uneven_model(folder / "uneven gpt2")
    pack_folder(folder / "gpt2", folder / "packed")
    qat = {"int8": Integers(8), "int4": Integers(4, embeddings=True), "int8 of all": Integers(8, None, True, True),
           "int4 in fives": Integers(4, 5), "int8 embeddings": Integers(8, embeddings=True)}  # fmt: skip
    for name, form in qat.items():
        model = make_restless_model("gpt2")
        save_integers(model, form, tokenizer, folder / name, whole_weights(model))
    write_model(folder / "short heads", "llama", head_dim=4)
    nf4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    bare(folder, "nf4", quantization_config=nf4)
    bare(folder, "long rope", "llama", rope_parameters=LONG)
    bare(folder, "mish", activation_function="mish")
    bare(folder, "few tokens", vocab_size=200)
    bare(folder, "bloom", model_type="bloom")
    bare(folder, "gone text")
    data = {"class_path": "lightgpt2.data.LanguageModelingData", "init_args": {"source": "./gone"}}
    stage = {"config": {"data": data}}
    (folder / "gone text/ledger.json").write_text(json.dumps([stage]))
    (folder / "adapters").mkdir()
    (folder / "adapters/adapter_config.json").write_text("{}")
    for name in ("exported", "there"):
        (folder / name).mkdir()
    (folder / "exported/export.json").write_text("{}")
    return folder


def bare(folder: Path, name: str, family: str = "gpt2", **changes: Any) -> None:
    """A copy of a model whose configuration says something else."""
    shutil.copytree(folder / family, folder / name)
    file = folder / name / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.slow
@pytest.mark.parametrize("name", ARTEFACTS)
def test_each_format_of_each_artefact(
    folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    wanted = lightgpt2.load(name, threads=1).generate(PROMPT, max_new_tokens=8)
    trained = {"int8": ["onnx-int8", "gguf"], "int8 of all": ["onnx-int8"], "int4": ["onnx-int4"]}
    trained["uneven gpt2"] = FORMATS[:3]
    for form in trained.get(name, FORMATS):
        output = tmp_path / form
        capsys.readouterr()
        run(["export", name, "--format", form, "--output", str(output), "--data", "corpus"])
        said, about = capsys.readouterr().out, json.loads((output / "export.json").read_text())
        assert said.startswith(f"{output}: {sum(about['bytes'].values()) / 1e6:.2f} MB; perplexity ")
        assert said.count("\n") == 1
        assert (about["format"], about["validation"]) == (form, "corpus")
        entry = json.loads((output / "ledger.json").read_text())[-1]
        assert entry["files"].keys() == {path.name for path in output.iterdir()} - {"ledger.json", "scores.npz"}
        assert {"config.json", "generation_config.json", "tokenizer.json", "export.json"} < entry["files"].keys()
        assert (entry["method"], entry["parent"]["source"]) == ("Export", name)
        assert entry["quality"] == {which: about["quality"][which] for which in ("before", "after")}
        text = lightgpt2.load(output, threads=1).generate(PROMPT, max_new_tokens=8)
        assert (text == wanted) if form == "onnx" else len(text) > 1
        if form == "gguf":
            assert lightgpt2.load(output / "model.gguf", threads=1).generate(PROMPT, max_new_tokens=8) == text
            continue
        ids = np.arange(0, 280, 7)[None]
        found, _ = Client(output).run(ids, np.ones_like(ids))
        exact = torch_logits(load_model(str(folder / name), "m").eval(), ids)
        bound = {"onnx": 1e-4, "onnx-int8": 0.1, "onnx-int4": 0.1 if name == "int4" else 0.5}[form]
        assert np.linalg.norm(found - exact) / np.linalg.norm(exact) < bound
        assert about["scales"] == ("trained" if name.startswith("int") else "rounded")


@pytest.mark.slow
def test_the_command_writes_beside_the_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "gpt2", tmp_path / "runs/model")
    options = ["--format", "onnx-int4", "--embeddings", "int4", "--prefill", "int8"]
    said = succeed(tmp_path, "export", "runs/model", *options)
    assert said.splitlines()[-1].startswith("runs/model-onnx-int4: ")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["model", "model-onnx-int4"]
    output = tmp_path / "runs/model-onnx-int4"
    about = json.loads((output / "export.json").read_text())
    assert (about["embeddings"], about["validation"]) == ("int4", "pydoc")
    assert about["prefill"] == {"layers": "int8", "other_layers": []}
    text = succeed(tmp_path, "generate", str(output), "--prompt", PROMPT, "--max-new-tokens", "8", "--threads", "1")
    assert text == lightgpt2.load(output, threads=1).generate(PROMPT, max_new_tokens=8) + "\n"


def test_where_an_export_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "gpt2")
    assert default_output("../gpt2", Target("onnx")) == Path("../gpt2-onnx")
    assert default_output("../gpt2/", Target("gguf")) == Path("../gpt2-gguf")
    assert default_output(".", Target("onnx")) == folder / "gpt2-onnx", "and not into the model itself"
    assert default_output("hub/name", Target("onnx-int8")) == Path("name-onnx-int8")


@pytest.mark.slow
def test_little_text_is_enough(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer training windows than calibration wants, and documents shorter than a prompt."""
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": f"a{i} b"}) for i in range(30)))
    text = str(tmp_path / "text.jsonl")
    monkeypatch.chdir(folder)
    run(["export", "gpt2", "--format", "onnx-int8", "--output", str(tmp_path / "out"), "--data", text])
    assert json.loads((tmp_path / "out/export.json").read_text())["agreement"]["tokens"] > 60


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "there already": (["gpt2", "--output", "there"], ["--output: there exists already; remove it, or give another folder"]),
    "a file in the way": (["gpt2", "--output", "corpus/000.txt/x"], ["--output: corpus/000.txt/x cannot be written"]),
    "prefill": (["gpt2", "--format", "onnx-int4", "--prefill", "int4"], ["--prefill: must be int8"]),
    "format": (["gpt2", "--format", "onnx-int2"], ["--format: "]),
    "embeddings": (["gpt2", "--embeddings", "int2"], ["--embeddings: must be one of fp32, int8, int4"]),
    "documents": (["gpt2", "--documents", "0"], ["--documents: "]),
    "option": (["gpt2", "--quiet"], ["unrecognized arguments: --quiet"]),
    "missing": (["./gone"], ["MODEL: ./gone does not exist"]),
    "exported": (["exported"], ["MODEL: exported is an exported folder already; give the model that it was made from"]),
    "adapters": (["adapters"], ["MODEL: adapters is a folder of adapters; give the model that they are merged into"]),
    "family": (["bloom"], ["MODEL: models of type 'bloom' are not supported; use a model of type"]),
    "nf4": (["nf4"], ["--format onnx: the model is nf4 by another library, whose scales onnx does not have; export the model"]),
    "nf4 to gguf": (["nf4", "--format", "gguf"], ["--format gguf: "]),
    "int8 to fp32": (["int8"], ["--format onnx: the weights are int8 with scales that were trained; give onnx-int8"]),
    "trained embeddings": (["int8 embeddings", "--format", "onnx-int8", "--embeddings", "int4"],
                           ["--embeddings: the model's are int8 with scales that were trained; remove it"]),
    "groups": (["int4 in fives", "--format", "onnx-int4"], ["--format onnx-int4: groups of 5 inputs share a scale"]),
    "rope": (["long rope"], ["--format onnx: rotary positions of type longrope change with the length of the text"]),
    "activation": (["mish"], ["--format onnx: the activation mish is not written; known are gelu_new,"]),
    "heads": (["short heads"], ["--format onnx: heads have 4 channels, and ONNX Runtime attends with a multiple of"]),
    "vocabulary": (["few tokens"], ["--format onnx: the tokenizer has 300 tokens and the model 200"]),
    "text of the training": (["gone text"], ["--data: the text that gone text was trained on is of no use here (./gone does"]),
    "text": (["gpt2", "--data", "./gone"], ["--data: ./gone does not exist"]),
    "too little text": (["gpt2", "--data", "three/000.txt"], ["--data: the 1 documents of three/000.txt leave none"]),
    "and no model": (["./gone", "--output", "there", "--embeddings", "int4"], ["--output: ", "--embeddings: ", "MODEL"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args, words = REFUSED[name]
    monkeypatch.chdir(folder)
    before = listing(folder)
    found = refused(["export", *args, *([] if "--format" in args else ["--format", "onnx"])], capsys)
    for line, beginning in zip(found, words, strict=True):
        assert line.startswith(beginning), line
    assert listing(folder) == before, "nothing is left"


def listing(folder: Path) -> list[Path]:
    """All paths, but the tokenized text."""
    return sorted(path for path in folder.rglob("*") if "checkpoints" not in path.parts)


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    options = ["export", "gpt2", "--format", "onnx", "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "lightgpt2", *options]
    with subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # which background processes are made to ignore
    ) as process:  # fmt: skip
        assert process.stderr
        while not list(tmp_path.glob("*/*")) and process.poll() is None:  # a file is begun, and all is imported
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert said.endswith(f"lightgpt2: stopped; {tmp_path / 'out'} was not written\n")
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_a_full_disk_leaves_nothing(
    folder: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stands in for it."""
    monkeypatch.chdir(folder)
    command = ["export", "gpt2", "--format", form, "--data", "corpus", "--documents", "1", "--output"]
    # The tokens of the corpus are cached after this one: it is the export that meets the limit.
    run([*command, str(tmp_path / "out")])
    shutil.rmtree(tmp_path / "out")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, unlimited[1]))
    try:
        (said,) = refused([*command, str(tmp_path / "out")], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert said.startswith(str(tmp_path / "out"))
    assert "the disk is full" in said
    assert list(tmp_path.iterdir()) == []
