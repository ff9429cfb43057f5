"""What is cut out of a model: the right channels, from every tensor, and nothing else changed."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from lightgpt2.models.axes import Shape, named_axes
from lightgpt2.models.families import DECODERS, blocks, family_of, head, is_tied, recorded_states
from lightgpt2.models.loading import load_config, new_model
from lightgpt2.models.surgery import apply, replay, trim_operation, vocabulary_operation
from lightgpt2.models.trimming import Kept, Scores, activation_scores, choose, cut, first_scores, norm_scores
from tests.support.models import IDS, assert_same_weights, logits, make_model, make_restless_model


def random_scores(model: PreTrainedModel, seed: int) -> Scores:
    random = torch.Generator().manual_seed(seed)
    return {key: torch.rand(scores.shape, generator=random) for key, scores in first_scores(model).items()}


def test_published_cut_of_gpt2_has_exactly_the_published_size() -> None:
    with torch.device("meta"):
        gpt2 = new_model(load_config({"model_type": "gpt2"}, "model"))
        layers = apply(gpt2, [{"op": "extract_layers", "layers": [0, 2, 4, 7, 9, 11]}])
        target = Shape(384, 6, 1, 64, 1536)
        small = cut(layers, target.applied(layers.config), choose(layers, target, first_scores(layers)))
    assert small.num_parameters() == 30_339_456


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("seed", range(2))
def test_heads_and_neurons_that_do_nothing_are_cut_without_a_trace(family: str, seed: int) -> None:
    model = make_model(family, seed)
    old = Shape.of(model.config)
    heads = old.heads if family_of(model).heads_share_width else old.groups  # where they share it, only neurons go
    target = Shape(old.width, heads, old.groups, old.head, old.ffn // 3)
    kept = choose(model, target, random_scores(model, seed))
    silence(model, kept)
    small = cut(model, target.applied(model.config), kept)
    assert Shape.of(small.config) == target
    assert small.num_parameters() < model.num_parameters()
    torch.testing.assert_close(logits(small), logits(model), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def silence(model: PreTrainedModel, kept: Kept) -> None:
    """Set the weights that write or read what is to be cut to zero."""
    for named in named_axes(model):
        for axis, roles in enumerate(named.axes):
            if roles[0].endswith(("context", "ffn")):
                mask = torch.cat([kept[named.block, role] for role in roles])
                named.value.mul_(mask.view([-1 if a == axis else 1 for a in range(named.value.ndim)]))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_a_width_of_which_half_is_a_copy_is_cut_without_a_trace(family: str, tied: bool) -> None:
    """Norms see the same in half of the channels; what a family computes from the width, as Gemma's embedding, stays."""
    model = make_restless_model(family, tie_word_embeddings=tied)
    old = Shape.of(model.config)
    heads = old.heads // 2 if family_of(model).heads_share_width else old.heads
    target = Shape(old.width // 2, heads, old.groups, old.head, old.ffn)
    kept = choose(model, target, random_scores(model, 0))
    silence(model, kept)
    stays, copies = (mask.nonzero().flatten() for mask in (kept[None, "width"], ~kept[None, "width"]))
    inputs = 0 if family_of(model).conv1d else 1
    for named in named_axes(model):
        for axis, roles in enumerate(named.axes):
            if roles == ("width",):
                channels, in_block = named.value.movedim(axis, 0), named.block is not None
                if in_block and named.value.ndim == 2 and axis == inputs:
                    channels[copies] = 0  # a layer reads none of them
                elif not in_block and named.value.ndim == 1:  # nor does the head behind the final norm
                    channels[copies] = -1.0 if family == "gemma3_text" else 0.0
                else:
                    channels[copies] = channels[stays]
    small = cut(model, target.applied(model.config), kept)
    torch.testing.assert_close(logits(small), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", DECODERS)
def test_every_tensor_is_cut_along_the_channels_that_stay_and_its_record_repeats_it(family: str) -> None:
    model = make_model(family)
    old = Shape.of(model.config)
    target = Shape(16, old.groups, old.groups, old.head, 20)
    kept = choose(model, target, random_scores(model, 3))
    trimmed, operation = cut(model, target.applied(model.config), kept), trim_operation(target, kept, "norm")
    assert_same_weights(trimmed, apply(model, [operation]))
    assert_same_weights(trimmed, replay(model.config, [operation]))
    assert len(str(operation)) < 2000
    small, wide, block = dict(trimmed.named_parameters()), dict(model.named_parameters()), "decoder.2"
    masks = kept[None, "width"], kept[block, "ffn"], kept[block, "key"], kept[block, "value"]
    w, f, qk, vo = (mask.nonzero().flatten() for mask in masks)
    every, packed = slice(None), torch.cat([qk, 32 + qk, 64 + vo])
    by_head = torch.arange(48) + 3 * int(qk[0])
    queries = torch.arange(16) + 16 * (int(qk[0]) // 8)  # two heads share the one that stays
    llama: dict[str, tuple[Any, ...]] = {
        "embed_tokens.weight": (every, w), "layers.2.self_attn.q_proj.weight": (queries, w),
        "layers.2.self_attn.k_proj.weight": (qk, w), "layers.2.self_attn.o_proj.weight": (w, queries),
        "layers.2.mlp.gate_proj.weight": (f, w), "layers.2.mlp.down_proj.weight": (w, f), "norm.weight": (w,),
    }  # fmt: skip
    expected: dict[str, dict[str, tuple[Any, ...]]] = {
        "gemma3_text": {name: axes for name, axes in llama.items() if "layers" in name},
        "gpt2": {
            "wpe.weight": (every, w), "h.2.attn.c_attn.weight": (w, packed), "h.2.attn.c_attn.bias": (packed,),
            "h.2.attn.c_proj.weight": (vo, w), "h.2.mlp.c_fc.bias": (f,), "h.2.mlp.c_proj.weight": (f, w),
            "h.2.ln_2.bias": (w,),
        },
        "qwen3": llama | {"layers.2.self_attn.q_norm.weight": (every,), "layers.2.self_attn.k_norm.weight": (every,)},
        "phi3": {
            "layers.2.self_attn.qkv_proj.weight": (torch.cat([queries, 32 + qk, 48 + vo]), w),
            "layers.2.self_attn.o_proj.weight": (w, queries), "layers.2.mlp.down_proj.weight": (w, f),
            "layers.2.mlp.gate_up_proj.weight": (torch.cat([f, 48 + f]), w),
        },
        "opt": {
            "decoder.embed_positions.weight": (every, w), "decoder.layers.2.self_attn.q_proj.bias": (qk,),
            "decoder.layers.2.self_attn.out_proj.weight": (w, vo), "decoder.layers.2.fc1.weight": (f, w),
            "decoder.layers.2.fc2.weight": (w, f), "decoder.final_layer_norm.bias": (w,),
        },
        "gpt_neox": {
            "embed_in.weight": (every, w), "layers.2.attention.query_key_value.weight": (by_head, w),
            "layers.2.attention.query_key_value.bias": (by_head,), "layers.2.attention.dense.weight": (w, vo),
            "layers.2.mlp.dense_h_to_4h.bias": (f,), "layers.2.mlp.dense_4h_to_h.weight": (w, f),
        },
    }  # fmt: skip
    for name, (rows, *columns) in expected.get(family, llama).items():
        name = f"{model.base_model_prefix}.{name}"
        assert torch.equal(small[name], wide[name][rows][(every, *columns) if columns else every]), name


@pytest.mark.parametrize("family", DECODERS)
def test_large_weights_are_what_norm_keeps(family: str) -> None:
    model = make_model(family)
    old = Shape.of(model.config)
    loud_neurons, loud_width = torch.tensor([3, 7, 20]), torch.tensor([1, 8, 30])
    with torch.no_grad():
        for named in named_axes(model):
            for axis, roles in enumerate(named.axes):
                for role, loud in (("ffn", loud_neurons), ("width", loud_width)):
                    if {*roles} == {role}:
                        channels = torch.cat([loud + section * old.ffn for section in range(len(roles))])
                        named.value.index_copy_(axis, channels, 10 * named.value.index_select(axis, channels))
    target = Shape(old.width, old.heads, old.groups, old.head, 3)
    kept = choose(model, target, norm_scores(model))
    assert all(torch.equal(kept[f"decoder.{i}", "ffn"].nonzero().flatten(), loud_neurons) for i in range(4))
    widths = norm_scores(model)[None, "width"].topk(3).indices.sort().values
    assert torch.equal(widths, loud_width)


@pytest.mark.parametrize("family", DECODERS)
def test_what_carries_nothing_is_what_activation_gives_up(family: str) -> None:
    """Loud weights that read a silent neuron do not save it."""
    model = make_model(family, activation_function="gelu_new")  # with ReLU others carry nothing too
    old = Shape.of(model.config)
    silent = torch.zeros(old.ffn, dtype=torch.bool)
    silent[[2, 5, 11]] = True
    with torch.no_grad():
        for named in named_axes(model):
            for axis, roles in enumerate(named.axes):
                if "ffn" in roles:
                    neurons, where = named.value.movedim(axis, 0), silent.repeat(len(roles))
                    reads = named.value.ndim == 2 and axis == (0 if family_of(model).conv1d else 1)
                    neurons[where] = neurons[where] * 100 if reads else 0
    target = Shape(old.width, old.heads, old.groups, old.head, old.ffn - 3)
    by_activation, by_norm = activation_scores(model, [IDS[:1], IDS[1:]]), norm_scores(model)
    for layer in blocks(model):
        assert torch.equal(~choose(model, target, by_activation)[layer, "ffn"], silent)
        assert not torch.equal(~choose(model, target, by_norm)[layer, "ffn"], silent)


def test_width_by_activation_is_the_mean_hidden_state() -> None:
    model = make_model("gpt2")
    scores = activation_scores(model, [IDS[:1], IDS[1:]])[None, "width"]
    with recorded_states(model, [f"decoder.{i}" for i in range(5)]) as states:
        logits(model)
    expected = torch.stack([state.abs().mean(dim=(0, 1)) for state in states.values()]).sum(dim=0)
    torch.testing.assert_close(scores / 2, expected)


def test_narrower_heads_keep_one_choice_for_queries_and_keys_and_one_for_values_and_outputs() -> None:
    model, target = make_model("gpt2"), Shape(16, 2, 1, 8, 64)
    kept = choose(model, target, norm_scores(model))
    for layer, role in ((layer, role) for layer in blocks(model) for role in ("query", "key", "value", "context")):
        assert kept[layer, role].view(2, 16).sum(dim=1).tolist() == [8, 8]
    assert logits(cut(model, target.applied(model.config), kept)).shape == (2, 30, 300)


STAY = [0, 3, 7, 8, 50, 120, 297]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_smaller_vocabulary_is_the_same_model_that_chooses_among_fewer_tokens(family: str, tied: bool) -> None:
    model = make_model(family, tie_word_embeddings=tied, pad_token_id=7, bos_token_id=3, eos_token_id=[50, 51, 8])
    model.generation_config.eos_token_id, model.generation_config.bos_token_id = [8, 51], 9
    small = apply(model, [vocabulary_operation(STAY, 300)])
    assert small.config.vocab_size == small.get_input_embeddings().num_embeddings == len(STAY)
    assert is_tied(small) is tied
    assert torch.equal(head(small).weight, head(model).weight[STAY])
    assert (small.config.bos_token_id, small.config.eos_token_id, small.config.pad_token_id) == (1, [4, 3], 2)
    assert (small.generation_config.eos_token_id, small.generation_config.bos_token_id) == ([3], None)
    assert model.config.pad_token_id == 7, "the old one is as it was"
    new = torch.arange(2 * 30).view(2, 30) % len(STAY)
    torch.testing.assert_close(logits(small, new), logits(model, torch.tensor(STAY)[new])[..., STAY])
    assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in model.parameters()}
    operations = [vocabulary_operation(STAY, 300), {"op": "extract_layers", "layers": [1, 3]}]
    assert (operations[0]["before"], operations[0]["after"]) == (300, len(STAY))
    assert len(str(operations[0])) < 160
    both = apply(model, operations)
    assert_same_weights(both, replay(model.config, operations))
    with pytest.raises(ValueError, match="300 tokens does not fit a model of 7"):
        apply(both, operations)


def test_rules_on_tokens_are_on_the_same_ones_in_a_smaller_vocabulary() -> None:
    model = make_model("llama")
    rules = {
        "suppress_tokens": [7, 9, 120], "begin_suppress_tokens": [9], "bad_words_ids": [[3, 50], [3, 51]],
        "sequence_bias": [[[297], -2.0], [[0, 1], 3.0]],
    }  # fmt: skip
    for name, value in rules.items():
        setattr(model.generation_config, name, value)
    settings = apply(model, [vocabulary_operation(STAY, 300)]).generation_config
    assert {name: getattr(settings, name) for name in rules} == {
        "suppress_tokens": [2, 5], "begin_suppress_tokens": None, "bad_words_ids": [[1, 4]], "sequence_bias": [[[6], -2.0]],
    }  # fmt: skip
    assert model.generation_config.bad_words_ids == rules["bad_words_ids"], "the old one is as it was"
    model.generation_config.sequence_bias = {(0, 3): 1.5}
    assert apply(model, [vocabulary_operation(STAY, 300)]).generation_config.sequence_bias == [[[0, 1], 1.5]]
