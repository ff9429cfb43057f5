"""Small tokenizers of the kinds that models have, with every byte or every character of some text."""

from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

_SENTENCE = "the pump valve shall open close when pressure is above below limit of bar and motor starts stops"
_WORDS = _SENTENCE.split()
_CHARACTERS = " .'?!▁" + "".join(sorted({*"".join(_WORDS)})) + "éß日本"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> Tokenizer:
    """As GPT-2's: tokens are bytes, or merged from them; two end inside a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([" ".join(_WORDS), *["日本 日月 🙂🙃" * 3] * 9], trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2's: what is outside the vocabulary is a row of bytes, and a space before the first word is dropped."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *_BYTES, *"▁thepumso.日"])}
    model = models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def unigram() -> Tokenizer:
    """As SentencePiece's unigram models, with byte fallback and no space added."""
    pieces = ["<unk>", *_BYTES, "▁", *(f"▁{word}" for word in _WORDS), *dict.fromkeys(_CHARACTERS.replace("▁", ""))]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0 - len(piece) / 99) for piece in pieces], 0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """As SentencePiece's BPE models without byte fallback."""
    pieces = ["<unk>", *(f"▁{word}" for word in _WORDS), *dict.fromkeys(_CHARACTERS)]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0 - len(piece) / 99) for piece in pieces], 0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def characters() -> Tokenizer:
    """A token for each character."""
    vocabulary = {character: index for index, character in enumerate(["<unk>", *dict.fromkeys(_CHARACTERS + "\ufffd")])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT's: pieces inside words begin with ##, and spaces before punctuation are dropped."""
    pieces = ["[UNK]", *_WORDS, *_CHARACTERS.replace(" ", ""), *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz日")]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return tokenizer


def end_of_word() -> Tokenizer:
    """As the first GPT's: the last piece of a word is marked."""
    pieces = ["<unk>", *(f"{word}</w>" for word in _WORDS), *"abcdefghij日", *(f"{c}</w>" for c in "abcdefghij日")]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder("</w>")
    return tokenizer


def added() -> Tokenizer:
    """Byte-level, with tokens that were added, ordinary ones and special ones."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("a b", normalized=False), "日本語", "Ġ"])
    tokenizer.add_special_tokens(["<|im_start|>", "<0x41>"])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    make.__name__: make
    for make in (byte_level, byte_fallback, unigram, sentencepiece, characters, word_piece, end_of_word, added)
}
