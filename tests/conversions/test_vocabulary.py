"""A tokenizer whose ids have gaps: its largest id counts, not the number of its tokens."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lightgpt2.conversions.export import check_model
from lightgpt2.conversions.target import Format, Target
from lightgpt2.errors import UserError
from lightgpt2.models.vocabulary import needed_rows
from lightgpt2.starts import Fresh
from tests.support.mistakes import Bench
from tests.support.models import write_model
from tests.support.stages import stage

ROWS, LARGEST = 300, 339


def with_gap(folder: Path) -> PreTrainedTokenizerFast:
    """The folder's tokenizer, with the last id moved."""
    parts = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = parts["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = LARGEST
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def test_rows_are_counted_by_the_largest_id(tmp_path: Path) -> None:
    tokenizer = with_gap(write_model(tmp_path))
    assert (len(tokenizer), needed_rows(tokenizer), needed_rows(tokenizer.backend_tokenizer)) == (ROWS, 340, 340)
    data: Any = SimpleNamespace(tokenizer=tokenizer)
    model, _ = Fresh({"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 1}).build(data, False)
    assert model.config.vocab_size == LARGEST + 1


def test_the_place_of_an_image_needs_no_row(tmp_path: Path) -> None:
    """As in the tokenizer of Gemma 3, which its text models share."""
    tokenizer = AutoTokenizer.from_pretrained(write_model(tmp_path))
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image_soft_token>"]})
    assert (len(tokenizer), needed_rows(tokenizer)) == (ROWS + 1, ROWS)


def test_a_student_takes_what_its_class_knows_of_its_teacher(tmp_path: Path) -> None:
    file = write_model(tmp_path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"n_ctx": 64, "task_specific_params": {"a": 1}}))
    config = Fresh({"n_layer": 1}, like=str(tmp_path)).configs(False)["start.model"]
    assert (config.n_layer, config.vocab_size) == (1, ROWS)


@pytest.mark.parametrize("form", ["gguf", "onnx", "onnx-int8", "onnx-int4"])
def test_a_model_that_is_too_small_is_not_exported(tmp_path: Path, form: Format) -> None:
    with_gap(write_model(tmp_path))
    with pytest.raises(UserError, match=rf"^--format {form}: the tokenizer has 340 tokens and the model 300; give"):
        check_model(str(tmp_path), Target(form))


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_a_model_that_is_too_small_is_neither_trained_nor_scored(bench: Bench, verb: str) -> None:
    with_gap(Path("teacher"))
    bench.configure(stage("FineTune"))
    (message,) = bench.refuse(verb)
    assert message.startswith(
        "data.tokenizer: it has 340 tokens and the model of model.model has 300; use the model's own"
    )
