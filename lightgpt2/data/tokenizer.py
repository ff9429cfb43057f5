"""Tokenizers: trained on a corpus, or cut down to the tokens that a corpus uses."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lightgpt2.errors import UserError
from lightgpt2.models.files import atomic_folder, write_checksums
from lightgpt2.models.saving import save_tokenizer

END_OF_TEXT = "<|endoftext|>"
CHARACTERS = "characters"  # the name of a tokenizer of the characters of the training text
_UNKNOWN = "\ufffd"
_BART = ("<s>", "<pad>", "</s>", "<unk>")  # in the order of their ids


def other_token(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """The first id that means one token to a tokenizer and another to a second one, in words; None if there is none.

    Tokens that were added may differ, special ones above all: a chat model names some anew.
    """
    added, theirs = one.get_added_vocab(), {id_: token for token, id_ in other.get_vocab().items()}
    ordinary = ((id_, token) for token, id_ in one.get_vocab().items() if token not in added)
    wrong = min(((id_, token) for id_, token in ordinary if theirs.get(id_, token) != token), default=None)
    return wrong and f"{wrong[0]} is {wrong[1]!r} in the one and {theirs[wrong[0]]!r} in the other"


def separates_pairs(tokenizer: PreTrainedTokenizerFast) -> bool:
    """True if a tokenizer marks where the second text of a pair begins."""
    together = [id_ for text in ("a", "b") for id_ in tokenizer(text, add_special_tokens=False)["input_ids"]]
    ids, count = tokenizer("a", "b")["input_ids"], len(together)
    return all(ids[start : start + count] != together for start in range(len(ids) - count + 1))


def train_tokenizer(documents: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train a GPT-2-style tokenizer and write it, atomically, as a folder that transformers loads.

    The 256 bytes and the end-of-text token count in `vocab_size`.
    """
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(documents, vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT),
    )
    with atomic_folder(folder) as temporary:
        save_tokenizer(tokenizer, temporary)
        write_checksums(temporary)


def train_characters(documents: Iterable[str], vocab_size: int | None, folder: Path) -> None:
    """Learn an alphabet and write it, atomically, as the folder of a tokenizer with one token for each character.

    Text comes back as it was but for characters that are not in the alphabet, each of which is U+FFFD. `vocab_size`: at most so
    many tokens, the end-of-text token and U+FFFD among them; the commonest characters stay. None: all do.
    """
    counts = Counter[str]()
    for document in documents:
        counts.update(document)
    special = [END_OF_TEXT, _UNKNOWN]
    most = None if vocab_size is None else vocab_size - len(special)
    common = sorted((c for c in counts if c not in special), key=lambda character: (-counts[character], character))
    alphabet = {token: id_ for id_, token in enumerate([*special, *sorted(common[:most])])}
    backend = Tokenizer(WordLevel(alphabet, unk_token=_UNKNOWN))
    backend.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = Fuse()
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=_UNKNOWN, **names)
    with atomic_folder(folder) as temporary:
        save_tokenizer(tokenizer, temporary)
        write_checksums(temporary)


def train_wordpiece(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train a BERT-style tokenizer, which knows no capitals, and write it, atomically, as a folder that transformers loads.

    The special tokens and the alphabet count in `vocab_size`.
    """
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(texts, vocab_size=vocab_size, show_progress=False)
    with atomic_folder(folder) as temporary:
        save_tokenizer(BertTokenizer(vocab=trained.get_vocab()), temporary)
        write_checksums(temporary)


def train_text_to_text(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train a tokenizer for encoder-decoders, byte-level with BART's special tokens, and write it, atomically, as a folder.

    The 256 bytes and the special tokens count in `vocab_size`.
    """
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=[*_BART], show_progress=False)
    start, pad, end, unknown = _BART
    backend = bpe._tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(token, _BART.index(token)) for token in (start, end)]
    )
    special = {"bos_token": start, "pad_token": pad, "eos_token": end, "unk_token": unknown}
    with atomic_folder(folder) as temporary:
        save_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **special), temporary)
        write_checksums(temporary)


def check_trims(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise a `UserError` if a tokenizer is not of a kind that `trimmed` can cut."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(backend.to_str()) if backend else {"model": {}}
    model = parts["model"]
    if model.get("type") == "WordPiece":
        return
    whole = not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
    bytewise = all('"ByteLevel"' in json.dumps(parts.get(name)) for name in ("pre_tokenizer", "decoder"))
    if not (model.get("type") == "BPE" and whole and bytewise):
        raise UserError(
            f"model.vocabulary: only byte-level BPE (as GPT-2's) and WordPiece (BERT's) can be cut down, and this is "
            f"{type(tokenizer).__name__} ({model.get('type', 'no')} model); remove model.vocabulary"
        )


def trimmed(tokenizer: PreTrainedTokenizerFast, used: Iterable[int]) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """Cut a tokenizer down to the tokens that are used; also returns the old id of each token, in the old order.

    Text of tokens that are used is cut exactly as before, and any other text can still be encoded.

    Byte-level BPE keeps those tokens, whatever they are merged from, the bytes, all special and added tokens, and the merges
    among what it keeps. BPE always applies the first merge of the list that fits. On text of used tokens each one that the old
    tokenizer applied is still there, and no other comes before it: every step is the same. Other text ends in smaller pieces,
    at worst single bytes.

    WordPiece keeps those tokens, all characters, and all special and added tokens. It takes the longest token that a word
    begins with, again and again: on text of used tokens that is still there, and none that is longer.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = parts["model"], parts["added_tokens"]
    old: dict[str, int] = model["vocab"]
    wanted = {*used, *tokenizer.all_special_ids}
    prefix = model.get("continuing_subword_prefix") or ""
    characters = ByteLevel.alphabet() if "merges" in model else [t for t in old if len(t.removeprefix(prefix)) == 1]
    always = {*characters, model["unk_token"], *(token["content"] for token in added)}
    kept = {token for token, id_ in old.items() if id_ in wanted or token in always}
    if "merges" in model:
        kept = _with_their_parts(kept, model["merges"])
    ids = sorted({old[token] for token in kept} | {token["id"] for token in added})
    new = {id_: index for index, id_ in enumerate(ids)}
    model["vocab"] = {token: new[id_] for token, id_ in old.items() if token in kept}
    if "merges" in model:
        model["merges"] = [[a, b] for a, b in model["merges"] if {a, b, a + b} <= kept]
    for token in added:
        token["id"] = new[token["id"]]
    _renumber(parts["post_processor"], new)
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        Path(folder, "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")
        smaller = type(tokenizer).from_pretrained(folder)
    renumbered = {token: new[id_] for token, id_ in tokenizer.get_vocab().items() if id_ in new}
    assert smaller.get_vocab() == renumbered, "the smaller tokenizer is not read as it was written"
    return smaller, ids


def _with_their_parts(tokens: set[str], merges: list[list[str]]) -> set[str]:
    """The tokens, those that they are merged from, and so on."""
    made_from = defaultdict[str, set[str]](set)
    for a, b in merges:
        made_from[a + b] |= {a, b}
    found, todo = set(tokens), list(tokens)
    while todo:
        parts = made_from[todo.pop()] - found
        found |= parts
        todo += parts
    return found


def _renumber(processor: dict[str, Any] | None, new: dict[int, int]) -> None:
    """Give the special tokens that a post-processor adds their new ids."""
    for part in (processor or {}).get("processors", [processor or {}]):  # those of a sequence
        for token in part.get("special_tokens", {}).values():
            token["ids"] = [new[id_] for id_ in token["ids"]]
        for name in {"sep", "cls"} & part.keys():
            part[name][1] = new[part[name][1]]
