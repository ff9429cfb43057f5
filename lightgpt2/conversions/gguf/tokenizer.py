"""A byte-level BPE tokenizer as llama.cpp reads it from a GGUF file's metadata.

llama.cpp knows how text is cut into words by a name (`tokenizer.ggml.pre`) that stands for a set of regular expressions; its
converter finds the name by a hash of one long text's tokens. Here the pre-tokenizer itself gives it.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any, cast

from gguf import GGUFWriter, TokenType
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from lightgpt2.errors import Problem
from lightgpt2.models.vocabulary import needed_rows

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLIT, _SPLIT_DIGITS = (
    {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    for pattern in (_LLAMA_3, _QWEN_2)
)
_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False}

# llama.cpp's name, the pre-tokenizer's parts, and whether a word that is one token is looked up before anything is merged.
_KINDS: list[tuple[str, list[dict[str, Any]], bool]] = [
    ("gpt-2", [{**_BYTES, "use_regex": True}], False),
    ("smollm", [_DIGITS, {**_BYTES, "use_regex": True}], False),
    ("qwen2", [_SPLIT_DIGITS, {**_BYTES, "use_regex": False}], False),
    ("llama-bpe", [_SPLIT, {**_BYTES, "use_regex": False}], True),
]


def tokenizer_problems(tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig) -> Iterator[Problem]:
    """What llama.cpp would do differently from a model's tokenizer."""
    parts = _parts(tokenizer)
    model = parts["model"]
    if model.get("type") != "BPE" or _pre_tokenizer(parts) is None:
        what = f"the tokenizer ({type(tokenizer).__name__}, {model.get('type', 'no')} model) is none of the byte-level BPE "
        what += f"kinds that llama.cpp has ({', '.join(name for name, _, _ in _KINDS)})"
        yield Problem("", what, "export to onnx, whose folder keeps tokenizer.json")
        return
    if (count := needed_rows(tokenizer)) > config.vocab_size:
        what = f"the tokenizer has {count} tokens and the model {config.vocab_size}"
        yield Problem("", what, "give the model its own tokenizer")
    strips = ("lstrip", "rstrip", "single_word")
    if odd := [token["content"] for token in parts["added_tokens"] if any(token[key] for key in strips)]:
        what = f"the tokenizer's {odd[0]!r} takes the spaces around it ({', '.join(strips)}), which llama.cpp does not"
        yield Problem("", what, "export to onnx")
    if _ends(tokenizer) is None:
        what = "the tokenizer puts other tokens than bos and eos around a text"
        yield Problem("", what, "remove its post-processor")


def _parts(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The parts of `tokenizer.json`; an empty model for a tokenizer without such a file."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return cast(dict[str, Any], json.loads(backend.to_str()) if backend else {"model": {}})


def _pre_tokenizer(parts: dict[str, Any]) -> str | None:
    """llama.cpp's name for the way a tokenizer cuts text; None if it has none."""
    model, whole = parts["model"], parts.get("pre_tokenizer") or {}
    others = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")
    # llama.cpp composes no characters (NFC), which in nearly all text are composed already.
    if parts.get("normalizer") not in (None, {"type": "NFC"}) or any(model.get(key) for key in others):
        return None
    cuts = whole.get("pretokenizers", [whole])
    # trim_offsets says where tokens are, not what they are.
    found = [{key: value for key, value in part.items() if key != "trim_offsets"} for part in cuts]
    looked_up = bool(model.get("ignore_merges"))
    return next((name for name, *kind in _KINDS if kind == [found, looked_up]), None)


def _ends(tokenizer: PreTrainedTokenizerFast) -> tuple[bool, bool] | None:
    """Whether a tokenizer puts its bos before a text and its eos behind; None if it puts something else."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    for bos, eos in itertools.product((False, True), repeat=2):
        if [tokenizer.bos_token_id] * bos + bare + [tokenizer.eos_token_id] * eos == whole:
            return bos, eos
    return None


def add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig) -> None:
    """Add the metadata of a tokenizer without problems to a GGUF file, of which no header is written yet.

    Ids of the model without a token get a name that no text gives.
    """
    parts = _parts(tokenizer)
    tokens, types = [f"[PAD{i}]" for i in range(config.vocab_size)], [TokenType.UNUSED] * config.vocab_size
    for token, id_ in tokenizer.get_vocab().items():
        tokens[id_], types[id_] = token, TokenType.NORMAL
    for added in parts["added_tokens"]:
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(parts) or "")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = parts["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for name in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id"):
        if (id_ := getattr(tokenizer, name)) is not None:
            getattr(writer, f"add_{name}")(id_)
    bos, eos = _ends(tokenizer) or (False, False)
    writer.add_add_bos_token(bos)
    writer.add_add_eos_token(eos)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)
