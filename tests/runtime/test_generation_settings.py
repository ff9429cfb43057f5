"""What a folder's generation configuration asks for is done as transformers does it, or named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    MinPLogitsWarper,
    TypicalLogitsWarper,
)

import lightgpt2
from lightgpt2.errors import UserError
from lightgpt2.runtime.options import Settings, resolve
from lightgpt2.runtime.processors import _NOT_DONE, not_done
from lightgpt2.runtime.sampling import distribution, narrowed
from lightgpt2.runtime.text import Writer
from tests.support.models import write_model
from tests.support.onnx_decoder import seal, write_decoder

PROMPTS = ["The assert statement", "x = y", "A"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="module")
def first(folder: Path) -> list[int]:
    """The tokens that the model adds to the first prompt."""
    return continued(folder, {}, PROMPTS[0])


def continued(folder: Path, settings: dict[str, Any], prompt: str) -> list[int]:
    plain, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
    encoded = tokenizer(prompt, return_tensors="pt")
    asked = {} if settings.keys() & {"max_length", "max_new_tokens"} else {"max_new_tokens": 16}
    config = GenerationConfig(pad_token_id=0, **{"eos_token_id": 0, **settings})
    whole = plain.generate(**encoded, generation_config=config, tokenizer=tokenizer, **asked)[0]
    found: list[int] = whole[encoded["input_ids"].shape[1] :].tolist()
    return found


# `0` to `9` stand for the tokens that the model would add, one after the other.
SETTINGS: dict[str, dict[str, Any]] = {
    "max_length": {"max_length": 20},
    "max_length and max_new_tokens": {"max_length": 12, "max_new_tokens": 9},
    "min_new_tokens": {"min_new_tokens": 9, "eos_token_id": ["2"]},
    "min_length": {"min_length": 16, "eos_token_id": ["1", "2"]},
    "several ends": {"eos_token_id": ["3", "4"]},
    "bad words": {"bad_words_ids": [["0"], ["1", "2"]]},
    "bad words that are an end": {"bad_words_ids": [["2"]], "eos_token_id": ["2"]},
    "suppressed": {"suppress_tokens": ["0", "3"]},
    "suppressed at first": {"begin_suppress_tokens": ["0"]},
    "forced end": {"forced_eos_token_id": 7, "max_new_tokens": 6},
    "biases": {"sequence_bias": [[["0"], -30.0], [["1", "2"], -30.0]]},
    "drawn to an end": {"exponential_decay_length_penalty": [2, 1.5], "eos_token_id": 40},
    "penalties and all": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "suppress_tokens": ["0"], "min_length": 9},
    "one most likely token": {"do_sample": True, "min_p": 0.999},
}  # fmt: skip


def with_tokens(value: Any, tokens: list[int]) -> Any:
    """A setting with the model's own tokens in the place of digits."""
    if isinstance(value, list):
        return [with_tokens(each, tokens) for each in value]
    return tokens[int(value)] if isinstance(value, str) else value


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_text_is_that_of_transformers(folder: Path, first: list[int], settings: dict[str, Any], prompt: str) -> None:
    settings = {name: with_tokens(value, first) for name, value in settings.items()}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0} | settings))
    asked = {} if settings.keys() & {"max_length", "max_new_tokens"} else {"max_new_tokens": 16}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = tokenizer.decode(
        [token for token in continued(folder, settings, prompt) if token not in _ends(settings)],
        skip_special_tokens=True,
    )
    assert lightgpt2.load(folder).generate(prompt, **asked) == wanted


def _ends(settings: dict[str, Any]) -> list[int]:
    ends = settings.get("eos_token_id", 0)
    return ends if isinstance(ends, list) else [ends]


def test_a_stop_string_ends_a_text_with_its_token_as_in_transformers(folder: Path, first: list[int]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stop = tokenizer.decode(first[3:5])
    (folder / "generation_config.json").write_text(json.dumps({"stop_strings": stop, "eos_token_id": 0}))
    wanted = tokenizer.decode(continued(folder, {"stop_strings": stop}, PROMPTS[0]), skip_special_tokens=True)
    pieces: list[str] = []
    model = lightgpt2.load(folder)
    assert model.generate(PROMPTS[0], max_new_tokens=16) == wanted
    model.generate(PROMPTS[0], max_new_tokens=16, on_text=lambda _, piece: pieces.append(piece))
    assert "".join(pieces) == wanted


def test_a_stop_string_inside_a_token_leaves_the_token_whole(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    long = max((token for token in tokenizer.get_vocab() if token.isalpha() and token.isascii()), key=len)
    writer = Writer(tokenizer.backend_tokenizer, [], stop_strings=[long[:2]])
    writer.add(tokenizer.convert_tokens_to_ids(long))
    assert writer.stopped
    assert writer.finish() == long


def test_a_prompt_as_long_as_the_folder_s_max_length_is_refused(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"max_length": 3}))
    with pytest.raises(
        UserError, match=r"^prompt: must be shorter than the max_length .* 3, got \d+ tokens; give max_new"
    ):
        lightgpt2.load(folder).generate(PROMPTS[0])
    assert lightgpt2.load(folder).generate(PROMPTS[0], max_new_tokens=2)


WARPERS: dict[str, Any] = {
    "min_p": (0.2, MinPLogitsWarper(0.2)),
    "typical_p": (0.4, TypicalLogitsWarper(0.4)),
    "epsilon_cutoff": (0.01, EpsilonLogitsWarper(0.01)),
    "eta_cutoff": (0.1, EtaLogitsWarper(0.1)),
    "epsilon_cutoff that leaves one": (0.9, EpsilonLogitsWarper(0.9)),
}


@pytest.mark.parametrize(
    ("name", "value", "warper"), [(n.split()[0], *pair) for n, pair in WARPERS.items()], ids=WARPERS
)
def test_what_may_be_sampled_is_what_transformers_leaves(name: str, value: float, warper: LogitsProcessor) -> None:
    random = np.random.default_rng(0)
    settings = resolve({"temperature": 1.0, "top_k": 0}, {name: value})
    for _ in range(20):
        logits = (random.standard_normal(200) * 2).astype(np.float32)
        wanted = warper(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(logits)[None].double()).softmax(-1)[0]
        ids, weights = narrowed(*distribution(logits, 1.0), settings)
        assert set(ids.tolist()) == set(torch.nonzero(wanted).flatten().tolist())
        np.testing.assert_allclose(weights, wanted[ids], rtol=1e-5)


@pytest.mark.parametrize("name", _NOT_DONE)
def test_what_is_not_done_is_named(name: str) -> None:
    assert not_done({name: 3}) == [name]
    assert not_done({name: _NOT_DONE[name]}) == not_done({name: None}) == []


def test_every_setting_of_transformers_is_known() -> None:
    """A new one of transformers shows here: it is done, named, or changes no text of a decoder."""
    done = {
        "max_length", "max_new_tokens", "min_length", "min_new_tokens", "stop_strings", "do_sample", "temperature", "top_k",
        "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty", "no_repeat_ngram_size",
        "bad_words_ids",
        "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "suppress_tokens",
        "begin_suppress_tokens", "sequence_bias", "eos_token_id",
    }  # fmt: skip
    of_beams = {"early_stopping", "length_penalty"}
    no_other_text = {
        "renormalize_logits", "remove_invalid_values", "pad_token_id", "bos_token_id", "decoder_start_token_id", "low_memory",
        "return_dict_in_generate", "max_matching_ngram_size", "prefill_chunk_size", "disable_compile", "use_mtp",
        "speculation_type", "target_lookbehind", "num_assistant_tokens", "num_assistant_tokens_schedule",
        "continuous_batching_config", "compile_config", "is_assistant", "transformers_version",
    }  # fmt: skip
    beginnings = ("_", "output_", "use_cache", "cache_", "max_cache", "assistant_", "transformers")
    known = done | of_beams | no_other_text | {*_NOT_DONE}
    assert [
        name for name in GenerationConfig().to_dict() if name not in known and not name.startswith(beginnings)
    ] == []


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_it_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    folder = write_model(tmp_path / "m") if kind == "torch" else write_decoder(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"num_beams": 4, "penalty_alpha": 0.6}))
    lightgpt2.load(folder)
    said = f"lightgpt2: {folder}: num_beams, penalty_alpha in its generation_config.json is not followed here\n"
    assert said in capsys.readouterr().err


WRONG = [
    {"temperature": "1", "do_sample": True}, {"repetition_penalty": "1.2"}, {"bad_words_ids": [[]]}, {"top_k": -1},
    {"exponential_decay_length_penalty": 3}, {"min_p": 2.0}, {"typical_p": 0.0}, {"stop_strings": [""]},
]  # fmt: skip


@pytest.mark.parametrize("settings", WRONG)
def test_settings_that_cannot_be_followed_are_refused_in_one_line(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = write_decoder(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"generation_config\.json") as refused:
        lightgpt2.load(folder)
    assert len(refused.value.problems) == 1


def test_a_folder_without_settings_changes_nothing() -> None:
    settings = resolve({}, {})
    assert settings == Settings()


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_tokenizer_with_a_token_that_the_model_lacks_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    folder = write_model(tmp_path / "m") if kind == "torch" else write_decoder(tmp_path / "m")
    file = folder / "tokenizer.json"
    parts = json.loads(file.read_text())
    vocabulary = parts["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[last] += 40  # a gap: there are no more tokens than before
    file.write_text(json.dumps(parts))
    if kind == "onnx":
        seal(folder, {"format": "onnx"})
    with pytest.raises(UserError, match=r"^MODEL: the tokenizer of .* has 340 tokens and the model 300; give"):
        lightgpt2.load(folder)
