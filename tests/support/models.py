"""Tiny models, tokenizers and corpora that stand in for the real ones."""

import copy
import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lightgpt2.data.tokenizer import train_characters, train_tokenizer, train_wordpiece
from lightgpt2.models.families import CLASSIFICATION, SEQ2SEQ, Shape, class_for
from lightgpt2.models.integers import Integers, integer_tensors
from lightgpt2.models.loading import new_model
from lightgpt2.models.saving import save_model
from lightgpt2.models.tokenizers import load_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_layer": 4, "n_embd": 32, "n_head": 2, "n_positions": 64,
        "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
    },
    "llama": {
        "num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": 64, "tie_word_embeddings": True,
    },
    "opt": {
        "num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "ffn_dim": 96, "max_position_embeddings": 64,
        "dropout": 0.1,
    },
    "gpt_neox": {
        "num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 64, "hidden_dropout": 0.1, "tie_word_embeddings": True,
    },
}  # fmt: skip
SHAPES |= {  # windows are shorter than the texts of tests
    "mistral": SHAPES["llama"] | {"sliding_window": 9},
    "qwen2": SHAPES["llama"] | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    "qwen3": SHAPES["llama"] | {"head_dim": 8, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3},
    "smollm3": SHAPES["llama"] | {"no_rope_layers": [1, 0, 1, 0], "pad_token_id": None},
    "phi3": SHAPES["llama"] | {"sliding_window": 9, "pad_token_id": None},
    "gemma3_text": SHAPES["llama"]
    | {"sliding_window": 9, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
}
RECURRENT: dict[str, dict[str, Any]] = {
    "lstm": {
        "num_hidden_layers": 2, "embedding_size": 12, "hidden_size": 16, "dropout": 0.1, "max_position_embeddings": 64,
    },
}  # fmt: skip
LLAMAS = [family for family, shape in SHAPES.items() if "num_key_value_heads" in shape]

ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {
        "vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 80, "max_position_embeddings": 40,
    },
    "distilbert": {
        "vocab_size": 300, "dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 80, "max_position_embeddings": 40,
    },
    "roberta": {
        "vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 80, "max_position_embeddings": 41, "type_vocab_size": 1,
    },
    "modernbert": {
        "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 80,
        "max_position_embeddings": 40, "local_attention": 8, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
        "sep_token_id": 2,
    },
}  # fmt: skip

ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "bart": {
        "d_model": 32, "encoder_layers": 3, "decoder_layers": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64, "forced_eos_token_id": None,
    },
    "t5": {
        "d_model": 32, "num_layers": 4, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 8, "d_ff": 48,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
    },
}  # fmt: skip
ENCODER_DECODERS |= {"mbart": ENCODER_DECODERS["bart"], "pegasus": ENCODER_DECODERS["bart"]}

# Changes of them that make every row whole blocks of NF4; and that make heads as long as ONNX Runtime wants them.
WHOLE_BLOCKS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64},
    **{family: {"hidden_size": 64, "intermediate_size": 128} for family in LLAMAS},
    "qwen3": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
    "opt": {"hidden_size": 64, "ffn_dim": 128},
    "gpt_neox": {"hidden_size": 64},
    "gemma3_text": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "query_pre_attn_scalar": 16},
}
# What llama.cpp wants: windows in all layers of Gemma 3 but every sixth, and no others; positions in all layers of SmolLM3 but
# every fourth.
LLAMA_CPP: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"use_sliding_window": False},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "phi3": {"sliding_window": None},
    "gemma3_text": {"num_hidden_layers": 6, "sliding_window_pattern": 6},
}
LONG_HEADS: dict[str, dict[str, Any]] = {family: {"head_dim": 16} for family in LLAMAS} | {"phi3": {"hidden_size": 64}}

IDS = torch.arange(60).view(2, 30) * 3


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor = IDS) -> Tensor:
    """The logits of a model without a cache, by default for some ids `[2, 30]`."""
    return model(ids, use_cache=False).logits


def write_corpus(folder: Path, documents: int = 40, length: int = 900) -> Path:
    """A folder of text files: pieces of the language reference."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(topics[name] for name in sorted(topics))
    for i in range(documents):
        (folder / f"{i:03}.txt").write_text(text[i * length : (i + 1) * length].replace("\n\n", "\n"))
    return folder


def write_tokenizer(folder: Path, vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer."""
    train_tokenizer([topics["assignment"], topics["class"]], vocab_size, folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def make_model(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A randomly initialised model with weights large enough to matter."""
    torch.manual_seed(seed)
    special = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0}
    shape = copy.deepcopy({**special, **(SHAPES | RECURRENT)[family], **changes})
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.eval()


def make_classifier(
    family: str, classes: int = 3, seed: int = 0, uneven: bool = False, **changes: Any
) -> PreTrainedModel:
    """A randomly initialised model with a classification head, with weights large enough to matter."""
    torch.manual_seed(seed)
    shape = copy.deepcopy({"vocab_size": 300, **(ENCODERS | SHAPES)[family], "pad_token_id": 0, **changes})
    config = AutoConfig.for_model(family, **shape, num_labels=classes)
    config.architectures = [class_for(config, CLASSIFICATION, "model")]
    if uneven:
        sizes = Shape.of(config)
        config.lightgpt2 = {
            "heads": [sizes.groups, 0, sizes.heads, 0][: config.num_hidden_layers],
            "ffn": [40, 24, 0, 0][: config.num_hidden_layers],
        }
    model = new_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.eval()


def write_classifier(folder: Path, family: str = "bert", **changes: Any) -> Path:
    """The folder of a classifier, by default of the five classes of `requirements`, with a WordPiece tokenizer."""
    train_wordpiece([topics["assignment"], topics["class"]], 300, folder)
    make_classifier(family, **{"classes": 5} | changes).save_pretrained(folder)
    return folder


def make_seq2seq(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A randomly initialised encoder-decoder with weights, norms and biases that matter."""
    torch.manual_seed(seed)
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = AutoConfig.for_model(family, **{"vocab_size": 300, **special, **ENCODER_DECODERS[family], **changes})
    config.architectures = [class_for(config, SEQ2SEQ, "model")]
    model = new_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed_positions" not in name:
                parameter.mul_(4 if family != "t5" else 1.5)
    shake(model)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    return model.eval()


def write_seq2seq(folder: Path, family: str, seed: int = 0, **changes: Any) -> Path:
    """A folder of an encoder-decoder with its tokenizer."""
    write_tokenizer(folder)
    make_seq2seq(family, seed, **changes).save_pretrained(folder)
    return folder


def make_encoder(family: str, classifies: bool = False, **changes: Any) -> PreTrainedModel:
    """An encoder with weights large enough that attention is not even, biases and norms that are not neutral."""
    torch.manual_seed(0)
    auto = AutoModelForSequenceClassification if classifies else AutoModel
    model = auto.from_config(AutoConfig.for_model(family, **ENCODERS[family] | changes), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write_uneven_model(folder: Path, family: str = "gpt2", seed: int = 0, **changes: Any) -> Path:
    """A model folder whose layers differ in their numbers of heads and neurons, with its tokenizer."""
    write_tokenizer(folder)
    config = make_model(family, seed, **changes).config
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    config.lightgpt2 = {"heads": ([heads, heads // 2, 0, heads] * 2)[:layers], "ffn": ([40, 0, 24, 8] * 2)[:layers]}
    new_model(config).save_pretrained(folder)
    return folder


def write_model(folder: Path, family: str = "gpt2", seed: int = 0, **changes: Any) -> Path:
    """A model folder with its tokenizer."""
    write_tokenizer(folder, changes.get("vocab_size", 300))
    make_model(family, seed, **changes).save_pretrained(folder)
    return folder


def write_letters(folder: Path) -> Path:
    """A folder of a character model, an LSTM with random weights."""
    train_characters([topics["assignment"], topics["class"]], None, folder / "alphabet")
    tokenizer = load_tokenizer(str(folder / "alphabet"), "m")
    save_model(make_model("lstm", vocab_size=len(tokenizer)), tokenizer, folder / "model")
    return folder / "model"


def make_restless_model(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model whose norms and biases are not what they start as, with `LONG_HEADS`."""
    model = make_model(family, seed, **LONG_HEADS.get(family, {}) | changes)
    shake(model)
    return model


def shake(model: PreTrainedModel) -> None:
    """Add noise to a model's norms and biases."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)


def save_integers(
    model: PreTrainedModel, form: Integers, tokenizer: PreTrainedTokenizerFast, folder: Path, weights: dict[str, Tensor]
) -> None:
    """Writes a model folder with integers in the place of weights, as quantization-aware training does."""
    _, write = integer_tensors(model, form, weights)
    save_model(model, tokenizer, folder, weights, write)


def assert_same_weights(one: PreTrainedModel, other: PreTrainedModel) -> None:
    """Names and shapes are equal; and values, unless the other has none (on the meta device)."""
    weights, others = one.state_dict(), other.state_dict()
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in others.items()
    }
    assert all(other.device.type == "meta" or torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that are only looked at: a `teacher`, others of their families, one of `uneven` layers, and quantized ones."""
    folder = tmp_path_factory.mktemp("models")
    for family in ("llama", "gpt_neox"):
        write_model(folder / family, family)
    write_uneven_model(folder / "uneven")
    bitsandbytes = {"quant_method": "bitsandbytes"}
    marks: dict[str, dict[str, Any]] = {
        "teacher": {},
        "nf4": {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", **bitsandbytes}},
        "int8": {"quantization_config": {"load_in_8bit": True, **bitsandbytes}},
        "int4": {"lightgpt2": {"stored": "int4"}},
    }
    for name, mark in marks.items():
        config = write_model(folder / name) / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | mark))
    return folder


@pytest.fixture
def inside(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder is the one with the models."""
    monkeypatch.chdir(models)
