"""The contract of each family: stacks, head and axes cover the model; and a family from outside works everywhere."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

import lightgpt2.models
from lightgpt2.errors import UserError
from lightgpt2.functional.quantization import fake_quantize
from lightgpt2.models import families
from lightgpt2.models.axes import Named, Shape, block_units, named_axes
from lightgpt2.models.families import (
    DECODERS,
    FAMILIES,
    block_linears,
    blocks,
    check_head,
    compute_with,
    family_of,
    head,
)
from lightgpt2.models.families.llama import Llama
from lightgpt2.models.loading import load_config, load_model, new_model
from lightgpt2.models.trimming import remove
from tests.support.models import LONG_HEADS, SHAPES, logits, make_model, write_tokenizer
from tests.support.onnx_client import Client, off, torch_logits, write_onnx

IDS = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(0))
VARIANTS = [
    *((family, {"tie_word_embeddings": tied}) for family in DECODERS for tied in (True, False)),
    ("gpt2", {"n_inner": 40}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16, "num_key_value_heads": 1}),
    ("qwen2", {"head_dim": 16}),
    ("qwen3", {"attention_bias": True, "head_dim": 16}),
    ("smollm3", {"attention_bias": True, "mlp_bias": True}),
    ("phi3", {"num_key_value_heads": 4}),
]


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_stacks_head_and_axes_cover_all_parameters(family: str, changes: dict[str, object]) -> None:
    model = make_model(family, **changes)
    known, shape = family_of(model), Shape.of(model.config)
    assert family in known.model_types
    sizes = shape.channels() | {
        "vocabulary": 300,
        "position": (known.positions(model.config) or 0) + 2 * (family == "opt"),
    }
    for named in named_axes(model):
        assert named.value.shape == tuple(sum(sizes[role] for role in axis) for axis in named.axes), named.name
    (stack,) = known.stacks(model).values()
    assert len(stack) == len(blocks(model)) == model.config.num_hidden_layers
    inside = {id(parameter) for parameter in stack.parameters()}
    assert {named.name for named in named_axes(model) if named.block is not None} == {
        name for name, parameter in model.named_parameters() if id(parameter) in inside
    }
    assert head(model).weight is model.get_output_embeddings().weight
    assert families.is_tied(model) == changes.get("tie_word_embeddings", True)
    target = Shape(shape.width // 2, shape.groups, shape.groups, shape.head, 20)
    assert Shape.of(target.applied(model.config)) == target
    assert known.positions(model.config) == 64
    assert {type(module).__name__ == "Conv1D" for module in block_linears(model).values()} == {known.conv1d}
    assert (shape.width == shape.heads * shape.head) >= known.heads_share_width
    model.register_parameter("other", nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match="unknown parameter other"):
        list(named_axes(model))


OTHERS = [
    ("gpt2", {"n_layer": 6}, ""),  # as DistilGPT-2's folder says
    (
        "gpt_neo",
        {},
        "models of type 'gpt_neo' are not supported; use a model of type bart, bert, distilbert, gemma3_text, gpt2, ",
    ),
    (
        "bloom",
        {},
        "models of type 'bloom' are not supported; use a model of type bart, bert, distilbert, gemma3_text, gpt2, ",
    ),
    (
        "opt",
        {"do_layer_norm_before": False},
        "an OPT with norms behind its layers, or without a final one, is not supp",
    ),
    (
        "opt",
        {"word_embed_proj_dim": 16},
        "an OPT whose embeddings are narrower than its hidden states is not supported",
    ),
]


@pytest.mark.parametrize(("model_type", "changes", "words"), OTHERS)
def test_other_models_load_or_are_refused_in_one_line(
    model_type: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    AutoConfig.for_model(model_type, **SHAPES.get(model_type, {}) | changes).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    if not words:
        assert load_config(str(tmp_path), "model.model").n_layer == 6
        return
    with pytest.raises(UserError) as error:
        load_config(str(tmp_path), "model.model")
    (problem,) = error.value.problems
    assert str(problem).startswith(f"model.model: {words}")


@pytest.mark.parametrize("alternate", [False, True])
def test_sections_of_an_axis_lie_behind_one_another_or_alternate_head_by_head(alternate: bool) -> None:
    named, shape = Named("", torch.zeros(0), 0, (("query", "key", "value"),), alternate), Shape(8, 2, 1, 4, 16)
    split = dict(named.split(0, torch.arange(24), shape))
    assert split["key"].tolist() == ([4, 5, 6, 7, 16, 17, 18, 19] if alternate else [*range(8, 16)])
    assert torch.equal(named.join([*split.values()], shape), torch.arange(24))


@pytest.mark.parametrize("family", DECODERS)
def test_recorded_states_are_before_the_final_norm(family: str) -> None:
    model = make_model(family)
    with torch.no_grad(), families.recorded_states(model, ["decoder.0", "decoder.2", "decoder.4"]) as states:
        output = model.base_model(IDS, output_hidden_states=True, use_cache=False)
    for index in (0, 2):
        torch.testing.assert_close(states[f"decoder.{index}"], output.hidden_states[index])
    inside = {module for block in blocks(model).values() for module in block.modules()}
    norm = next(m for m in model.base_model.modules() if "Norm" in type(m).__name__ and m not in inside)
    torch.testing.assert_close(norm(states["decoder.4"]), output.last_hidden_state)
    assert not torch.allclose(states["decoder.4"], output.last_hidden_state)
    logits(model, IDS[:, :3])
    assert states["decoder.2"].shape[1] == IDS.shape[1], "outside the context nothing is recorded"


@pytest.mark.parametrize("family", DECODERS)
def test_a_head_may_have_a_bias_and_a_scale_and_anything_else_is_refused(
    family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = make_model(family, tie_word_embeddings=False, **LONG_HEADS.get(family, {}))

    def check_graph() -> None:
        found = Client(write_onnx(model, tmp_path)).run(IDS.numpy(), IDS.numpy() * 0 + 1)[0]
        assert off(found, torch_logits(model, IDS.numpy())) < 1e-4

    check_head(model, "model.model")
    bias = model.lm_head.bias = nn.Parameter(torch.randn(300))
    assert head(model).bias is bias
    check_head(model, "model.model")
    check_graph()
    model.lm_head.register_forward_hook(lambda _, __, logits: (logits - bias) / 4 + bias)
    with pytest.raises(UserError, match=r"^model\.model: the logits of this model are not scale \* hidden"):
        check_head(model, "model.model")
    known = family_of(model)
    monkeypatch.setattr(known, "head", lambda model: type(known).head(known, model)._replace(scale=0.25))
    check_head(model, "model.model")
    check_graph()


@pytest.mark.parametrize("family", DECODERS)
def test_substitutes_of_a_module_are_applied_in_order(family: str) -> None:
    """Gates first, then rounding: as if the rounded gated weights were the model's own, to the last bit, the head included."""
    model, plain = make_model(family), make_model(family)
    with torch.no_grad():
        for module in [*block_linears(plain).values(), plain.get_output_embeddings()]:
            module.weight.copy_(fake_quantize(module.weight * (module.weight > 0), 8, None))

    def gated(name: str, value: Tensor) -> Tensor:
        return value * (value > 0) if name == "weight" else value

    def rounded(name: str, value: Tensor) -> Tensor:
        return fake_quantize(value, 8, None) if name == "weight" else value

    before = copy.deepcopy(model.state_dict())
    for module in [*block_linears(model).values(), model.get_output_embeddings(), model.get_input_embeddings()]:
        compute_with(module, gated)
        compute_with(module, rounded)
    assert torch.equal(head(model).weight, head(plain).weight)
    assert torch.equal(logits(model), logits(plain))
    check_head(model, "model.model")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(IDS, labels=IDS).loss.backward()
    assert all(module.weight.grad is not None for module in block_linears(model).values())


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma3_text"])
def test_substitutes_are_traced_in_one_graph(family: str) -> None:
    """Also where the class of an embedding calls `super()`; and a forward pass that fails leaves the weights as they are."""
    base = make_model(family).base_model
    embedding = base.get_input_embeddings()
    modules = [(embedding, IDS), (next(iter(block_linears(base).values())), embedding(IDS).detach())]
    if family == "opt":
        modules.append((base.decoder.embed_positions, torch.ones_like(IDS)))
    for module, inputs in modules:
        compute_with(module, lambda name, value: 2 * value)
        torch._dynamo.reset()
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        assert torch.equal(compiled(inputs), module(inputs))
        own = module.weight
        with pytest.raises(TypeError):
            module(inputs, no_such_argument=1)
        assert module.weight is own
        assert isinstance(own, torch.nn.Parameter)


def test_a_family_is_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded, trimmed, saved with layers of unlike sizes, and exported, without a change anywhere else."""
    values = {"model_type": "seed_oss", **SHAPES["llama"], "vocab_size": 300, "head_dim": 16, "eos_token_id": 0}
    with pytest.raises(UserError, match=r"model: models of type 'seed_oss' are not supported; use .* gpt2, .*llama"):
        load_config(values, "model")
    monkeypatch.setitem(FAMILIES, "seed_oss", FAMILIES["llama"])  # and gone again after the test

    class SeedOss(Llama):
        model_types = ("seed_oss",)

    assert type(FAMILIES["seed_oss"]) is SeedOss
    model = new_model(load_config(values, "model")).eval()
    check_head(model, "model")
    heads, ffn = (
        {name: torch.arange(count) % 2 < index for index, (name, count) in enumerate(counts.items())}
        for counts in block_units(model.config)
    )
    smaller = remove(model, heads, ffn).eval()
    assert type(smaller).__name__ == "LightSeedOssForCausalLM"
    write_tokenizer(tmp_path / "m")
    smaller.save_pretrained(tmp_path / "m")
    loaded = load_model(str(tmp_path / "m"), "model").eval()
    assert torch.equal(logits(loaded, IDS), logits(smaller, IDS))
    found, _ = Client(write_onnx(loaded, tmp_path / "onnx")).run(IDS.numpy(), IDS.numpy() * 0 + 1)
    assert off(found, torch_logits(smaller, IDS.numpy())) < 1e-4


def test_only_families_know_names_of_families() -> None:
    root, names = Path(lightgpt2.models.__file__).parent, "|".join([*DECODERS, *families.ENCODERS])
    for path in {*root.rglob("*.py")} - {*(root / "families").rglob("*.py")}:
        assert not re.search(rf"model_type (==|!=)|\"({names})\"", path.read_text()), path
