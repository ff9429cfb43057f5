"""Encoders that lose layers, width, heads and neurons."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightgpt2.errors import UserError
from lightgpt2.models.axes import Shape, block_units, named_axes
from lightgpt2.models.loading import load_model
from lightgpt2.models.saving import save_model
from lightgpt2.models.surgery import extract_layers
from lightgpt2.models.trimming import choose, cut, norm_scores, remove
from lightgpt2.starts import ChosenLayers, Start, Trimmed
from lightgpt2.tasks import Classification
from tests.support.models import ENCODERS, assert_same_weights, make_classifier, shake, write_tokenizer


def logits(model: PreTrainedModel) -> Tensor:
    ids = torch.arange(5, 41).view(3, 12)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(3, dtype=torch.long)}
    with torch.no_grad():
        return Classification().predictions(model, batch).logits(slice(None), torch.float32)


@pytest.mark.parametrize("family", ENCODERS)
def test_what_does_nothing_can_be_removed(tmp_path: Path, family: str) -> None:
    """Without the heads and neurons that nobody reads, a layer with none included, the logits stay; from disk too."""
    model = make_classifier(family)
    shake(model)
    random, shape = torch.Generator().manual_seed(1), Shape.of(model.config)
    heads, neurons = (
        {name: torch.rand(n, generator=random) < 0.5 for name, n in counts.items()}
        for counts in block_units(model.config)
    )
    heads["encoder.1"][:] = neurons["encoder.2"][:] = False
    masks = {"context": {name: m.repeat_interleave(shape.head) for name, m in heads.items()}, "ffn": neurons}
    with torch.no_grad():
        for named in named_axes(model):
            if named.block is not None and named.value.ndim == 2 and (role := named.axes[1][0]) in masks:
                named.value[:, ~masks[role][named.block]] = 0
    wanted, smaller = logits(model), remove(model, heads, neurons)
    assert smaller.num_parameters() < model.num_parameters()
    torch.testing.assert_close(logits(smaller), wanted, rtol=1e-5, atol=1e-5)
    save_model(smaller, write_tokenizer(tmp_path), tmp_path / "m")
    torch.testing.assert_close(logits(load_model(str(tmp_path / "m"), "m").eval()), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ENCODERS)
def test_a_narrower_model_and_one_of_fewer_layers(family: str) -> None:
    model = make_classifier(family)
    shape, scores = Shape.of(model.config), norm_scores(model)
    assert_same_weights(cut(model, shape.applied(model.config), choose(model, shape, scores)), model)
    target = replace(shape, width=shape.width // 2, heads=shape.heads // 2, ffn=24)
    smaller = cut(model, target.applied(model.config), choose(model, target, scores))
    assert Shape.of(smaller.config) == target
    assert logits(smaller).isfinite().all()
    fewer = extract_layers(model, [0, 2])
    assert fewer.config.num_hidden_layers == 2
    assert logits(fewer).isfinite().all()


def test_layers_of_a_modernbert_compute_what_they_did_and_begin_with_its_first() -> None:
    model = make_classifier("modernbert")
    fewer = extract_layers(model, [0, 2, 3])
    with torch.no_grad():
        left_out = model.base_model.layers[1]
        for last in (left_out.attn.Wo, left_out.mlp.Wo):
            last.weight.zero_()
    torch.testing.assert_close(logits(fewer), logits(model), rtol=1e-5, atol=1e-5)
    for layers in ([1, 2], [2, 0], [0, 0]):
        with pytest.raises(ValueError, match=r"first layer of a modernbert has other parts .*; begin with layer 0"):
            extract_layers(model, layers)


@pytest.mark.parametrize("start", [lambda m: ChosenLayers(m, [1, 3]), lambda m: Trimmed(m, 2, layer_choice="centre")])
def test_a_start_without_the_first_layer_of_a_modernbert_is_refused(
    tmp_path: Path, start: Callable[[str], Start]
) -> None:
    make_classifier("modernbert").save_pretrained(tmp_path)
    made = start(str(tmp_path))
    made.task = Classification()
    with pytest.raises(
        UserError, match=r"^start\.layers: layers \[1, [23]\]: the first layer of a modernbert has other"
    ):
        made.configs(False)
