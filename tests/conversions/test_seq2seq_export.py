"""Encoder-decoders as folders that stand alone, verified before they are there, and as arms of a benchmark."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import lightgpt2
from lightgpt2.conversions.convert import Converter
from lightgpt2.conversions.export import conversion_of
from lightgpt2.conversions.onnx.encoder_decoder import TargetDecoder
from lightgpt2.conversions.target import Format, Target
from lightgpt2.data.base import Connection
from lightgpt2.data.text_to_text import TextToTextData
from lightgpt2.data.validation import validation_data
from lightgpt2.errors import UserError
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.measure.arms import Arm
from lightgpt2.measure.onnx_worker import OnnxWorker
from lightgpt2.measure.plan import plan
from lightgpt2.models.integers import Integers
from lightgpt2.models.standalone import stored_weights
from lightgpt2.models.workloads import Documents, Encoding, Generation, Workload
from lightgpt2.runtime.engines import DECODER
from lightgpt2.runtime.folder import open_export
from lightgpt2.tasks import Summarization
from lightgpt2.tasks.exported import BOUNDS
from tests.conversions.test_onnx_encoder_decoder import talkative
from tests.support.models import make_model, save_integers, write_tokenizer


def save(family: str, folder: Path, form: Integers | None = None) -> Path:
    """A model folder with a tokenizer that pads and ends, with integers in the place of weights if asked."""
    tokenizer = write_tokenizer(folder)
    end = tokenizer.eos_token_id
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    special = {"pad_token_id": end, "eos_token_id": end, "decoder_start_token_id": end, "bos_token_id": end}
    room = {"max_position_embeddings": 200} if family == "bart" else {}
    model = talkative(family, **special, **room)
    if form is None:
        model.save_pretrained(folder)
    else:
        weights = {name: value.detach() for name, value in model.named_parameters()}
        save_integers(model, form, tokenizer, folder, weights)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts with summaries."""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {"text": f"def name{i}(x): return x{i * 7}. It gives {i}.", "summary": f"It gives {i}."} for i in range(120)
    ]
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "all.jsonl"


def data_of(source: Path, pairs: Path) -> TextToTextData:
    found: TextToTextData = validation_data(str(source), str(pairs))
    return found


def export(source: Path, data: TextToTextData, form: Format, output: Path, beams: int = 1) -> dict[str, Any]:
    task = Summarization(num_beams=beams, max_new_tokens=12)
    task.bind(data)
    return Converter(data, task, "Export").convert(conversion_of(Target(form)), str(source), output).about


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bart", "t5"])
@pytest.mark.parametrize("form", ["onnx", "onnx-int8", "onnx-int4"])
def test_an_export_is_verified_and_stands_alone(tmp_path: Path, pairs: Path, family: str, form: Format) -> None:
    source = save(family, tmp_path / "m")
    about = export(source, data_of(source, pairs), form, tmp_path / "out", beams=2)
    assert open_export(tmp_path / "out")["agreement"] == about["agreement"]
    assert {*about["bytes"]} == {*TargetDecoder.parts(), "model.onnx_data"}
    agreed = about["agreement"]
    if form == "onnx":
        assert (agreed["cache"], agreed["source"]) == (1.0, 1.0)
        assert agreed["error"] < 1e-3
        assert about["quality"]["after"]["rouge1"]["value"] == about["quality"]["before"]["rouge1"]["value"]
    elif form == "onnx-int8":
        assert about["layers"] == "int8-tokens"
        assert about["embeddings"] == "int8-blocks"
        assert agreed["cache"] > 0.95
    loaded = lightgpt2.load(tmp_path / "out", threads=1)
    assert loaded.generate("def name5(x): return", max_new_tokens=5)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_what_was_trained_is_what_ships(tmp_path: Path, pairs: Path, family: str, bits: Any) -> None:
    """The graphs compute with the integers of the model's file, and in INT8 with inputs rounded as in training."""
    form = Integers(bits=bits, group=16 if bits == 4 else None, activations=bits == 8, embeddings=True)
    source = save(family, tmp_path / "m", form)
    about = export(source, data_of(source, pairs), f"onnx-int{bits}", tmp_path / "out")  # type: ignore[arg-type]
    assert about["scales"] == "trained"
    tensors, table = stored_weights.read_stored(source / "model.safetensors")
    ends = ("decoder.layers.1.fc1.weight", "block.1.layer.2.DenseReluDense.wi.weight")
    name = next(name for name in table if name.endswith(ends))
    trained = stored_weights.whole(tensors[name], bits, table[name]["group"]).flatten(1).numpy()
    stored = ir.load(tmp_path / "out" / DECODER).graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]
    if bits == 4:
        stored = np.stack([stored & 15, stored >> 4], axis=-1).reshape(len(stored), -1).astype(np.int8) - 8
    np.testing.assert_array_equal(stored if bits == 4 else stored.T, trained)
    assert about["agreement"]["source"] > (0.9 if bits == 8 else 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "onnx-int8"])
@pytest.mark.parametrize("spoilt", ["cross", "head"])
def test_an_export_that_says_something_else_is_refused(
    tmp_path: Path, pairs: Path, form: Format, spoilt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, into = save("bart", tmp_path / "m"), TargetDecoder.into

    def spoil(folder: Path, model: Any, *others: Any) -> Any:
        with torch.no_grad():
            if spoilt == "head":
                model.final_logits_bias.normal_(std=20.0)
            else:
                for block in model.get_decoder().layers:
                    block.encoder_attn.k_proj.weight.neg_()
                    block.encoder_attn.v_proj.weight.neg_()
        return into(folder, model, *others)

    monkeypatch.setattr(TargetDecoder, "into", spoil)
    with pytest.raises(UserError, match="nothing was written"):
        export(source, data_of(source, pairs), form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_decoder_of_pairs_is_verified_by_the_perplexity_of_its_answers(tmp_path: Path, pairs: Path) -> None:
    folder, model = tmp_path / "m", make_model("gpt2")
    write_tokenizer(folder)
    model.save_pretrained(folder)
    data = TextToTextData(str(pairs), max_source_length=24, max_target_length=12, eval_batch_size=5)
    data.connect(Connection(str(folder), "model", config=model.config))
    data.prepare_data()
    data.setup("validate")
    task = Summarization()
    task.bind(data)
    for form in ("onnx", "onnx-int8"):
        conversion = conversion_of(Target(form))
        assert conversion.problems(model.config, data) == []
        made = Converter(data, task, "Export").convert(conversion, str(folder), tmp_path / form)
        assert made.about["quality"]["ratio"] == pytest.approx(1, abs=BOUNDS[conversion.precision])
        found = made.scores["before"]["perplexity"]
        batch = next(iter(data.scoring_loader("valid")))
        ids, labels = batch["input_ids"], batch["labels"]
        with torch.no_grad():
            mask = batch["attention_mask"]
            logits = model.eval()(input_ids=ids, attention_mask=mask).logits
        loss = torch.nn.functional.cross_entropy(logits.mT.double(), labels, ignore_index=IGNORE, reduction="none")
        examples = batch["example"].numpy()
        np.testing.assert_allclose(found.numerators[examples], loss.sum(dim=1).numpy(), rtol=1e-5)
        np.testing.assert_array_equal(found.denominators[examples], (labels != IGNORE).sum(dim=1).numpy())


@pytest.mark.slow
def test_an_exported_folder_is_an_arm_that_reads_writes_and_searches(tmp_path: Path, pairs: Path) -> None:
    source = save("t5", tmp_path / "m")
    export(source, data_of(source, pairs), "onnx", tmp_path / "m-onnx")
    folder = str(tmp_path / "m-onnx")
    settings = {"forward_tokens": [16], "new_tokens": [4]}
    arms, planned = plan([str(source), folder], None, ["sdpa"], settings)
    assert [arm.attention for arm in arms] == ["sdpa", "graph"]
    assert {type(each) for each in planned} == {Encoding, Generation, Documents}
    workloads: list[Workload] = [
        Encoding(1, 16),
        Generation(8, 6),
        Documents(((9, 5), (12, 4)), 1),
        Documents(((9, 5),), 3),
    ]
    worker = OnnxWorker(Arm("a", folder, "onnx", "graph"), workloads, "cpu")
    assert worker.load()["weights_mb"]
    measured = worker.round()
    for each in workloads:
        assert np.isfinite(each.speed(measured[each.key]))
    about = worker.profile(tmp_path / "trace.json")
    assert {"Attention", "MatMul"} <= {operator["name"] for operator in about["operators"]}
    assert "Attention" in about["attention_kernel"]
