"""Tokenizers from the hub, its local cache, a folder or a GGUF file."""

import tempfile

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from lightgpt2.errors import Problem, UserError
from lightgpt2.models import gguf_files
from lightgpt2.models.sources import arguments, explained, gguf_file

_PROBE = "It's 12345, naïve — \n\n\t 東京  é 😀 end.\n"  # text that tokenizers cut in different ways


def load_tokenizer(
    source: str, key: str, trust_remote_code: bool = False, separates: bool = True
) -> PreTrainedTokenizerFast:
    """The tokenizer that belongs to a model.

    Raises:
        UserError: It cannot be loaded; or `separates`, and it has neither a beginning- nor an end-of-text token.
    """
    tokenizer: PreTrainedTokenizerFast
    with explained(source, key):
        tokenizer = AutoTokenizer.from_pretrained(**arguments(source), trust_remote_code=trust_remote_code)
        if file := gguf_file(source):
            gguf_files.name_special_tokens(tokenizer, file)
        tokenizer("a")  # some settings that mean nothing show only when it is used
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        what = f"the tokenizer of {source} ({type(tokenizer).__name__}) is written in Python and has no tokenizer.json"
        raise UserError(f"{key}: {what}; convert it, or name another one with data.tokenizer")
    # transformers gives an empty tokenizer for a folder that lacks the tokenizer's files.
    if backend.get_vocab_size(with_added_tokens=False) == 0:
        raise UserError(f"{key}: {source} has no tokenizer (tokenizer.json); add it, or name one with data.tokenizer")
    if separates and separator_id(tokenizer) is None:
        raise UserError(f"{key}: the tokenizer of {source} has no bos_token and no eos_token to separate documents")
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig, key: str) -> None:
    """Raise a `UserError` if transformers reads a tokenizer in another way once it lies beside a model of this configuration.

    For some model types transformers uses a fixed tokenizer class and ignores the class that the folder names.
    """
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        read = AutoTokenizer.from_pretrained(folder)
    if _cut(read) != _cut(tokenizer):
        what = f"transformers reads it as {type(read).__name__} beside a model of type {config.model_type}, with other tokens"
        raise UserError([Problem(key, what, "give that type its own tokenizer, or choose another model_type")])


def _cut(tokenizer: PreTrainedTokenizerFast) -> tuple[list[str], list[int]]:
    """The pieces into which a text is cut before it is looked up, and its tokens."""
    backend, text = tokenizer.backend_tokenizer, _PROBE
    if backend.normalizer:
        text = backend.normalizer.normalize_str(text)
    pieces = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer else [(text, None)]
    return [piece for piece, _ in pieces], tokenizer(_PROBE)["input_ids"]


def separator_id(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The token put before every document: the tokenizer's beginning-of-text, else its end-of-text."""
    token: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return token
