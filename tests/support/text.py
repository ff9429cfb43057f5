"""The documents of a corpus as its data module has them, and as tokens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from lightgpt2.data import store
from lightgpt2.data.corpora import Corpus
from lightgpt2.data.documents import Document
from lightgpt2.data.encoding import Encoder
from lightgpt2.data.remarks import Remarks
from lightgpt2.data.splits import Split
from lightgpt2.data.splitter import Splitter
from lightgpt2.data.tokenizing import build


def split_documents(
    corpus: Corpus, valid_fraction: float, test_fraction: float, remarks: Remarks | None = None
) -> list[tuple[Split, Document]]:
    return [*Splitter([corpus], valid_fraction, test_fraction, remarks=remarks).documents()]


def letters(ids: Mapping[str, int] | None = None) -> Tokenizer:
    """A tokenizer whose tokens are characters: those of ASCII by their code, or others."""
    vocabulary = {"<unk>": 0} | {chr(code): code for code in range(9, 127)} | dict(ids or {})
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?m:.)"), "isolated")
    return tokenizer


def built(
    folder: Path, files: Mapping[str, str], encoder: Encoder, processes: int = 1
) -> tuple[dict[str, Any], dict[str, store.TokenSplit]]:
    """The store of some files, without what would be held out by a hash."""
    for name, content in files.items():
        (folder / "text" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "text" / name).write_text(content, encoding="utf-8")
    build(folder / "store", Splitter([Corpus(str(folder / "text"))], 0.0, 0.0), encoder, processes, [None])
    return store.read(folder / "store")
