"""Texts of encoder-decoders: the tokens of transformers' `generate`, whatever runs the model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

import lightgpt2
from lightgpt2.cli.verbs import run as run_verb
from lightgpt2.conversions.onnx.encoder_decoder import TargetDecoder
from lightgpt2.conversions.onnx.writer import Forms
from lightgpt2.errors import UserError
from lightgpt2.models.loading import load_model
from lightgpt2.runtime.onnx_encoder_decoder import OnnxEncoderDecoder
from lightgpt2.runtime.text_to_text import TextToText
from lightgpt2.runtime.transformers_encoder_decoder import TransformersEncoderDecoder
from tests.conversions.test_onnx_encoder_decoder import sources, talkative, written
from tests.support.models import write_model, write_tokenizer
from tests.support.onnx_decoder import seal

ENDS = [2, *range(20, 40)]  # so many that some beams end at each step
SEARCHES: list[dict[str, Any]] = [
    {},
    {"num_beams": 4},
    {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 3, "length_penalty": -1.0, "early_stopping": "never"},
    {"num_beams": 2, "length_penalty": 1.5, "early_stopping": "never", "no_repeat_ngram_size": 2},
    {"num_beams": 4, "min_new_tokens": 8, "no_repeat_ngram_size": 3, "early_stopping": True},
    {"min_new_tokens": 5, "no_repeat_ngram_size": 2},
    {"num_beams": 5, "repetition_penalty": 1.3},
    {"num_beams": 4, "min_length": 6, "forced_bos_token_id": 7, "forced_eos_token_id": 2, "length_penalty": 0.6},
    {"forced_eos_token_id": 9},
    {"num_beams": 4, "begin_suppress_tokens": [5, 6], "suppress_tokens": [8], "bad_words_ids": [[3, 4], [10]]},
    {"num_beams": 2, "begin_suppress_tokens": [5, 6], "forced_bos_token_id": 7},
]
NAMES = {"no_repeat_ngram_size": "no_repeat_ngram"}
OF_FOLDERS = (
    "min_length",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "begin_suppress_tokens",
    "suppress_tokens",
    "bad_words_ids",
)


@pytest.mark.slow
@pytest.mark.parametrize("ends", [[2], ENDS], ids=["late", "soon"])
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_tokens_are_those_of_generate(tmp_path: Path, family: str, ends: list[int]) -> None:
    """Greedy and by beams, with every setting that a folder or a person may give, in ONNX and in PyTorch."""
    model = talkative(family)
    engines = [OnnxEncoderDecoder(written(tmp_path, model), 1), TransformersEncoderDecoder(model)]
    ids, mask = sources([30, 9, 1, 17])
    tensors = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    stopped = 0
    for search in SEARCHES:
        settings = {"max_new_tokens": 20, "eos_token_id": ends, **search}
        with torch.inference_mode():
            found = model.generate(**tensors, do_sample=False, **settings)[:, 1:].tolist()
        cuts = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in found]
        wanted = [row[:cut] for row, cut in zip(found, cuts, strict=True)]
        stopped += sum(row[-1] in ends for row in wanted)
        folder = {**model.generation_config.to_dict(), **{k: settings[k] for k in settings if k in OF_FOLDERS}}
        folder["eos_token_id"] = ends
        options = {NAMES.get(k, k): v for k, v in settings.items() if k not in (*OF_FOLDERS, "eos_token_id")}
        for engine in engines:
            made = TextToText(
                engine, Tokenizer.from_str(write_tokenizer(tmp_path).backend_tokenizer.to_str()), folder, 1
            )
            assert made.tokens(ids, mask, options) == wanted, search
    assert stopped or ends == [2]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["onnx", "transformers"])
def test_sources_of_which_no_sequence_goes_on_are_dropped(tmp_path: Path, kind: str, beams: int) -> None:
    model = talkative("bart")
    engine: Any = (
        OnnxEncoderDecoder(written(tmp_path, model), 1) if kind == "onnx" else TransformersEncoderDecoder(model)
    )
    lengths, random = [30, 9, 1, 17], np.random.default_rng(0)
    ids, mask = sources(lengths)
    engine.prefill(ids, mask, np.full((4, 1), 2))
    targets, begun = np.full((4, 1), 2), np.arange(4)  # and the source of each
    found = []
    for left in ([0, 1, 2, 3], [0, 1, 3], [1, 3], [1, 3], [3]):
        candidates = [np.flatnonzero(begun == source) for source in left]
        rows = np.concatenate([random.choice(each, beams) for each in candidates])
        tokens = random.integers(3, 300, len(rows))
        targets, begun = np.concatenate([targets[rows], tokens[:, None]], axis=1), begun[rows]
        found.append((targets, begun, engine.decode(tokens, rows).copy()))
    for targets, begun, logits in found:
        for row, source, values in zip(targets, begun, logits, strict=True):
            read = slice(source, source + 1), slice(lengths[source])
            wanted = engine.logits(ids[read], mask[read], row[None])[0, -1]
            np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-4)


class Chatter:
    """An engine whose next token is anything, by its source and the tokens so far; it counts the rows that it computes."""

    vocabulary, context = 300, None

    def __init__(self) -> None:
        self.rows = 0

    def prefill(self, ids: Any, mask: Any, start: Any) -> Any:
        self._texts = [(int(source[0]), *map(int, row)) for source, row in zip(ids, start, strict=True)]
        return self._logits()

    def decode(self, tokens: Any, rows: Any = None) -> Any:
        rows = range(len(self._texts)) if rows is None else rows
        self._texts = [(*self._texts[row], int(token)) for row, token in zip(rows, tokens, strict=True)]
        return self._logits()

    def _logits(self) -> Any:
        self.rows += len(self._texts)
        return np.stack([np.random.default_rng(text).normal(size=self.vocabulary) for text in self._texts])


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("stop", ["never", True, False])
def test_texts_that_are_done_are_computed_no_longer(tmp_path: Path, beams: int, stop: bool | str) -> None:
    tokenizer = Tokenizer.from_str(write_tokenizer(tmp_path).backend_tokenizer.to_str())
    folder = {"decoder_start_token_id": 2, "eos_token_id": ENDS, "early_stopping": stop}
    engine = Chatter()
    runner = TextToText(engine, tokenizer, folder, 1)
    options = {"num_beams": beams, "max_new_tokens": 40}
    ids = np.arange(10, 18)[:, None]
    alone = []
    for row in ids:
        alone += runner.tokens(row[None], np.ones((1, 1), np.int64), options)
    computed, engine.rows = engine.rows, 0
    assert runner.tokens(ids, np.ones_like(ids), options) == alone
    assert engine.rows == computed
    assert len({*map(len, alone)}) > 2, "all are done at the same time"


def export_of(source: Path, folder: Path, forms: Forms | None = None) -> Path:
    """An exported folder as `lightgpt2 export` leaves it, but for the verification."""
    folder.mkdir()
    model = load_model(str(source), "m")
    TargetDecoder.into(folder, model, forms or Forms())
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    seal(folder, {"format": "onnx"})
    return folder


TEXTS = [
    "The assert statement",
    "A class definition defines a class object, see there. " * 3,
    "if x",
    "for a in b: pass",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model's folder, and its exports."""
    root = tmp_path_factory.mktemp("seq2seq")
    write_tokenizer(root / "m")
    model = talkative("bart", max_position_embeddings=80)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=2, eos_token_id=ENDS, pad_token_id=1, max_length=25, num_beams=3, no_repeat_ngram_size=3
    )
    model.save_pretrained(root / "m")
    int8 = Forms(TargetDecoder.int8, TargetDecoder.int8_vocabulary)
    return {
        "m": root / "m",
        "onnx": export_of(root / "m", root / "onnx"),
        "int8": export_of(root / "m", root / "int8", int8),
    }


@pytest.mark.parametrize("name", ["m", "onnx"])
def test_texts_are_those_of_transformers_with_the_folders_settings(folders: dict[str, Path], name: str) -> None:
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folders["m"]), AutoTokenizer.from_pretrained(folders["m"])
    wanted = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=80)
        tokens = model.generate(input_ids=ids["input_ids"])[0, 1:].tolist()
        wanted.append(tokenizer.decode(tokens[:-1] if tokens[-1] in ENDS else tokens))
    loaded = lightgpt2.load(folders[name], threads=1)
    assert isinstance(loaded, TextToText)
    assert loaded.generate(TEXTS) == wanted
    assert loaded.generate(TEXTS[1]) == wanted[1]


@pytest.mark.parametrize("name", ["onnx", "int8"])
@pytest.mark.parametrize("beams", [1, 4])
def test_a_text_is_the_same_in_any_batch(folders: dict[str, Path], name: str, beams: int) -> None:
    loaded = lightgpt2.load(folders[name], threads=1)
    options = {"num_beams": beams, "max_new_tokens": 15}
    alone = [loaded.generate(text, **options) for text in TEXTS]
    assert loaded.generate(TEXTS, **options) == alone
    assert len({*alone}) > 1


def test_pieces_are_shown_while_they_come_and_a_stop_text_ends_a_text(folders: dict[str, Path]) -> None:
    loaded = lightgpt2.load(folders["onnx"], threads=1)
    pieces: list[str] = []
    greedy = {"num_beams": 1, "max_new_tokens": 15}
    whole = loaded.generate(TEXTS[0], on_text=lambda _, piece: pieces.append(piece), **greedy)
    assert "".join(pieces) == whole
    assert len(pieces) > 1
    (done,) = loaded.texts([TEXTS[0]], {**greedy, "stop": whole[2:4]})
    assert (done.text, done.finish_reason) == (whole[: whole.index(whole[2:4])], "stop")
    pieces.clear()
    whole = loaded.generate(TEXTS[0], on_text=lambda _, piece: pieces.append(piece))
    assert "".join(pieces) == whole


def test_a_text_that_is_too_long_is_cut_off_and_that_is_said(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = lightgpt2.load(folders["onnx"], threads=1)
    assert loaded.generate("word " * 200) == loaded.generate("word " * 300)
    assert "1 of 1 texts are longer than 80 tokens and cut off there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_beams": 0}, "num_beams: must be at least 1, got 0"),
        ({"temperature": 0.5}, "num_beams: must be 1 at a temperature above 0, which samples, got 3"),
        ({"stop": "x"}, "stop: must be left out with 3 beams"),
        ({"num_beams": 1, "length_penalty": 2.0}, "length_penalty: must be left out with 1 beam"),
        ({"early_stopping": "soon"}, "early_stopping: must be true, false or never, got soon"),
        ({"min_new_tokens": 9, "max_new_tokens": 4}, "min_new_tokens: must be at most max_new_tokens, 4, got 9"),
        ({"length_penalty": float("nan")}, "length_penalty: must be a finite number"),
    ],
)
def test_options_that_do_not_fit_are_refused(folders: dict[str, Path], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        lightgpt2.load(folders["m"]).generate("text", **options)
    assert said in str(error.value)


def test_texts_that_are_none_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="prompt 2: must not be empty"):
        lightgpt2.load(folders["onnx"]).generate(["a", " "])


def test_a_model_without_a_first_token_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(folders["m"])
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id = settings.bos_token_id = None
    model.save_pretrained(tmp_path / "m")
    AutoTokenizer.from_pretrained(folders["m"]).save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match=r"which token its targets begin with \(decoder_start_token_id\); add it"):
        lightgpt2.load(tmp_path / "m")


def test_the_command_searches_with_beams_and_refuses_what_does_not_fit(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = lightgpt2.load(folders["onnx"], threads=1).generate(
        TEXTS[1], num_beams=4, length_penalty=0.5, min_new_tokens=3
    )
    asked = ["--prompt", TEXTS[1], "--num-beams", "4", "--length-penalty", "0.5", "--min-new-tokens", "3"]
    run_verb(["generate", str(folders["onnx"]), *asked, "--threads", "1"])
    assert capsys.readouterr().out == f"{wanted}\n"
    with pytest.raises(SystemExit):
        run_verb(["generate", str(folders["onnx"]), "--chat"])
    assert "--chat: " in capsys.readouterr().err
    write_model(tmp_path / "gpt2")
    with pytest.raises(SystemExit):
        run_verb(["generate", str(tmp_path / "gpt2"), "--prompt", "x", "--num-beams", "2"])
    said = "--num-beams: models that continue a text are not searched with beams here; remove it"
    assert said in capsys.readouterr().err


def test_logits_are_those_of_transformers(folders: dict[str, Path]) -> None:
    both = [lightgpt2.load(folders[name], threads=1) for name in ("m", "onnx")]
    ids, mask = sources([7, 12])
    targets = np.full((2, 4), 2)
    found = [each.logits(ids, mask, targets) for each in both]
    np.testing.assert_allclose(*found, atol=1e-4)
