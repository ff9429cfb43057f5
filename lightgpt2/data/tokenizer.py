"""A byte-level BPE tokenizer trained on a corpus, for models that start from nothing."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from lightgpt2.models.files import atomic_folder

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(documents: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Trains a GPT-2-style tokenizer and writes it as a folder that transformers loads.

    Args:
        documents: Texts to learn from.
        vocab_size: Number of tokens, the 256 bytes and the end-of-text token among them.
        folder: Target, written atomically.
    """
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(documents, vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
    )
    with atomic_folder(folder) as temporary:
        tokenizer.save_pretrained(temporary)
