"""Encoder-decoders: two stacks, their own attention between them, and every method's surgery on them."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from lightgpt2.errors import UserError
from lightgpt2.models.axes import Shape, block_sizes, named_axes
from lightgpt2.models.families import (
    ENCODER_DECODERS,
    SEQ2SEQ,
    blocks,
    check_head,
    family_of,
    head,
    is_tied,
    recorded_states,
)
from lightgpt2.models.loading import load_config, load_model, new_model, untie
from lightgpt2.models.room import parameters
from lightgpt2.models.saving import bring_code, save_model
from lightgpt2.models.surgery import apply, replay, trim_operation, vocabulary_operation
from lightgpt2.models.trimming import activation_scores, choose, cut, remove
from tests.models.test_trimming import random_scores, silence
from tests.models.test_units import counted, every, gated, mask, random_masks
from tests.support.models import assert_same_weights, make_seq2seq, write_seq2seq, write_tokenizer

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
        untied(make_seq2seq(family, **changes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_a_loaded_folder_computes_what_plain_transformers_does(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    written(tmp_path, family, **changes)
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    model = load_model(str(tmp_path), "model", auto_classes=(SEQ2SEQ,)).eval()
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
    read, written = (4, 3) if family == "t5" else (3, 4)
    assert known.depths(model.config) == {"encoder": read, "decoder": written}
    assert known.attentions(model.config) == {"encoder": read, "decoder": written, "decoder.cross": written}
    assert [*blocks(model)] == [f"encoder.{i}" for i in range(read)] + [f"decoder.{i}" for i in range(written)]
    inside = {id(p): name for name, block in blocks(model).items() for p in block.parameters()}
    assert all(named.block == inside.get(id(named.value)) for named in named_axes(model))
    crossed = {named.block for named in named_axes(model) if any("cross_key" in roles for roles in named.axes)}
    assert crossed == {f"decoder.{i}" for i in range(written)}
    target = Shape(16, 2, 1, 8, 20)
    assert Shape.of(target.applied(model.config)) == target
    assert known.positions(model.config) == (None if family == "t5" else 64)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_states_of_both_stacks_are_recorded(family: str) -> None:
    model, names = make_seq2seq(family), ["encoder.0", "encoder.2", "decoder.0", "decoder.2"]
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
    model = new_model(load_config(values | few, "model.model", auto_classes=(SEQ2SEQ,)))
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
    (
        {"model_type": "t5", "num_decoder_layers": 7},
        (SEQ2SEQ,),
        "a T5 whose decoder has more layers (7) than its encoder",
    ),
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


# Of BART and T5 100 models; mBART and Pegasus are BART but for norms and positions.
MANY = [pytest.param(family, range(8, 100), marks=pytest.mark.slow, id=f"{family}-many") for family in ("bart", "t5")]


@pytest.mark.parametrize(("family", "seeds"), [*((family, range(8)) for family in ENCODER_DECODERS), *MANY])
def test_masked_and_removed_models_agree(family: str, seeds: range) -> None:
    """Heads of the encoder, of the decoder and between them, and neurons; in each model some layers have none of a kind."""
    for seed in seeds:
        model = make_seq2seq(
            family, seed, **({"feed_forward_proj": "gated-gelu"} if seed % 2 and family == "t5" else {})
        )
        heads, ffn = random_masks(model, seed)
        smaller = remove(model, heads, ffn).eval()
        mask(gated(model)[1], heads, ffn)
        difference = (logits(model.double()) - logits(smaller.double())).abs().max()  # in FP32 the processor decides
        assert difference <= 1e-5, f"seed {seed}: {difference}"
        assert block_sizes(smaller.config) == (counted(heads), counted(ffn))


WHOLE: list[tuple[str, dict[str, Any]]] = [
    ("bart", {}), ("pegasus", {"scale_embedding": True}), ("t5", {}), ("t5", {"feed_forward_proj": "gated-gelu"}),
]  # fmt: skip
LAYERS = {"encoder": [2, 1], "decoder": [2, 0]}


def untied(model: PreTrainedModel) -> PreTrainedModel:
    """A model whose head is a matrix of its own, as that of FLAN-T5, which says so with `tie_word_embeddings`."""
    untie(model)
    torch.nn.init.normal_(model.lm_head.weight)
    model.config.scale_decoder_outputs = False
    return model


def assert_independent(smaller: PreTrainedModel, model: PreTrainedModel) -> None:
    assert not {p.data_ptr() for p in smaller.parameters()} & {p.data_ptr() for p in model.parameters()}


def generated(model: PreTrainedModel, **options: Any) -> Tensor:
    options = {"max_new_tokens": 12, "do_sample": False, "num_beams": 2, "eos_token_id": None, **options}
    return model.generate(input_ids=SOURCES, attention_mask=MASK, **options)


@pytest.mark.parametrize(("family", "changes"), WHOLE)
def test_extracted_layers_compute_what_those_layers_compute(family: str, changes: dict[str, Any]) -> None:
    """Also where the first block is left out, which in T5 has the table of positions that all blocks read."""
    model = make_seq2seq(family, **changes)
    smaller = apply(model, [{"op": "extract_layers", "layers": LAYERS}]).eval()
    assert family_of(smaller).depths(smaller.config) == {"encoder": 2, "decoder": 2}
    assert_independent(smaller, model)
    assert_same_weights(smaller, replay(model.config, [{"op": "extract_layers", "layers": LAYERS}]))
    for stack, found in family_of(model).stacks(model).items():
        tables = [getattr(part, "relative_attention_bias", None) for part in found[0].modules()]
        chosen = [found[i] for i in LAYERS[stack]]
        del found[:]
        found.extend(chosen)
        for index, block in enumerate(found):
            for part in block.modules():
                if hasattr(part, "layer_idx"):
                    part.layer_idx = index
        if table := next(filter(None, tables), None):  # the first block of the shallower stack gets it
            first = found[0].layer[0].SelfAttention
            first.has_relative_attention_bias, first.relative_attention_bias = True, table
            for block in found[1:]:
                block.layer[0].SelfAttention.has_relative_attention_bias = False
    torch.testing.assert_close(logits(smaller), logits(model), rtol=0, atol=1e-6)
    assert torch.equal(generated(smaller), generated(smaller, use_cache=False))


@pytest.mark.parametrize("layers", [[0, 2], {"encoder": [0, 2], "decoder": [1]}, {"encoder": [0, 3], "decoder": [1]}])
def test_an_operation_whose_layers_do_not_fit_the_stacks_is_refused(layers: Any) -> None:
    if isinstance(layers, dict) and max(layers["encoder"]) < 3:
        assert [*blocks(apply(make_seq2seq("bart"), [{"op": "extract_layers", "layers": layers}]))][-1] == "decoder.0"
        return
    with pytest.raises(ValueError, match=r"do not fit|encoder: layers \[3\]: a model of 3 layers has layers 0 to 2"):
        apply(make_seq2seq("bart"), [{"op": "extract_layers", "layers": layers}])


@pytest.mark.parametrize(("family", "changes"), WHOLE)
@torch.no_grad()
def test_a_width_of_which_half_is_a_copy_is_cut_without_a_trace(family: str, changes: dict[str, Any]) -> None:
    """With half of the heads and a third of the neurons, which do nothing: norms see the same in half of the channels."""
    model = make_seq2seq(family, **changes)
    old = Shape.of(model.config)
    target = Shape(old.width // 2, old.heads // 2, 1, old.head, old.ffn // 3)
    kept = choose(model, target, random_scores(model, 0))
    silence(model, kept)
    stays, copies = (mask.nonzero().flatten() for mask in (kept[None, "width"], ~kept[None, "width"]))
    for named in named_axes(model):
        for axis, roles in enumerate(named.axes):
            if roles == ("width",):
                channels = named.value.movedim(axis, 0)
                reads = named.value.ndim == 2 and axis == 1 and named.block is not None
                channels[copies] = 0 if reads else channels[stays]
    final = [n for n in named_axes(model) if n.block is None and n.value.ndim == 1 and "decoder" in n.name]
    last = [n for n in named_axes(model) if n.block == "decoder.3" and "final_layer_norm" in n.name]
    for named in [n for n in final if "embedding" not in n.name] or last:
        named.value[copies] = 0  # the head reads each channel once
    small = cut(model, target.applied(model.config), kept)
    torch.testing.assert_close(logits(small), logits(model), rtol=1e-4, atol=1e-4)
    operation = trim_operation(target, kept, "norm")
    assert_same_weights(small, apply(model, [operation]))
    assert_same_weights(small, replay(model.config, [operation]))
    assert_independent(small, model)


def test_heads_that_share_positions_stay_or_go_together() -> None:
    """T5's blocks of a stack read one table of positions, a column for each head; between the stacks there is none."""
    model = make_seq2seq("t5")
    kept = choose(model, Shape(32, 2, 1, 8, 48), random_scores(model, 5))
    for stack, depth in (("encoder", 4), ("decoder", 3)):
        assert len({tuple(kept[f"{stack}.{i}", "query"].tolist()) for i in range(depth)}) == 1
    assert len({tuple(kept[f"decoder.{i}", "cross_query"].tolist()) for i in range(3)}) > 1


STAY = [0, 1, 2, 3, 7, 8, 50, 120, 297]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_smaller_vocabulary_is_the_same_model_that_chooses_among_fewer_tokens(family: str, tied: bool) -> None:
    model = make_seq2seq(family)
    model = model if tied else untied(model)
    small = apply(model, [vocabulary_operation(STAY, 300)])
    assert small.get_input_embeddings().num_embeddings == len(STAY)
    assert is_tied(small) is tied
    assert small.config.decoder_start_token_id == small.generation_config.decoder_start_token_id == 2
    new, old = SOURCES % len(STAY), torch.tensor(STAY)
    with torch.no_grad():
        found = small(input_ids=new, decoder_input_ids=new).logits
        wanted = model(input_ids=old[new], decoder_input_ids=old[new]).logits[..., STAY]
    torch.testing.assert_close(found, wanted)
    assert_independent(small, model)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_what_carries_most_on_text_stays(family: str) -> None:
    """By activations of both stacks: a neuron that is silent in all of them goes, whatever its weights."""
    model = make_seq2seq(family)
    silent = torch.arange(48) < 5
    with torch.no_grad():
        for named in named_axes(model):
            for axis, roles in enumerate(named.axes):
                if "ffn" in roles:
                    named.value.movedim(axis, 0)[silent] = 0 if axis == 0 else 100
    texts = [SOURCES, {"input_ids": SOURCES, "attention_mask": MASK, "decoder_input_ids": TARGETS, "lengths": MASK}]
    for batches in ([texts[0]], [texts[1]]):
        kept = choose(model, Shape(32, 4, 1, 8, 30), activation_scores(model, batches))
        assert not any((kept[block, "ffn"] & silent).any() for block in blocks(model))


def emptied(family: str, **changes: Any) -> PreTrainedModel:
    """A model that pruning left uneven: the first layers of both stacks lack heads of a kind, others neurons."""
    model = make_seq2seq(family, 9, **changes)
    heads, ffn = random_masks(model, 9)
    for name in ("encoder.0", "decoder.0", "decoder.1.cross", "decoder.2.cross"):
        heads[name][:] = name == "decoder.2.cross"
    return remove(model, heads, ffn).eval()


@pytest.mark.parametrize(("family", "changes"), WHOLE)
def test_a_model_with_unlike_layers_is_one_like_any_other(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Saved and loaded, generating with a cache, learning, pruned again, cut to some layers and to fewer tokens."""
    smaller = emptied(family, **changes)
    assert 0 in smaller.config.lightgpt2["heads"]["decoder.cross"]
    save_model(smaller, write_tokenizer(tmp_path / "t"), tmp_path / "m")
    loaded = load_model(str(tmp_path / "m"), "model", auto_classes=(SEQ2SEQ,)).eval()
    assert type(loaded) is type(smaller)
    assert torch.equal(logits(loaded), logits(smaller))
    assert torch.equal(generated(loaded), generated(loaded, use_cache=False))
    loaded.train()(input_ids=SOURCES, labels=TARGETS).loss.backward()
    assert not [name for name, p in loaded.named_parameters() if p.requires_grad and p.grad is None]
    again = remove(loaded, *every(smaller, lambda n: n % 2 == 1)).eval()
    mapped, made = gated(smaller)
    for units in made.values():
        units.masks.set({name: torch.arange(units.keep(name).numel()) % 2 == 1 for name in units.names})
    torch.testing.assert_close(logits(again), logits(smaller), rtol=0, atol=1e-5)
    assert mapped
    fewer = apply(loaded, [{"op": "extract_layers", "layers": LAYERS}, vocabulary_operation(STAY, 300)])
    assert fewer.config.lightgpt2["heads"]["decoder"] == [
        loaded.config.lightgpt2["heads"]["decoder"][i] for i in (2, 0)
    ]
    assert logits_of(fewer, SOURCES % 9).isfinite().all()


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model.eval()(input_ids=ids, decoder_input_ids=ids).logits


_CLIENT = """
import sys
from transformers import AutoModelForSeq2SeqLM
import torch
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert "lightgpt2" not in sys.modules
inputs = torch.load(sys.argv[2])
torch.save(model.generate(**inputs, max_new_tokens=12, do_sample=False, num_beams=2, eos_token_id=None), sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_an_uneven_folder_generates_without_this_package(family: str, tmp_path: Path) -> None:
    model = emptied(family)
    save_model(model, write_tokenizer(tmp_path / "t"), tmp_path / "m")
    bring_code(tmp_path / "m")
    torch.save({"input_ids": SOURCES, "attention_mask": MASK}, tmp_path / "inputs")
    paths = [str(tmp_path / name) for name in ("m", "inputs", "tokens")]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", _CLIENT, *paths], check=True, env=environment, cwd=tmp_path)
    assert torch.equal(torch.load(paths[2]), generated(model))


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_estimated_parameters_are_those_of_the_model(family: str) -> None:
    model = make_seq2seq(family)
    assert parameters(copy.deepcopy(model.config)) == sum(parameter.numel() for parameter in model.parameters())


def test_a_head_of_its_own_stays_one(tmp_path: Path) -> None:
    """FLAN-T5's; transformers 5 ties every T5 that it builds."""
    model = untied(make_seq2seq("t5", feed_forward_proj="gated-gelu"))
    whole = [
        apply(model, [{"op": "extract_layers", "layers": LAYERS}]),
        remove(model, *random_masks(model, 2)),
        model,
    ]
    for number, each in enumerate(whole):
        assert not is_tied(each)
        each.eval()
        save_model(each, write_tokenizer(tmp_path / "t"), tmp_path / str(number))
        loaded = load_model(str(tmp_path / str(number)), "model", auto_classes=(SEQ2SEQ,)).eval()
        assert not is_tied(loaded)
        torch.testing.assert_close(logits(loaded), logits(each))
        check_head(loaded, "model")
