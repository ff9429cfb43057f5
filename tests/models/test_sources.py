"""What model folders, GGUF files and adapter folders hold is read whole, or refused by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel, ByT5Tokenizer, CanineTokenizer, PreTrainedTokenizerFast

from lightgpt2.adaptations import Lora
from lightgpt2.conversions.gguf.writer import write_gguf
from lightgpt2.conversions.packing import pack_folder
from lightgpt2.errors import UserError
from lightgpt2.models import loading
from lightgpt2.models.adapters import base_of
from lightgpt2.models.chat import chat_template
from lightgpt2.models.gguf_files import _of_factors
from lightgpt2.models.integers import Integers
from lightgpt2.models.loading import load_config, load_encoder, load_model
from lightgpt2.models.quantization import quantize_folder
from lightgpt2.models.saving import save_model, whole_weights
from lightgpt2.models.sources import stored_size
from lightgpt2.models.tokenizers import load_tokenizer
from lightgpt2.starts import Pretrained
from tests.support.models import (
    WHOLE_BLOCKS,
    assert_same_weights,
    logits,
    make_model,
    make_restless_model,
    save_integers,
    write_model,
    write_tokenizer,
)
from tests.support.refusals import context_of

Weights = dict[str, Tensor]


def edit_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def edit_weights(folder: Path, change: Callable[[Weights], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


# -- weights -----------------------------------------------------------------------------------------------------------------

LAYER = "model.layers.0"
UNPLACED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "biases of the attention": (
        {"attention_bias": True}, {"attention_bias": False}, "16 weights .* place for: model.layers.0.self_attn.k_proj.bias"
    ),
    "biases of the neurons": ({"mlp_bias": True}, {"mlp_bias": False}, "12 weights .*mlp.down_proj.bias"),
    "more layers": ({}, {"num_hidden_layers": 3}, "9 weights .*model.layers.3"),
    "fewer layers": ({}, {"num_hidden_layers": 5}, "lacks 9 of its weights, first model.layers.4"),
    "a head of its own that is not there": ({}, {"tie_word_embeddings": False}, "lacks 1 of its weights, first lm_head"),
    "other neurons": ({}, {"intermediate_size": 40}, r"12 weights of other shapes .* \(32, 48\), not \(32, 40\)"),
    "other heads of keys": ({}, {"num_key_value_heads": 4}, r"8 weights of other shapes"),
}  # fmt: skip


@pytest.mark.parametrize(("made", "said", "message"), UNPLACED.values(), ids=UNPLACED)
def test_a_configuration_that_its_weights_do_not_fit_is_refused_by_name(
    tmp_path: Path, made: dict[str, Any], said: dict[str, Any], message: str
) -> None:
    write_model(tmp_path, "llama", **made)
    edit_json(tmp_path / "config.json", **said)
    with pytest.raises(UserError, match=message):
        load_model(str(tmp_path), "model")


def write_stored(folder: Path, kind: str) -> None:
    """A GPT-2 of four layers, as one of the forms in which a folder may hold it."""
    plain = write_model(folder / "plain", **WHOLE_BLOCKS["gpt2"])
    tokenizer = load_tokenizer(str(plain), "model")
    if kind == "packed":
        pack_folder(plain, folder / kind)
    elif kind == "integers":
        model = load_model(str(plain), "model")
        save_integers(model, Integers(), tokenizer, folder / kind, whole_weights(model))
    else:
        quantize_folder(plain, folder / kind, "nf4" if kind == "nf4" else "int8", tokenizer)


@pytest.mark.parametrize("kind", ["packed", "integers", "nf4", "int8"])
def test_a_configuration_with_fewer_layers_than_the_weights_is_refused_in_every_form(tmp_path: Path, kind: str) -> None:
    write_stored(tmp_path, kind)
    load_model(str(tmp_path / kind), "model")
    edit_json(tmp_path / kind / "config.json", n_layer=2)
    loading._named_config.cache_clear()
    with pytest.raises(UserError, match=r"weights that its config.json has no place for: transformer.h.2"):
        load_model(str(tmp_path / kind), "model")


@pytest.mark.parametrize(
    "name",
    ["self_attn.q_norm.weight", "self_attn.q_proj.lora_A.default.weight", "mlp.down_proj.weight_scale", "score.weight"],
)
def test_weights_without_a_place_are_refused_by_name(tmp_path: Path, name: str) -> None:
    write_model(tmp_path, "llama")
    edit_weights(tmp_path, lambda weights: weights.update({f"{LAYER}.{name}": torch.ones(4)}))
    with pytest.raises(
        UserError, match=rf"^model: .* has 1 weights that its config.json has no place for: {LAYER}.{name}"
    ):
        load_model(str(tmp_path), "model")


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_integers_that_nothing_says_how_to_read_are_refused(tmp_path: Path, kind: torch.dtype) -> None:
    write_model(tmp_path, "llama")
    edit_weights(tmp_path, lambda weights: weights.update({f"{LAYER}.mlp.up_proj.weight": torch.ones(48, 32).to(kind)}))
    with pytest.raises(
        UserError, match=rf"^model: .* has 1 weights that are integers, first {LAYER}.mlp.up_proj.weight \("
    ):
        load_model(str(tmp_path), "model")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_weights_of_a_wrapped_model_are_refused_with_both_names(tmp_path: Path, prefix: str) -> None:
    """As plain torch saves what DistributedDataParallel, torch.compile or a LightningModule wraps."""
    write_model(tmp_path)
    save_file({prefix + name: value for name, value in load_file(tmp_path / "model.safetensors").items()},
              tmp_path / "model.safetensors", {"format": "pt"})  # fmt: skip
    with pytest.raises(
        UserError, match=rf"lacks 53 of its weights, .*; it has 48 others, first {prefix}transformer.h.0"
    ):
        load_model(str(tmp_path), "model")


ODD_FILES: dict[str, tuple[str, Any, str]] = {  # the file, its content or some of its values, the message
    "an index without weights": ("model.safetensors.index.json", "{}", "there is no 'weight_map'"),
    "an activation that is none": ("config.json", {"activation_function": "swoosh"}, "there is no 'swoosh'"),
    "a dtype that is none": ("config.json", {"dtype": "float4"}, "no attribute 'float4'"),
    "no type of quantization": ("config.json", {"quantization_config": {}}, "no `quant_method` attribute"),
    "a list as quantization": ("config.json", {"quantization_config": []}, "could not be loaded"),
    "a list as the type": ("config.json", {"model_type": ["gpt2"]}, "could not be loaded"),
    "a list as the configuration": ("config.json", "[]", "a `model_type` key"),
    "a comma too many": ("config.json", '{"model_type": "gpt2",}', "not a valid JSON file"),
    "an empty configuration": ("config.json", "", "not a valid JSON file"),
    "a byte order mark": ("config.json", '\ufeff{"model_type": "gpt2"}', "not a valid JSON file"),
    "a number in quotation marks": ("config.json", {"vocab_size": "300"}, "'vocab_size' expected int, got str"),
    "heads that divide nothing": ("config.json", {"n_head": 5}, "divisible by num_heads"),
    "fewer positions": ("config.json", {"n_positions": 32}, "of other shapes than its config.json says"),
    "no layers": ("config.json", {"n_layer": 0}, "44 weights that its config.json has no place for"),
    "a list as generation settings": ("generation_config.json", "[]", "could not be loaded"),
    "generation settings with a comma too many": ("generation_config.json", '{"eos_token_id": 0,}', "is damaged (Expecting"),
    "a pointer as generation settings": ("generation_config.json", "version https://git-lfs", "is damaged (Expecting"),
    "a shard as the whole": ("model-00001-of-00002.safetensors", None, "no file named model.safetensors"),
    "weights of another program": ("consolidated.safetensors", None, "no file named model.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_FILES)
def test_an_odd_file_of_a_model_is_one_line(tmp_path: Path, name: str) -> None:
    file, content, words = ODD_FILES[name]
    write_model(tmp_path)
    weights = tmp_path / "model.safetensors"
    if content is None:
        weights.rename(tmp_path / file)
    elif isinstance(content, dict):
        edit_json(tmp_path / file, **content)
    else:
        (tmp_path / file).write_text(content)
    if "index" in file:
        weights.rename(tmp_path / "model-00001-of-00001.safetensors")
    with pytest.raises(UserError) as error:
        load_model(str(tmp_path), "model")
    (problem,) = error.value.problems
    assert words in problem
    assert problem.key == "model"
    assert "\n" not in problem


ODD_TOKENIZERS: dict[str, tuple[str, Any]] = {
    "nothing in it": ("tokenizer.json", "{}"),
    "a list": ("tokenizer.json", "[]"),
    "half of it": ("tokenizer.json", '{"a": '),
    "a list of settings": ("tokenizer_config.json", "[]"),
    "a class that is a number": ("tokenizer_config.json", {"tokenizer_class": 3}),
    "a token that is a number": ("tokenizer_config.json", {"eos_token": 3}),
    "a length that is text": ("tokenizer_config.json", {"model_max_length": "long"}),
    "a template without text": ("tokenizer_config.json", {"chat_template": [{"name": "a"}]}),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_TOKENIZERS)
def test_an_odd_file_of_a_tokenizer_is_one_line(tmp_path: Path, name: str) -> None:
    file, content = ODD_TOKENIZERS[name]
    write_model(tmp_path)
    if isinstance(content, dict):
        edit_json(tmp_path / file, **content)
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=r"^data.tokenizer: [^\n]*$"):
        load_tokenizer(str(tmp_path), "data.tokenizer")


def test_a_chat_template_that_is_no_text_is_none(tmp_path: Path) -> None:
    write_model(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", chat_template=3)
    assert chat_template(load_tokenizer(str(tmp_path), "model")) is None


def tied_twice(weights: Weights) -> None:
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()


def constants(weights: Weights) -> None:
    for layer in range(4):
        weights[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64)
        weights[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)


def without_prefix(weights: Weights) -> None:
    for name in [*weights]:
        weights[name.removeprefix("transformer.")] = weights.pop(name)


@pytest.mark.parametrize("change", [tied_twice, constants, without_prefix])
def test_what_older_files_hold_is_no_weight(tmp_path: Path, change: Callable[[Weights], None]) -> None:
    write_model(tmp_path)
    edit_weights(tmp_path, change)
    assert torch.equal(logits(load_model(str(tmp_path), "model").eval()), logits(make_model("gpt2")))


def test_a_head_of_its_own_is_used_whatever_the_configuration_says(tmp_path: Path) -> None:
    write_model(tmp_path, "llama", tie_word_embeddings=False)
    edit_json(tmp_path / "config.json", tie_word_embeddings=True)
    whole = make_model("llama", tie_word_embeddings=False)
    assert torch.equal(logits(load_model(str(tmp_path), "model").eval()), logits(whole))


def test_adapters_beside_a_model_are_not_put_on_it_without_a_word(tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    peft.get_peft_model(make_model("llama"), peft.LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a folder of adapters"):
        load_model(str(tmp_path), "model")


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_an_encoder_may_have_the_head_that_it_was_trained_with_and_no_other_weights(tmp_path: Path, kind: Any) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    kind(BertConfig(vocab_size=300, **shape)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path / "t")
    for file in (tmp_path / "t").iterdir():
        shutil.copy(file, tmp_path)
    load_encoder(str(tmp_path), "MODEL")
    edit_weights(tmp_path, lambda weights: weights.update({"bert.encoder.layer.7.output.dense.weight": torch.ones(2)}))
    with pytest.raises(UserError, match=r"no place for: bert\.encoder\.layer\.7"):
        load_encoder(str(tmp_path), "MODEL")


@pytest.mark.parametrize(
    ("family", "key", "said"),
    [
        ("llama", "rope_theta", "say it in rope_parameters: {'rope_theta': 0.5, 'rope_type': 'default'}"),
        ("gpt_neox", "rotary_pct", "say it in rope_parameters: {.*'partial_rotary_factor': 0.5"),
        ("gpt_neox", "rotary_emb_base", "say it in rope_parameters: {'rope_theta': 0.5"),
        (
            "gemma3_text",
            "rope_local_base_freq",
            "say it in rope_parameters: {'sliding_attention': {.*'rope_theta': 0.5}",
        ),
        ("llama", "rotary_pct", "correct or remove that"),
        ("gpt2", "rope_theta", "correct or remove that"),
        ("falcon", "no_such_key", "correct or remove that"),
    ],
)
def test_a_key_of_transformers_4_is_answered_with_what_it_is_called_now(family: str, key: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^model.model: a {family} configuration has no {key}; {said}"):
        load_config({"model_type": family, key: 0.5}, "model.model")


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float32, "F32")])
def test_a_source_is_as_large_as_its_own_file(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    make_model("llama").to(dtype).save_pretrained(tmp_path)
    assert stored_size(str(tmp_path)) == ((tmp_path / "model.safetensors").stat().st_size / 1e6, {name})
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert stored_size(str(tmp_path))[0] == (tmp_path / "pytorch_model.bin").stat().st_size / 1e6
    assert stored_size("nobody/nothing") == (0, set())


def test_weights_in_two_forms_are_counted_once(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sum(file.stat().st_size for file in tmp_path.glob("model-*.safetensors"))
    make_model("llama").save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "model.safetensors").rename(tmp_path / "consolidated.safetensors")
    assert stored_size(str(tmp_path))[0] == pytest.approx(shards / 1e6)


@pytest.mark.parametrize("more", ["consolidated.safetensors", "model.fp16.safetensors", "an index of old shards"])
def test_only_the_file_that_is_loaded_is_counted(tmp_path: Path, more: str) -> None:
    make_model("llama").half().save_pretrained(tmp_path, max_shard_size="20KB")
    model = make_model("llama", seed=1)
    model.save_pretrained(tmp_path / "new")
    (tmp_path / "new" / "model.safetensors").rename(tmp_path / "model.safetensors")
    if more.endswith(".safetensors"):
        (tmp_path / "model.safetensors.index.json").unlink()
        shutil.copy(tmp_path / "model.safetensors", tmp_path / more)
    assert stored_size(str(tmp_path)) == ((tmp_path / "model.safetensors").stat().st_size / 1e6, {"F32"})
    assert_same_weights(load_model(str(tmp_path), "model"), model)


def test_what_a_folder_holds_beside_weights_is_carried_on(tmp_path: Path) -> None:
    """Settings of a generation that transformers would refuse to save, templates, added tokens, the licence."""
    tokenizer = write_tokenizer(tmp_path / "m", 298)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<mine>"]})
    tokenizer.chat_template = {"default": "{{ messages }}", "other": "x{{ messages }}"}
    tokenizer.padding_side, tokenizer.truncation_side = "left", "left"
    tokenizer.save_pretrained(tmp_path / "m")
    make_model("llama").save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "LICENSE.txt").write_text("Free.")
    said = {"temperature": 0.7, "top_p": 0.9, "own_key": [1], "eos_token_id": [0, 5]}
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(said))
    model, tokenizer = load_model(str(tmp_path / "m"), "m"), load_tokenizer(str(tmp_path / "m"), "m")
    model.generation_config.eos_token_id = [0]  # as a trimmed vocabulary changes it
    save_model(model, tokenizer, tmp_path / "new")
    assert (tmp_path / "new" / "LICENSE.txt").read_text() == "Free."
    written = json.loads((tmp_path / "new" / "generation_config.json").read_text())
    assert said | {"eos_token_id": [0]} == {name: written[name] for name in said}
    again = load_tokenizer(str(tmp_path / "new"), "m")
    for name in ("chat_template", "padding_side", "truncation_side", "all_special_tokens", "pad_token"):
        assert getattr(again, name) == getattr(tokenizer, name)
    assert again.get_vocab() == tokenizer.get_vocab()


# -- GGUF --------------------------------------------------------------------------------------------------------------------

THETA = {"rope_theta": 10000.0}
LINEAR, _FROM = THETA | {"rope_type": "linear"}, "original_max_position_embeddings"
LLAMA_3 = THETA | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GGUF: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 3 scaling": ("llama", {"rope_parameters": LLAMA_3 | {"factor": 8.0, _FROM: 16}}),
    "Llama 3 scaling, other": ("llama", {"rope_parameters": LLAMA_3 | {"factor": 32.0, _FROM: 64}}),
    "linear scaling": ("llama", {"rope_parameters": LINEAR | {"factor": 4.0}}),
    "another base": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "biases of the attention": ("llama", {"attention_bias": True, "tie_word_embeddings": False}),
    "biases of the neurons and scaling": ("llama", {"mlp_bias": True, "rope_parameters": LINEAR | {"factor": 2.0}}),
    "GPT-2": ("gpt2", {"n_positions": 80}),
    "GPT-2, head of its own": ("gpt2", {"tie_word_embeddings": False}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(("family", "changes"), GGUF.values(), ids=GGUF)
def test_a_gguf_file_alone_gives_the_model_s_logits(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, family: str, changes: dict[str, Any]
) -> None:
    model = make_restless_model(family, **changes)
    write_gguf(model, tokenizer, tmp_path / "m.gguf", "F32")
    found = load_model(str(tmp_path / "m.gguf"), "model").eval()
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-5, atol=1e-5)
    assert (found.config.bos_token_id, found.generation_config.eos_token_id) == (0, 0), "not the family's default"
    assert stored_size(str(tmp_path / "m.gguf")) == ((tmp_path / "m.gguf").stat().st_size / 1e6, {"GGUF"})
    again = load_tokenizer(str(tmp_path / "m.gguf"), "model")
    assert again("a class")["input_ids"] == tokenizer("a class")["input_ids"]
    assert (again.bos_token, again.eos_token, again.pad_token) == ("<|endoftext|>",) * 3


def write_odd_gguf(file: Path, tensors: dict[str, Any], **metadata: Any) -> None:
    """A file of a small Llama with further tensors and metadata."""
    writer = gguf.GGUFWriter(file, "llama")
    sizes = {"context_length": 64, "embedding_length": 32, "feed_forward_length": 32, "block_count": 1, "head_count": 2}
    for name, value in {**sizes, "head_count_kv": 2, "layer_norm_rms_eps": 1e-6, "vocab_size": 8}.items():
        getattr(writer, f"add_{name}")(value)
    for name, value in metadata.items():
        getattr(writer, f"add_{name}")(value)
    square = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}
    shapes = {f"blk.0.{name}.weight": (32, 32) for name in square} | {"token_embd.weight": (8, 32)}
    shapes |= dict.fromkeys(("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"), (32,))
    for name, shape in shapes.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    for name, value in tensors.items():
        writer.add_tensor(name, np.asarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


ODD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "norms of queries": ({"blk.0.attn_q_norm.weight": [1.0] * 16}, {}, "1 tensors .* first blk.0.attn_q_norm.weight"),
    "experts": ({}, {"expert_count": 4}, "has expert_count 4, which is not read"),
    "another layer": ({"blk.1.ffn_up.weight": np.ones((32, 32))}, {}, "first blk.1.ffn_up"),
    "scaled logits": ({}, {"logit_scale": 0.5}, "logit_scale 0.5"),
    "capped logits": ({}, {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30"),
    "factors of no kind": ({"rope_freqs.weight": [1, 5, 2, 7, 1, 1, 3, 4]}, {}, "rotary factors of no kind that is known"),
    "factors for long texts": ({"rope_factors_long.weight": [1.0] * 8}, {}, "first rope_factors_long.weight"),
    "biases without all": ({"blk.0.attn_q.bias": [1.0] * 32}, {}, "lacks 3 of its weights"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "metadata", "message"), ODD.values(), ids=ODD)
def test_what_a_gguf_file_has_and_nothing_reads_is_refused_by_name(
    tmp_path: Path, tensors: dict[str, Any], metadata: dict[str, Any], message: str
) -> None:
    loading._named_config.cache_clear()
    write_odd_gguf(tmp_path / "m.gguf", tensors, **metadata)
    with pytest.raises(UserError, match=message):
        load_model(str(tmp_path / "m.gguf"), "model")


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaling_that_a_gguf_file_s_metadata_says_is_read(tmp_path: Path, kind: str) -> None:
    loading._named_config.cache_clear()
    about = {
        "rope_scaling_type": gguf.RopeScalingType(kind),
        "rope_scaling_factor": 4.0,
        "rope_scaling_orig_ctx_len": 16,
    }
    write_odd_gguf(tmp_path / "m.gguf", {}, **about)
    rope = load_model(str(tmp_path / "m.gguf"), "model").config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == (kind, 4.0, 16)


@pytest.mark.parametrize(("factor", "original"), [(8.0, 8192), (32.0, 8192), (4.0, 1024)])
@pytest.mark.parametrize("size", [64, 128])
def test_llama_3_s_own_settings_are_found_from_its_factors(size: int, factor: float, original: int) -> None:
    turns = 500000.0 ** -(np.arange(size // 2) / (size // 2)) / (2 * np.pi)
    share = np.clip((original * turns - 1) / 3, 0, 1)
    found = _of_factors((1 / ((1 - share) / factor + share)).astype(np.float32), 500000.0)
    edges = {"low_freq_factor": 1.0, "high_freq_factor": pytest.approx(4, abs=1e-3)}
    assert found == {"rope_type": "llama3", "factor": factor, **edges, "original_max_position_embeddings": original}


# -- tokenizers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ByT5Tokenizer, CanineTokenizer])
def test_a_tokenizer_that_is_written_in_python_is_refused_in_one_line(tmp_path: Path, kind: Any) -> None:
    kind().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"^model: the tokenizer of .* \({kind.__name__}\) is written in Python"):
        load_tokenizer(str(tmp_path), "model")


def test_a_tokenizer_of_few_words_is_one(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "pump": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>").save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path), "model")("pump pump", add_special_tokens=False)["input_ids"] == [2, 2]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("gone", [["tokenizer.json"], ["tokenizer.json", "tokenizer_config.json"]])
def test_a_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path: Path, family: str, gone: list[str]) -> None:
    write_model(tmp_path, family)
    for name in gone:
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"^model: .* has no tokenizer \(tokenizer.json\)"):
        load_tokenizer(str(tmp_path), "model")


# -- adapters ----------------------------------------------------------------------------------------------------------------

TASK = {"task_type": "CAUSAL_LM"}
OTHERS: dict[str, tuple[Any, str]] = {
    "IA3": (peft.IA3Config(**TASK), "adapters of kind IA3"),
    "LoHa": (peft.LoHaConfig(**TASK, target_modules=["q_proj"]), "kind LOHA"),
    "AdaLoRA": (peft.AdaLoraConfig(**TASK, total_step=10), "kind ADALORA"),
    "prompts": (peft.PromptTuningConfig(**TASK, num_virtual_tokens=2), "kind PROMPT_TUNING"),
    "prefixes": (peft.PrefixTuningConfig(**TASK, num_virtual_tokens=2), "kind PREFIX_TUNING"),
    "VeRA": (peft.VeraConfig(**TASK, target_modules=["o_proj"]), "kind VERA"),
    "OFT": (peft.OFTConfig(**TASK, target_modules=["q_proj"]), "kind OFT"),
    "norms": (peft.LNTuningConfig(**TASK), "kind LN_TUNING"),
    "copied layers": (peft.LoraConfig(**TASK, layer_replication=[[0, 2], [1, 4]]), "adapters with layer_replication"),
    "biases": (peft.LoraConfig(**TASK, lora_bias=True), "adapters with lora_bias"),
    "tied copies": (
        peft.LoraConfig(**TASK, ensure_weight_tying=True, modules_to_save=["norm"]), "adapters with ensure_weight_tying",
    ),
    "invoked": (peft.LoraConfig(**TASK, alora_invocation_tokens=[1]), "adapters with alora_invocation_tokens"),
    "another revision": (peft.LoraConfig(**TASK, revision="v2"), "adapters of revision v2 of their base"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), OTHERS.values(), ids=OTHERS)
def test_adapters_of_another_kind_are_refused_in_one_line(tmp_path: Path, settings: Any, message: str) -> None:
    settings.base_model_name_or_path = "base"
    settings.save_pretrained(tmp_path)
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(
        UserError, match=rf"^model: .* holds .*{message}, which are not .*; merge them into base with PEFT"
    ):
        base_of(str(tmp_path), "model")


LORAS: dict[str, dict[str, Any]] = {
    "biases of the model": {"bias": "all"},
    "ranks by layer": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "some layers": {"layers_to_transform": [1]},
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "whole modules": {"modules_to_save": ["norm"]},
    "a tied head of their own": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]},
    "parameters": {"target_modules": [], "target_parameters": ["mlp.down_proj.weight"]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("settings", LORAS.values(), ids=LORAS)
def test_every_kind_of_lora_goes_on_as_peft_has_it(tmp_path: Path, settings: dict[str, Any], pickled: bool) -> None:
    torch.manual_seed(0)
    theirs: Any = peft.get_peft_model(make_model("llama"), peft.LoraConfig(**TASK, **settings)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter)) if parameter.requires_grad else None
    theirs.save_pretrained(tmp_path, safe_serialization=not pickled)
    edit_json(tmp_path / "adapter_config.json", base_model_name_or_path="base")
    assert base_of(str(tmp_path), "model") == "base"
    model = make_model("llama")
    Lora().apply_to(model, replace(context_of(model), adapter=str(tmp_path)))
    torch.testing.assert_close(logits(model.eval()), logits(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", ["more", "fewer"])
def test_adapters_that_their_configuration_has_no_place_for_are_refused(tmp_path: Path, change: str) -> None:
    adapted: Any = peft.get_peft_model(
        make_model("llama"), peft.LoraConfig(**TASK, target_modules=["q_proj", "o_proj"])
    )
    adapted.save_pretrained(tmp_path)
    targets = ["q_proj"] if change == "more" else ["q_proj", "o_proj", "v_proj"]
    edit_json(tmp_path / "adapter_config.json", target_modules=targets)
    model = make_model("llama")
    with pytest.raises(UserError, match=r"^start.model: .* differ in 8 weights, first .*lora_A"):
        Lora().apply_to(model, replace(context_of(model), adapter=str(tmp_path)))


def test_adapters_bring_their_own_tokenizer(tmp_path: Path) -> None:
    peft.LoraConfig(**TASK, base_model_name_or_path="base").save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    start = Pretrained(str(tmp_path), adapters=True)
    assert start.tokenizer[0] == "base"
    write_tokenizer(tmp_path / "t")
    shutil.copy(tmp_path / "t" / "tokenizer_config.json", tmp_path)
    assert start.tokenizer[0] == str(tmp_path)
