"""Encoder-decoders: two stacks, their own attention between them, and every method's surgery on them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from lightgpt2.errors import UserError
from lightgpt2.models.axes import Shape, named_axes
from lightgpt2.models.families import ENCODER_DECODERS, SEQ2SEQ, blocks, check_head, family_of, head, recorded_states
from lightgpt2.models.loading import load_config, load_model, new_model
from tests.support.models import make_seq2seq, write_seq2seq

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in ENCODER_DECODERS),
    ("bart", {"scale_embedding": True}),
    ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
]
SOURCES = torch.randint(3, 300, (3, 13), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(13) < torch.tensor([[13], [7], [10]])).long()
TARGETS = torch.randint(3, 300, (3, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=SOURCES, attention_mask=MASK, decoder_input_ids=TARGETS, use_cache=False).logits


def written(folder: Path, family: str, **changes: Any) -> Path:
    """A model folder; one whose head is a matrix of its own if the changes say that it is not tied."""
    write_seq2seq(folder, family, **changes)
    if changes.get("tie_word_embeddings") is False:
        model = make_seq2seq(family, **changes)
        model.lm_head.weight = torch.nn.Parameter(torch.randn(300, 32))
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_a_loaded_folder_computes_what_plain_transformers_does(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    written(tmp_path, family, **changes)
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    model = load_model(str(tmp_path), "model", auto_classes=[SEQ2SEQ]).eval()
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=1e-5)
    check_head(model, "model")
    weight, bias, scale = head(model)
    hidden = family_of(model).final_states(model, input_ids=SOURCES, attention_mask=MASK, decoder_input_ids=TARGETS)
    expected = scale * hidden @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(expected, logits(plain), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_stacks_and_axes_cover_all_parameters(family: str, changes: dict[str, Any]) -> None:
    model = make_seq2seq(family, **changes)
    known, shape = family_of(model), Shape.of(model.config)
    offset = 2 if family in ("bart", "mbart") else 0
    sizes = shape.channels() | {"vocabulary": 300, "position": 64 + offset, "single": 1, "bucket": 8}
    for named in named_axes(model):
        assert named.value.shape == tuple(sum(sizes[role] for role in axis) for axis in named.axes), named.name
    assert known.depths(model.config) == {"encoder": 3, "decoder": 4}
    assert known.attentions(model.config) == {"encoder": 3, "decoder": 4, "decoder.cross": 4}
    assert [*blocks(model)] == [f"encoder.{i}" for i in range(3)] + [f"decoder.{i}" for i in range(4)]
    inside = {id(p): name for name, block in blocks(model).items() for p in block.parameters()}
    assert all(named.block == inside.get(id(named.value)) for named in named_axes(model))
    crossed = {named.block for named in named_axes(model) if any("cross_key" in roles for roles in named.axes)}
    assert crossed == {f"decoder.{i}" for i in range(4)}
    target = Shape(16, 2, 1, 8, 20)
    assert Shape.of(target.applied(model.config)) == target
    assert known.positions(model.config) == (None if family == "t5" else 64)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_states_of_both_stacks_are_recorded(family: str) -> None:
    model, names = make_seq2seq(family), ["encoder.0", "encoder.2", "decoder.0", "decoder.3"]
    inputs = {"input_ids": SOURCES, "attention_mask": MASK, "decoder_input_ids": TARGETS}
    with torch.no_grad(), recorded_states(model, names) as states:
        output = model(**inputs, output_hidden_states=True, use_cache=False)
    assert [*states] == names
    for name, state in states.items():
        stack, index = name.split(".")
        torch.testing.assert_close(state, output[f"{stack}_hidden_states"][int(index)])


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_a_configuration_alone_makes_a_model(family: str) -> None:
    sizes = make_seq2seq(family).config.to_diff_dict()
    values = {key: sizes[key] for key in ("model_type", "d_model", "vocab_size")}
    few = {"num_layers": 1, "num_heads": 2} if family == "t5" else {"encoder_layers": 1, "decoder_layers": 1}
    model = new_model(load_config(values | few, "model.model", auto_classes=[SEQ2SEQ]))
    assert type(model).__name__.endswith("ForConditionalGeneration")
    assert [*blocks(model)] == ["encoder.0", "decoder.0"]


REFUSED: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    ({"model_type": "bart", "decoder_attention_heads": 8}, (SEQ2SEQ,), "an encoder of 16 heads and a decoder of 8 are"),
    (
        {"model_type": "mbart", "encoder_ffn_dim": 8},
        (SEQ2SEQ,),
        "an encoder of 8 neurons and a decoder of 4096 are not",
    ),
    ({"model_type": "bart", "encoder_layerdrop": 0.1}, (SEQ2SEQ,), "layers that are left out at random (layerdrop)"),
    ({"model_type": "t5"}, ("AutoModelForCausalLM",), "models of type 't5' are not supported for this task; use"),
    (
        {"model_type": "gpt2"},
        (SEQ2SEQ,),
        "models of type 'gpt2' are not supported for this task; use a model of type bart",
    ),
]


@pytest.mark.parametrize(("values", "wanted", "words"), REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(values: dict[str, Any], wanted: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(values, "model.model", auto_classes=wanted)
    (problem,) = error.value.problems
    assert str(problem).startswith(f"model.model: {words}")


def test_the_first_class_that_the_family_has_is_loaded() -> None:
    both = (SEQ2SEQ, "AutoModelForCausalLM")
    found = [
        load_config({"model_type": name}, "model.model", auto_classes=both).architectures for name in ("t5", "gpt2")
    ]
    assert found == [["T5ForConditionalGeneration"], ["GPT2LMHeadModel"]]
