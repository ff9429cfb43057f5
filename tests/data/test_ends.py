"""The end of a document is learnt, with any tokenizer and in both modes, and is no part of what is scored."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, PreTrainedTokenizerFast

import lightgpt2
from lightgpt2.data import LanguageModelingData
from lightgpt2.data.base import Connection
from lightgpt2.data.batches import Slice, WindowDataset
from lightgpt2.data.encoding import Encoder
from lightgpt2.data.store import TokenSplit
from lightgpt2.data.windows import Windows, document_windows, packed_windows, prompt_windows
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.models.loading import new_model
from tests.support.cli import write_config
from tests.support.mistakes import spoilt
from tests.support.models import SHAPES, write_tokenizer
from tests.support.text import built, letters

_SEPARATOR, _END = 1000, 1001
WORDS = ("pump", "valve", "motor", "limit", "pressure", "bar")
SIZES = [3, 1, 10, 9, 4, 20]  # tokens of the documents' texts


def stream(closing: int) -> TokenSplit:
    """Documents of `SIZES` tokens, each behind a separator, and before an end where there is one."""
    parts, place = [], 0
    for size in SIZES:
        parts += [_SEPARATOR, *range(place, place + size), *[_END] * closing]
        place += size
    offsets = np.cumsum([0, *(size + 1 + closing for size in SIZES)])
    return TokenSplit(np.array(parts, np.uint16), offsets, offsets[1:] - closing, *[np.array(SIZES)] * 2)


def labels(split: TokenSplit, windows: Windows) -> list[int]:
    batch = WindowDataset(split, windows, _SEPARATOR)[Slice(np.arange(len(windows)))]
    found: list[int] = batch["labels"][batch["labels"] != IGNORE].tolist()
    assert len(found) == (windows.lengths - windows.scored).sum()
    return found


@pytest.mark.parametrize(("closing", "end"), [(0, _SEPARATOR), (1, _END)])
@pytest.mark.parametrize("length", [2, 3, 4, 5, 9, 10, 11, 40])
def test_padded_windows_ask_for_every_token_and_every_end_once(closing: int, end: int, length: int) -> None:
    found = labels(stream(closing), document_windows(stream(closing), length + 1, length, closed=True))
    assert sorted(found) == [*range(sum(SIZES)), *[end] * len(SIZES)]


@pytest.mark.parametrize(("closing", "end"), [(0, _SEPARATOR), (1, _END)])
def test_packed_windows_ask_for_ends(closing: int, end: int) -> None:
    found = labels(stream(closing), packed_windows(stream(closing), 6))
    assert found.count(end) >= len(SIZES) - 2


@pytest.mark.parametrize("closing", [0, 1])
@pytest.mark.parametrize("length", [2, 5, 10, 40])
def test_no_end_is_scored(closing: int, length: int) -> None:
    windows = document_windows(stream(closing), length, max(1, length // 2))
    assert sorted(labels(stream(closing), windows)) == [*range(sum(SIZES))]


@pytest.mark.parametrize("closing", [0, 1])
def test_no_end_is_in_a_prompt(closing: int) -> None:
    split = stream(closing)
    windows = prompt_windows(split, 8, 8)
    read = [split.tokens[s : s + n].tolist() for s, n in zip(windows.starts, windows.lengths, strict=True)]
    assert [len(each) for each in read] == [min(8, size + 1) for size in SIZES]
    assert not any(_END in each for each in read)


@pytest.mark.parametrize(("end", "closing"), [(None, 0), (7, 0), (8, 1)])
def test_a_store_keeps_the_end_where_it_is_not_the_separator(tmp_path: Path, end: int | None, closing: int) -> None:
    encoder = Encoder(letters().to_str(), 7, end, "uint16", None)
    split = built(tmp_path, {"train.txt": "ab\n\nd", "valid.txt": "c"}, encoder)[1]["train"]
    tail = [8] * closing
    assert split.tokens[:].tolist() == [7, 97, 98, *tail, 7, 100, *tail]
    assert split.ends.tolist() == [3, 5 + closing]


# -- through the data module -------------------------------------------------------------------------------------------


def tokenizer(folder: Path, **special: str) -> str:
    backend = Tokenizer.from_str(write_tokenizer(folder / "first").backend_tokenizer.to_str())
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder / "tokenizer")
    return str(folder / "tokenizer")


KINDS = {
    "one token": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "two tokens": {"bos_token": "<s>", "eos_token": "</s>"},
    "an end only": {"eos_token": "</s>"},
    "a beginning only": {"bos_token": "<s>"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["packed", "padded"])
def test_training_asks_for_the_end_of_each_text(
    kind: str, mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("\n\n".join(f"Item {i} stops." for i in range(60)))
    source = tokenizer(tmp_path, **KINDS[kind])
    data = LanguageModelingData("a.txt", sequence_length=24, batch_size=1, mode=mode)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        accumulate_grad_batches=1, global_rank=0, world_size=1, global_step=0, val_check_interval=1,
        check_val_every_n_epoch=None,
    )  # fmt: skip
    data.connect(Connection(source, "model.model"))
    data.prepare_data()
    data.setup("fit")
    words = PreTrainedTokenizerFast.from_pretrained(source)
    end = words.eos_token_id if words.eos_token_id is not None else words.bos_token_id
    batches = [*data.train_dataloader()]
    asked = sum(int((batch["labels"] == end).sum()) for batch in batches)
    documents = data.meta["splits"]["train"]["documents"]
    assert asked == documents if mode == "padded" else asked > documents / 2
    scored = [*data.scoring_loader("valid")]
    assert not any(bool((batch["labels"] == end).any()) for batch in scored)
    prompts, passages = data.prompts("valid", 9, 2), data.passages("valid", 9, 2, 99)
    assert all(end not in prompt[1:] for prompt in prompts)
    assert all(end not in following for _, following in passages)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "mode"), [("one token", "packed"), ("one token", "padded"), ("two tokens", "packed")])
def test_a_model_learns_to_stop(kind: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("\n\n".join(f"Item {i} {word} stops." for i in range(40) for word in WORDS))
    words = PreTrainedTokenizerFast.from_pretrained(tokenizer(tmp_path, **KINDS[kind]))
    words.save_pretrained("model")
    special = {"vocab_size": len(words), "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    torch.manual_seed(0)
    new_model(AutoConfig.for_model("gpt2", **SHAPES["gpt2"] | {"n_layer": 2}, **special)).save_pretrained("model")
    changes = {
        "model": {"class_path": "lightgpt2.methods.FineTune", "init_args": {"model": "model", "optimizer": {"lr": 0.01}}},
        "data.source": "a.txt", "data.mode": mode, "data.batch_size": 16, "trainer.max_steps": 150,
        "trainer.val_check_interval": 150,
    }  # fmt: skip
    lightgpt2.fit(write_config(Path("config.yaml"), spoilt(changes)), run="r")
    assert lightgpt2.load("checkpoints/r/model").generate("Item 7 valve", max_new_tokens=40) == " stops."
