"""ONNX graphs in FP32, run by plain onnxruntime by the documented names: what they compute is what transformers computes."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import PreTrainedModel

from lightgpt2.models.axes import Shape, block_units
from lightgpt2.models.families import DECODERS
from lightgpt2.models.loading import new_model
from lightgpt2.models.trimming import remove
from lightgpt2.runtime.onnx_engine import OnnxEngine
from tests.support.models import make_restless_model, shake
from tests.support.onnx_client import Array, Client, off, torch_logits, write_onnx

BOUND = 1e-4  # of the largest logit
_LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 2.0, "original_max_position_embeddings": 32}
_LONG = {
    "rope_type": "longrope", "rope_theta": 5000.0, "factor": 2.0, "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], "long_factor": [2.0] * 8,
}  # fmt: skip
_PARTIAL = {"rope_type": "default", "rope_theta": 5000.0}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2, untied, epsilon, gelu": (
        "gpt2", {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-2, "activation_function": "gelu"}
    ),
    "gpt2, scores by layer, gelu_pytorch_tanh": (
        "gpt2", {"scale_attn_by_inverse_layer_idx": True, "activation_function": "gelu_pytorch_tanh"}
    ),
    "gpt2, scores not scaled, one layer, silu": (
        "gpt2", {"scale_attn_weights": False, "n_layer": 1, "activation_function": "silu"}
    ),
    "gpt2, widths that 32 does not divide": ("gpt2", {"n_embd": 200, "n_head": 5, "n_inner": 62, "n_layer": 2}),
    "gpt2, 5 tokens, context of 32, relu": ("gpt2", {"vocab_size": 5, "n_positions": 32, "activation_function": "relu"}),
    "llama": ("llama", {}),
    "llama, untied, one head of keys, gelu": (
        "llama", {"tie_word_embeddings": False, "num_key_value_heads": 1, "hidden_act": "gelu"}
    ),
    "llama, a head of keys each, epsilon, relu": (
        "llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-2, "hidden_act": "relu"}
    ),
    "llama, biases, one layer, gelu_new": (
        "llama", {"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 1, "hidden_act": "gelu_new"}
    ),
    "llama, long heads": ("llama", {"head_dim": 80, "num_hidden_layers": 2}),
    "llama, widths that 32 does not divide": ("llama", {"hidden_size": 100, "intermediate_size": 62}),
    "llama, linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}),
    "llama, rope of llama 3": ("llama", {"rope_parameters": _LLAMA_3}),
    "llama, rope by yarn": ("llama", {"rope_parameters": _YARN}),
    "llama, rope by yarn, adjusted": (
        "llama", {"rope_parameters": _YARN | {"attention_factor": 0.8, "beta_fast": 20.0, "truncate": False}}
    ),
    "llama, dynamic rope": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 5000.0, "factor": 4.0}}),
    "llama, long rope": ("llama", {"rope_parameters": _LONG}),
    "llama, short heads": ("llama", {"head_dim": 8}),
    "mistral, a window": ("mistral", {}),
    "mistral, no window, untied, a head of keys each": (
        "mistral", {"sliding_window": None, "tie_word_embeddings": False, "num_key_value_heads": 4}
    ),
    "qwen2, half of the layers with a window": ("qwen2", {}),
    "qwen2, no window, short heads": ("qwen2", {"use_sliding_window": False, "head_dim": 8}),
    "qwen3": ("qwen3", {}),
    "qwen3, biases, short heads, a window in each layer": (
        "qwen3", {"attention_bias": True, "head_dim": 8, "max_window_layers": 0}
    ),
    "smollm3": ("smollm3", {}),
    "smollm3, windows without positions, biases": (
        "smollm3", {"use_sliding_window": True, "sliding_window": 9, "attention_bias": True, "mlp_bias": True}
    ),
    "phi3": ("phi3", {}),
    "phi3, half of a head": ("phi3", {"hidden_size": 128, "rope_parameters": _PARTIAL | {"partial_rotary_factor": 0.5}}),
    "phi3, 12 of 16 channels rotated": ("phi3", {"rope_parameters": _PARTIAL | {"partial_rotary_factor": 0.75}}),
    "phi3, long rope": ("phi3", {"hidden_size": 64, "rope_parameters": _LONG}),
    "opt": ("opt", {}),
    "opt, untied, no biases": ("opt", {"tie_word_embeddings": False, "enable_bias": False}),
    "opt, norms without weights, gelu": ("opt", {"layer_norm_elementwise_affine": False, "activation_function": "gelu"}),
    "gemma3_text": ("gemma3_text", {}),
    "gemma3_text, biases, windows only, untied": (
        "gemma3_text", {"attention_bias": True, "sliding_window_pattern": 9, "tie_word_embeddings": False}
    ),
    "gemma3_text, long heads, linear rope": ("gemma3_text", {"head_dim": 16, "query_pre_attn_scalar": 50, "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 3e3},
        "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0}}}
    ),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, untied, no biases, layers in turn": (
        "gpt_neox", {"tie_word_embeddings": False, "attention_bias": False, "use_parallel_residual": False}
    ),
    "gpt_neox, heads of 32 turned in half, linear rope": (
        "gpt_neox", {"hidden_size": 64, "rope_parameters": {
            "rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0, "partial_rotary_factor": 0.5}}
    ),
    "gpt_neox, heads turned whole, gelu_new": (
        "gpt_neox", {"hidden_act": "gelu_new", "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}}
    ),
}  # fmt: skip


def uneven(family: str) -> PreTrainedModel:
    """Layers of which one has no heads, one no neurons, and one neither."""
    config = make_restless_model(family, attention_bias=True, mlp_bias=True).config
    fewer, all_ = Shape.of(config).groups, config.num_attention_heads
    config.lightgpt2 = {"heads": [fewer, 0, all_, 0], "ffn": [40, 24, 0, 0]}
    model = new_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    shake(model)
    return model


def tokens(model: PreTrainedModel, *shape: int) -> Array:
    return np.random.default_rng(0).integers(0, model.config.vocab_size, shape)


def largest_error(model: PreTrainedModel, folder: Path) -> float:
    """Of a batch's logits, padded on the left, read at once and then a token at a time, by a client with growing caches."""
    client = Client(write_onnx(model, folder))
    ids, mask = tokens(model, 3, 20), np.ones((3, 20), np.int64)
    mask[1, :7] = mask[2, :1] = 0
    wanted, there = torch_logits(model, ids, mask), mask[..., None].astype(bool)
    found, past = client.run(ids[:, :12], mask[:, :12])
    errors = [off(found * there[:, :12], wanted[:, :12] * there[:, :12])]
    for place in range(12, 20):
        found, past = client.run(ids[:, place : place + 1], mask[:, : place + 1], past)
        errors.append(off(found[:, 0], wanted[:, place]))
    assert all(value.shape[2] == 20 for value in past.values())
    return float(np.max(errors))  # which, unlike the built-in, is no number where an error is none


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    family, changes = MODELS[name]
    assert largest_error(make_restless_model(family, **changes), tmp_path) < BOUND


@pytest.mark.parametrize("family", DECODERS)
def test_all_greedy_tokens_are_those_of_torch_with_and_without_a_cache(tmp_path: Path, family: str) -> None:
    model = make_restless_model(family)
    write_onnx(model, tmp_path)
    engine, ids = OnnxEngine(tmp_path / "model.onnx", 64, threads=1), tokens(model, 2, 12)
    given, mask = torch.from_numpy(ids), torch.ones(2, 12, dtype=torch.long)
    how: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    model.generation_config.eos_token_id = None
    wanted = [model.generate(given, use_cache=cache, **how)[:, 12:].numpy() for cache in (True, False)]
    np.testing.assert_array_equal(*wanted)
    found = [engine.prefill(ids, np.ones_like(ids), 40).argmax(axis=-1)]
    for _ in range(39):
        found.append(engine.decode(found[-1]).argmax(axis=-1))
    np.testing.assert_array_equal(np.stack(found, axis=1), wanted[0])


@pytest.mark.parametrize("family", DECODERS)
def test_what_pruning_removed_and_layers_without_heads_or_neurons(tmp_path: Path, family: str) -> None:
    assert largest_error(uneven(family), tmp_path) < BOUND
    layers = {int(name.split(".")[1]) for name in Client(tmp_path).pasts}
    assert layers == {0, 2}, "a layer without heads has no cache"
    model = make_restless_model(family)
    random = torch.Generator().manual_seed(1)
    masks = [
        {name: torch.rand(count, generator=random) < 0.6 for name, count in counts.items()}
        for counts in block_units(model.config)
    ]
    assert largest_error(remove(model, *masks).eval(), tmp_path) < BOUND


@pytest.mark.parametrize("family", DECODERS)
def test_logits_of_the_last_positions_only_and_of_a_prompt_in_pieces(tmp_path: Path, family: str) -> None:
    model = make_restless_model(family)
    client, ids = Client(write_onnx(model, tmp_path)), tokens(model, 2, 10)
    (option,) = client.session.get_overridable_initializers()
    assert (option.name, option.type, option.shape) == ("num_logits_to_keep", "tensor(int64)", [])
    whole, past = client.run(ids, np.ones_like(ids))
    for keep, start in ((0, 0), (1, 9), (3, 7), (10, 0), (99, 0)):
        found, same = client.run(ids, np.ones_like(ids), keep=keep)
        np.testing.assert_allclose(found, whole[:, start:], rtol=1e-5, atol=1e-5)
        assert all(np.array_equal(same[name], past[name]) for name in past), "the cache is of all positions"
    _, past = client.run(ids[:1, :4], np.ones((1, 4), np.int64))  # a prompt in two pieces
    second, _ = client.run(ids[:1, 4:], np.ones((1, 10), np.int64), past)
    assert off(second, torch_logits(model, ids[:1])[:, 4:]) < BOUND


def test_the_graph_is_as_documented_and_small_and_its_folder_may_be_moved(tmp_path: Path) -> None:
    model = make_restless_model("llama")
    folder, ids = write_onnx(model, tmp_path / "a"), tokens(model, 1, 5)
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    assert {(each.domain, each.version) for each in graph.opset_import} == {("", 18), ("com.microsoft", 1)}
    names = [tensor.name for tensor in graph.graph.initializer]
    assert len(names) == len({*names})
    assert (folder / "model.onnx").stat().st_size < 50_000
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "model.onnx_data"}
    client = Client(folder)
    wanted, _ = client.run(ids, np.ones_like(ids))
    folder.rename(tmp_path / "b")
    np.testing.assert_array_equal(Client(tmp_path / "b").run(ids, np.ones_like(ids))[0], wanted)
    ends = [*client.session.get_inputs(), *client.session.get_outputs()]
    whole, cache = "tensor(int64)", "tensor(float)"
    documented = {
        "input_ids": (whole, ["batch", "sequence"]), "attention_mask": (whole, ["batch", "total"]),
        "position_ids": (whole, ["batch", "sequence"]), "logits": (cache, ["batch", "kept", 300]),
    }  # fmt: skip
    for layer in range(4):
        for part in ("key", "value"):
            documented[f"past_key_values.{layer}.{part}"] = (cache, ["batch", 2, "past", 16])
            documented[f"present.{layer}.{part}"] = (cache, ["batch", 2, "total", 16])
    assert {each.name: (each.type, each.shape) for each in ends} == documented


def test_nothing_is_written_of_a_graph_that_fails(tmp_path: Path) -> None:
    model = make_restless_model("gpt2")
    model.config.model_type = "other"
    with pytest.raises(KeyError):
        write_onnx(model, tmp_path)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("family", DECODERS)
def test_neither_padding_nor_other_rows_change_a_text(tmp_path: Path, family: str) -> None:
    """A full context included: its last position is computed as well."""
    model = make_restless_model(family, max_position_embeddings=32)
    client, ids, mask = Client(write_onnx(model, tmp_path)), tokens(model, 3, 32), np.ones((3, 32), np.int64)
    mask[1, 7:] = 0
    found, _ = client.run(ids, mask)
    for row, length in enumerate((32, 7, 32)):
        alone, _ = client.run(ids[row : row + 1, :length], mask[row : row + 1, :length])
        np.testing.assert_allclose(found[row, :length], alone[0], rtol=1e-4, atol=1e-4)
        assert off(found[row, :length], torch_logits(model, ids[row : row + 1, :length])[0]) < BOUND
