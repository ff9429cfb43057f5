"""Classifiers of all families in plain ONNX Runtime, by the names that every client knows, against PyTorch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from lightgpt2.conversions.convert import Converter
from lightgpt2.conversions.export import conversion_of
from lightgpt2.conversions.onnx.conversion import writer_of
from lightgpt2.conversions.onnx.writer import Forms
from lightgpt2.conversions.target import Format, Target
from lightgpt2.data.validation import validation_data
from lightgpt2.errors import UserError
from lightgpt2.models.families import family_of, head
from lightgpt2.models.integers import Integers
from lightgpt2.models.loading import load_model
from lightgpt2.models.standalone import stored_weights
from lightgpt2.runtime.folder import open_export
from lightgpt2.tasks import Classification
from tests.support.models import ENCODERS, LONG_HEADS, SHAPES, make_classifier, save_integers, write_tokenizer
from tests.support.onnx_client import plain_session

FAMILIES = [*ENCODERS, *SHAPES]
BOUNDS = {"fp32": 1e-5, "int8": 0.5, "int4": 3.0}  # of the largest error, as a share of how much logits differ
Array = NDArray[Any]


def restless(family: str, uneven: bool = False) -> PreTrainedModel:
    """A classifier whose norms and biases are not what they start as."""
    model = make_classifier(family, uneven=uneven, **LONG_HEADS.get(family, {}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def texts(model: PreTrainedModel, lengths: list[int], left: bool = False) -> dict[str, Tensor]:
    """Tokens with padding, on the right unless `left`."""
    longest, generator = max(lengths), torch.Generator().manual_seed(1)
    places = torch.arange(longest).flip(0) if left else torch.arange(longest)
    mask = (places[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 300, (len(lengths), longest), generator=generator)
    found = {"input_ids": ids * mask, "attention_mask": mask}  # 0 is the padding token
    if "token_type_ids" in family_of(model).model_inputs:
        found["token_type_ids"] = (torch.arange(longest) >= 4).long().repeat(len(lengths), 1)
    return found


def written(model: PreTrainedModel, folder: Path, form: str) -> Path:
    """The graph of a model in a format."""
    folder.mkdir(exist_ok=True)
    writer = writer_of(model.config)
    forms: dict[str, Forms] = {
        "fp32": Forms(),
        "int8": Forms(writer.int8, "int8"),
        "int4": Forms("int4", "int8", group=16),
    }
    writer.into(folder, model, forms[form])
    return folder


def run(folder: Path, batch: Mapping[str, Tensor]) -> Array:
    session = plain_session(folder / "model.onnx")
    assert [each.name for each in session.get_inputs()] == [*batch]
    (output,) = session.get_outputs()
    assert output.name == "logits"
    (found,) = session.run(None, {name: value.numpy() for name, value in batch.items()})
    assert found.shape == (len(batch["input_ids"]), 3)
    return np.asarray(found)


@torch.no_grad()
def wanted(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Array:
    return head(model).logits(family_of(model).pooled_states(model, batch)).numpy()


@pytest.mark.parametrize("form", BOUNDS)
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_pytorch_and_of_a_text_alone(tmp_path: Path, family: str, uneven: bool, form: str) -> None:
    """Layers without heads, without neurons and without either included; pads on either side of what a decoder reads."""
    model = restless(family, uneven)
    written(model, tmp_path, form)
    for lengths, left in [([1], False), ([30], False), ([7, 19, 2], False), ([5, 12], family not in ENCODERS)]:
        batch = texts(model, lengths, left)
        expected = wanted(model, batch)
        assert np.abs(run(tmp_path, batch) - expected).max() < BOUNDS[form] * max(expected.std(), 0.1)
    lengths = [7, 19, 30, 2]
    batch = texts(model, lengths)
    together = run(tmp_path, batch)
    for row, length in enumerate(lengths):
        alone = run(tmp_path, {name: value[row : row + 1, :length] for name, value in batch.items()})
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("family", [*ENCODERS, "gpt2", "llama"])
def test_graphs_pass_the_standard_s_checker(tmp_path: Path, family: str, form: str) -> None:
    onnx.checker.check_model(str(written(make_classifier(family), tmp_path, form) / "model.onnx"))


def test_one_scale_for_a_batch_would_make_texts_depend_on_each_other(tmp_path: Path) -> None:
    """What the test above would find."""
    model = restless("bert")
    writer_of(model.config).into(tmp_path, model, Forms("int8", "int8"))
    batch = texts(model, [7, 19, 30, 2])
    alone = {name: value[:1, :7] for name, value in batch.items()}
    assert np.abs(run(tmp_path, batch)[0] - run(tmp_path, alone)[0]).max() > 1e-4


def save(model: PreTrainedModel, folder: Path, form: Integers | None = None) -> Path:
    """A model folder whose tokenizer has all tokens of the model, with integers in the place of weights if asked."""
    tokenizer = write_tokenizer(folder)
    tokenizer.pad_token = tokenizer.eos_token
    model.config.id2label = {0: "down", 1: "up", 2: "still"}
    model.config.label2id = {name: number for number, name in model.config.id2label.items()}
    if form is None:
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    else:
        weights = {name: value.detach() for name, value in model.named_parameters()}
        save_integers(model, form, tokenizer, folder, weights)
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled texts."""
    folder = tmp_path_factory.mktemp("data")
    names = ["down", "up", "still"]
    rows = [{"text": f"def {names[i % 3]}(x{i}): return x{i * 7}", "label": names[i % 3]} for i in range(240)]
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "all.jsonl"


def export(source: Path, labelled: Path, form: Format, output: Path, **options: Any) -> dict[str, Any]:
    data, task = validation_data(str(source), str(labelled)), Classification()
    task.bind(data)
    return Converter(data, task, "Export").convert(conversion_of(Target(form, **options)), str(source), output).about


@pytest.mark.parametrize("form", ["onnx", "onnx-int8", "onnx-int4"])
@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
def test_a_classifier_becomes_a_folder_that_stands_alone(
    tmp_path: Path, labelled: Path, family: str, form: Format
) -> None:
    source = save(restless(family), tmp_path / "m")
    about = export(source, labelled, form, tmp_path / "out")
    assert open_export(tmp_path / "out") == json.loads(json.dumps(about))
    assert about["quality"]["after"]["primary"] == "accuracy"
    assert about["agreement"]["texts"] == about["quality"]["after"]["examples"] > 10
    assert (about["agreement"]["same"] == 1.0) or form != "onnx"
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert [*config["id2label"].values()] == ["down", "up", "still"]
    metadata = plain_session(tmp_path / "out/model.onnx").get_modelmeta().custom_metadata_map
    assert metadata["context"] == str(family_of(load_model(str(source), "m")).positions(restless(family).config))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama"])
def test_what_was_trained_is_what_ships(tmp_path: Path, labelled: Path, family: str, bits: Any) -> None:
    """Integers in the graph are those of the model's file; with inputs rounded in training, logits are PyTorch's."""
    form = Integers(bits=bits, group=16 if bits == 4 else None, activations=bits == 8, embeddings=True)
    source = save(restless(family), tmp_path / "m", form)
    about = export(source, labelled, f"onnx-int{bits}", tmp_path / "out")  # type: ignore[arg-type]
    assert about["scales"] == "trained"
    tensors, table = stored_weights.read_stored(source / "model.safetensors")
    graph = onnx.load(tmp_path / "out/model.onnx")
    found = {each.name: onnx.numpy_helper.to_array(each) for each in graph.graph.initializer}
    name = next(
        name
        for name in table
        if name.endswith(("lin2.weight", "output.dense.weight", "mlp.c_proj.weight", "down_proj.weight"))
    )
    about_it, trained = table[name], stored_weights.whole(tensors[name], table[name]["bits"], table[name]["group"])
    if bits == 8:
        np.testing.assert_array_equal(found[name], trained.flatten(1).T.numpy())
    else:
        packed = torch.from_numpy(found[name])
        whole = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1).to(torch.int8) - 8
        assert about_it["bits"] == 4
        np.testing.assert_array_equal(whole.numpy(), trained.flatten(1).numpy())
    model = load_model(str(source), "m").eval()
    batch = texts(model, [7, 19, 2])
    expected = wanted(model, batch)
    assert np.abs(run(tmp_path / "out", batch) - expected).max() < (1e-2 if bits == 8 else 0.1) * expected.std()


def test_formats_and_options_that_a_classifier_does_not_have(tmp_path: Path, labelled: Path) -> None:
    source = save(restless("gpt2"), tmp_path / "m")
    data = validation_data(str(source), str(labelled))
    config = load_model(str(source), "m").config

    def problems(target: Target) -> list[str]:
        return [*map(str, conversion_of(target).problems(config, data))]

    assert problems(Target("gguf")) == ["classification heads are not written; export to onnx"]
    assert problems(Target("onnx-int4", prefill="int8")) == [
        "prefill: only models that generate read prompts; remove it"
    ]
    assert not problems(Target("onnx-int4"))


def _scaled(model: Any) -> None:
    head(model).weight.mul_(1.1)


def _swapped(model: Any) -> None:
    weight = head(model).weight
    weight.copy_(weight[[1, 2, 0]])


def _constant(model: Any) -> None:
    head(model).weight.zero_()


def _broken(model: Any) -> None:
    head(model).weight.fill_(float("nan"))


@pytest.mark.parametrize(
    ("form", "spoil"),
    [
        ("onnx", _scaled),
        ("onnx", _broken),
        ("onnx", _constant),
        ("onnx-int8", _swapped),
        ("onnx-int8", _broken),
        ("onnx-int4", _broken),
    ],
)
def test_an_export_that_says_something_else_is_refused_and_not_written(
    tmp_path: Path, labelled: Path, form: Format, spoil: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(restless("bert"), tmp_path / "m")
    writer = writer_of(load_model(str(source), "m").config)
    into = writer.into

    def spoilt(folder: Path, model: Any, *others: Any) -> Any:
        with torch.no_grad():
            spoil(model)
        return into(folder, model, *others)

    monkeypatch.setattr(writer, "into", spoilt)
    with pytest.raises(UserError, match="nothing was written"):
        export(source, labelled, form, tmp_path / "out")
    assert not (tmp_path / "out").exists()
