"""onnxruntime-genai runs exported decoders as they are; skipped where the package is missing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from lightgpt2.conversions.onnx.genai import write_genai_config
from lightgpt2.models.families import DECODERS
from lightgpt2.models.loading import load_model
from tests.support.models import LONG_HEADS, make_restless_model, shake, write_tokenizer, write_uneven_model
from tests.support.onnx_client import write_onnx

PROMPTS = [[5, 77, 31, 200, 8, 9, 14, 60], [41, 250, 3, 17, 99, 120, 7, 33], [41, 250, 3]]
NEW = 12


@pytest.fixture
def og() -> Any:
    return pytest.importorskip("onnxruntime_genai")


def written(og: Any, folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """The new tokens of prompts of one length in one batch, as onnxruntime-genai's own loop writes them."""
    model, length = og.Model(str(folder)), len(prompts[0])
    settings = og.GeneratorParams(model)
    settings.set_search_options(max_length=length + NEW, batch_size=len(prompts))
    generator = og.Generator(model, settings)
    generator.append_tokens(np.array(prompts, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [[*map(int, generator.get_sequence(row)[length:])] for row in range(len(prompts))]


def expected(model: PreTrainedModel, ids: list[int]) -> list[int]:
    """The greedy tokens of transformers, up to the end-of-text token."""
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    (tokens,) = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), **options)
    return [*map(int, tokens[len(ids) :])]


def assert_same(og: Any, folder: Path, model: PreTrainedModel) -> None:
    wanted = [expected(model, ids) for ids in PROMPTS]
    for batch in ([0], [2], [0, 1]):
        found = written(og, folder, [PROMPTS[row] for row in batch])
        assert [tokens[: len(wanted[row])] for row, tokens in zip(batch, found, strict=True)] == [
            wanted[row] for row in batch
        ]


@pytest.mark.parametrize("family", DECODERS)
def test_it_writes_the_tokens_of_the_model(og: Any, tmp_path: Path, family: str) -> None:
    model = make_restless_model(family, **LONG_HEADS.get(family, {}))
    write_onnx(model, tmp_path)
    write_genai_config(model, tmp_path)
    assert_same(og, tmp_path, model)


def test_layers_with_fewer_heads_and_with_none(og: Any, tmp_path: Path) -> None:
    model = load_model(str(write_uneven_model(tmp_path / "source")), "model").eval()
    shake(model)
    write_onnx(model, tmp_path / "graph")
    write_genai_config(model, tmp_path / "graph")
    assert_same(og, tmp_path / "graph", model)


def test_its_tokenizer_reads_the_folder_s(og: Any, tmp_path: Path) -> None:
    model, tokenizer = make_restless_model("gpt2"), write_tokenizer(tmp_path)
    write_onnx(model, tmp_path)
    model.config.save_pretrained(tmp_path)
    write_genai_config(model, tmp_path)
    theirs = og.Tokenizer(og.Model(str(tmp_path)))
    text = "The assert statement isn't naïve — 12345.\n"
    assert [*map(int, theirs.encode(text))] == tokenizer(text)["input_ids"]
    assert theirs.decode(np.array(tokenizer(text)["input_ids"], np.int32)) == text


def test_the_folder_s_generation_settings_and_ends_are_said(tmp_path: Path) -> None:
    model = make_restless_model("llama")
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=20, eos_token_id=[0, 7])
    write_genai_config(model, tmp_path)
    said = json.loads((tmp_path / "genai_config.json").read_text())
    assert said["search"] == {
        "do_sample": True, "temperature": 0.7, "top_k": 20, "max_length": 64, "past_present_share_buffer": True,
    }  # fmt: skip
    assert said["model"]["eos_token_id"] == [0, 7]
    assert said["model"]["decoder"]["num_key_value_heads"] == 2
