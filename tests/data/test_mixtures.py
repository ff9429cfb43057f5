"""Several sources and what one holds out of the others, near duplicates, streams, tokenizing: stopped, or in processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, PreTrainedTokenizerFast

import lightgpt2
from lightgpt2.data import LanguageModelingData, store, tokenizing
from lightgpt2.data.base import Connection
from lightgpt2.data.corpora import Corpus, corpora
from lightgpt2.data.encoding import Encoder
from lightgpt2.data.seen import Digests
from lightgpt2.data.splitter import Splitter
from lightgpt2.errors import UserError
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.loading import new_model
from lightgpt2.models.saving import save_model
from tests.support.cli import ENVIRONMENT, ROOT, write_config
from tests.support.mistakes import spoilt
from tests.support.models import SHAPES, write_tokenizer
from tests.support.text import built, letters

Files = dict[str, str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tokenizer(tmp_path / "tokenizer")
    return tmp_path


def write(files: Files) -> None:
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content, encoding="utf-8")


def prepared(source: Any, **given: Any) -> LanguageModelingData:
    values: dict[str, Any] = {"sequence_length": 16, "batch_size": 1, "valid_fraction": 0.2, "test_fraction": 0.0}
    data = LanguageModelingData(source, **values | {"tokenizer": "tokenizer"} | given)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        accumulate_grad_batches=1, global_rank=0, world_size=1, global_step=0, val_check_interval=1,
        check_val_every_n_epoch=None,
    )  # fmt: skip
    data.connect(Connection("tokenizer", "model.model"))
    assert not data.problems()
    data.prepare_data()
    data.setup("fit")
    return data


def paragraphs(word: str, count: int) -> str:
    return "\n\n".join(f"Item {n} of {word} is here, and {word} {n * 7} is there." for n in range(count))


def fed(data: LanguageModelingData) -> Counter[str]:
    """The tokens that an epoch takes from each source."""
    found: Counter[str] = Counter()
    for batch in data.train_dataloader():
        (source,) = batch["sources"]
        found[source] += int(batch["lengths"].sum())
    return found


# -- shares ------------------------------------------------------------------------------------------------------------

SIZES = {"a.txt": 300, "b.txt": 100, "c.txt": 30}


@pytest.mark.parametrize("mode", ["packed", "padded"])
@pytest.mark.parametrize("budget", [None, 3000, 60_000])
def test_weights_and_the_budget_decide_what_an_epoch_takes(here: Path, mode: str, budget: int | None) -> None:
    write({name: paragraphs(name[0], count) for name, count in SIZES.items()})
    weights = {"a": 1.0, "b": 2.0, "c": 1}
    source = [{"source": f"{name}.txt", "weight": weight} for name, weight in weights.items()]
    data = prepared(source, mode=mode, token_budget=budget)
    found = fed(data)
    total = sum(found.values())
    assert {name: pytest.approx(weight / 4, rel=0.1) for name, weight in weights.items()} == {
        name: count / total for name, count in found.items()
    }
    if budget:
        assert total == pytest.approx(budget, rel=0.03)
    else:  # the smallest source decides, and is taken once
        windows = next(iter(data.train_dataloader().order.dataset.windows.counts[2:]))  # type: ignore[union-attr]
        assert len([batch for batch in data.train_dataloader() if batch["sources"] == ["c"]]) == windows


def test_an_epoch_takes_other_parts_of_a_large_source_than_the_one_before(here: Path) -> None:
    write({name: paragraphs(name[0], count) for name, count in SIZES.items()})
    data = prepared([*SIZES], token_budget=2000)
    assert data.trainer
    taken = []
    for epoch in range(2):
        data.trainer.global_step = epoch * data.steps_per_epoch  # type: ignore[misc]
        taken.append({tuple(batch["input_ids"][0].tolist()) for batch in data.train_dataloader()})
    assert len(taken[0] & taken[1]) < 0.5 * len(taken[0])
    data.trainer.global_step = 0  # type: ignore[misc]
    assert {tuple(batch["input_ids"][0].tolist()) for batch in data.train_dataloader()} == taken[0]


def test_no_window_spans_two_sources(here: Path) -> None:
    write({name: paragraphs(name[0] * 9, count) for name, count in SIZES.items()})
    data = prepared([*SIZES])
    for batch in data.train_dataloader():
        text, (source,) = data.tokenizer.decode(batch["input_ids"][0]), batch["sources"]
        assert not any(name * 9 in text for name in "abc" if name != source)


def test_a_single_source_of_a_list_is_as_the_source_itself(here: Path) -> None:
    write({"a.txt": paragraphs("a", 50)})
    alone, listed = prepared("a.txt"), prepared([{"source": "a.txt"}])
    assert alone.meta == listed.meta
    pairs = zip(alone.train_dataloader(), listed.train_dataloader(), strict=True)
    assert all((one["input_ids"] == other["input_ids"]).all() and "sources" not in other for one, other in pairs)


# -- sources ------------------------------------------------------------------------------------------------------------


def test_what_one_source_holds_out_is_trained_on_in_none(here: Path) -> None:
    secret = "This very text is held out by the second source."
    write({"a.txt": f"{paragraphs('a', 40)}\n\n{secret}", "b/train.txt": paragraphs("b", 40), "b/test.txt": secret})
    data = prepared(["a.txt", "b"], predict_split="test")
    trained = data.tokenizer.decode(data._splits["train"].tokens[:])
    assert "Item 3 of a" in trained
    assert secret not in trained
    assert secret in data.tokenizer.decode(data._splits["test"].tokens[:])
    assert "documents that occur again, left out: 1 (a: 1)" in data.meta["remarks"] or any(
        "(a)" in r for r in data.meta["remarks"]
    )


def test_each_source_has_a_metric(here: Path) -> None:
    write({"a.txt": paragraphs("a", 80), "b.txt": paragraphs("b", 80)})
    torch.manual_seed(0)
    words = PreTrainedTokenizerFast.from_pretrained("tokenizer")
    model = new_model(AutoConfig.for_model("gpt2", **SHAPES["gpt2"], vocab_size=len(words)))
    save_model(model, words, Path("model"))
    changes = {
        "model": {"class_path": "lightgpt2.methods.FineTune", "init_args": {"model": "model"}},
        "data.source": ["a.txt", {"source": "b.txt", "name": "other"}],
        "data.valid_fraction": 0.2,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
    }
    lightgpt2.fit(write_config(Path("config.yaml"), spoilt(changes)), run="r")
    quality = Ledger.read("checkpoints/r/model").last["quality"]["after"]
    assert {"perplexity", "perplexity/a", "perplexity/other"} <= quality.keys()
    parts = [quality[f"perplexity/{name}"]["value"] for name in ("a", "other")]
    assert min(parts) < quality["perplexity"]["value"] < max(parts)


WRONG: dict[str, tuple[Any, str]] = {
    "a key": ([{"source": "a.txt", "wieght": 2}], "data.source.0.wieght: no such key; give some of source, "),
    "no source": ([{"weight": 2}], "data.source.0.source: required, but not given"),
    "a weight": ([{"source": "a.txt", "weight": 0}], "data.source.0.weight: must be above 0, got 0"),
    "a weight in words": ([{"source": "a.txt", "weight": "2"}], "data.source.0.weight: must be float, got '2'"),
    "yes": ([{"source": "a.txt", "weight": True}], "data.source.0.weight: must be float, got True"),
    "a number": ([{"source": 3}], "data.source.0.source: must be str, got 3"),
    "none": ([], "data.source: an empty list has no text; name a source"),
    "one name": (["a.txt", "b/a.txt"], "data.source: 2 sources are called a; give each a name"),
    "missing": (["a.txt", "c.txt"], "data.source: c.txt does not exist"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_list_that_means_nothing_is_refused(here: Path, name: str) -> None:
    source, words = WRONG[name]
    write({"a.txt": "a", "b/a.txt": "b"})
    try:
        problems = LanguageModelingData(source).problems()
    except UserError as error:
        problems = [*error.problems]
    (problem,) = problems
    assert problem.startswith(words)


def test_settings_that_contradict_are_refused() -> None:
    found = LanguageModelingData(
        cross_document_attention=False, mode="padded", near_duplicates=0.0, chat_template="no"
    ).problems()
    assert [problem.partition(":")[0] for problem in found] == [
        "data.cross_document_attention", "data.near_duplicates", "data.chat_template",
    ]  # fmt: skip


# -- documents that occur again ------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 30_000), max_size=200), st.integers(0, 3))
def test_a_set_of_digests_is_a_set(numbers: list[int], more: int) -> None:
    digests, reference = Digests(), set[str]()
    for number in [*numbers, *range(4000 * more), *numbers]:
        assert digests.add(str(number)) == (str(number) not in reference)
        reference.add(str(number))


def test_near_duplicates_are_left_out_where_that_is_asked(here: Path) -> None:
    text = " ".join(f"word{n}" for n in range(60))
    near, far = f"{text} more", " ".join(f"word{n}" for n in range(20, 80))
    write({"a/train.txt": "\n\n".join([near, far]), "a/valid.txt": text})
    kept = prepared("a").meta["splits"]
    assert (kept["train"]["documents"], kept["valid"]["documents"]) == (2, 1)
    data = prepared("a", near_duplicates=0.8)
    assert (data.meta["splits"]["train"]["documents"], data.meta["splits"]["valid"]["documents"]) == (1, 1)
    assert "near duplicates, left out: 1 (train)" in data.meta["remarks"]
    assert "word79" in data.tokenizer.decode(data._splits["train"].tokens[:])


def test_the_package_for_near_duplicates_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    write({"a.txt": "a"})
    with pytest.raises(UserError, match=r"pip install lightgpt2\[near-duplicates\]"):
        prepared("a.txt", near_duplicates=0.8)


# -- streams -------------------------------------------------------------------------------------------------------------


def test_of_a_stream_no_more_is_read_than_the_budget_needs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Counter[str]()

    def rows(split: str, count: int) -> Any:
        for number in range(count):
            read[split] += 1
            yield {"text": f"Document {number} of {split} goes on. " * 40}

    from datasets import IterableDataset

    def load(name: str, config: Any, streaming: bool) -> Any:
        assert streaming
        counts = {"train": 4000, "validation": 20}
        return IterableDatasetDict(
            {
                split: IterableDataset.from_generator(rows, gen_kwargs={"split": split, "count": n})
                for split, n in counts.items()
            }
        )

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr(tokenizing, "_DOCUMENTS", 16)
    data = prepared("some/dataset", streaming=True, token_budget=5000)
    assert 5000 <= data.meta["splits"]["train"]["tokens"] < 7000
    assert data.meta["splits"]["valid"]["documents"] == 20
    assert read["train"] < 400
    assert sum(int(batch["lengths"].sum()) for batch in data.train_dataloader()) == pytest.approx(5000, rel=0.05)


def test_tables_of_the_hub_hold_conversations(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"Question {n}?", "completion": f" Answer {n}."} for n in range(30)]
    tables = DatasetDict(
        {"train": Dataset.from_list(rows), "test": Dataset.from_list([{"prompt": "x", "completion": " y"}])}
    )
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: tables)
    data = prepared("some/dataset", mode="padded")
    assert data.meta["splits"]["train"]["documents"] + data.meta["splits"]["valid"]["documents"] == 30
    assert data._splits["train"].answers is not None


# -- tokenizing ----------------------------------------------------------------------------------------------------------


def encoder() -> Encoder:
    return Encoder(letters().to_str(), 1, 2, "uint16", None)


def content(folder: Path) -> dict[str, bytes]:
    """The files of a store, but their checksums; remarks name the text's folder."""
    paths = [path for path in folder.iterdir() if path.name != "checksums.json"]
    return {path.name: path.read_bytes().replace(bytes(folder.parent), b"") for path in paths}


ROWS = [
    {"text": f"Text {n}."} if n % 3 else {"prompt": f"{n}?", "completion": f"{n}!" if n % 2 else ""} for n in range(400)
]
TEXT = "\n".join(map(json.dumps, [*ROWS, *ROWS[:50]]))


def test_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_DOCUMENTS", 16)
    for folder, processes in (("one", 1), ("three", 3)):
        (tmp_path / folder).mkdir()
        built(tmp_path / folder, {"train.jsonl": TEXT, "valid.txt": "a\n\nText 1."}, encoder(), processes)
    assert content(tmp_path / "one/store") == content(tmp_path / "three/store")


@pytest.mark.parametrize("stop", [1, 5, 12, 20])
def test_tokenizing_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    """What is written is what a run in one piece writes, and little of what was done is done again."""
    files = {"train.jsonl": TEXT, "valid.txt": "a\n\nText 1."}
    monkeypatch.setattr(tokenizing, "_DOCUMENTS", 16)
    monkeypatch.setattr(tokenizing, "_SAVED", 100)
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    built(tmp_path / "whole", files, encoder())
    calls, encode = Counter[str](), Encoder.__call__

    def counted(self: Encoder, documents: Any) -> Any:
        calls["before"] += 1
        if calls["before"] == stop:
            raise KeyboardInterrupt
        return encode(self, documents)

    monkeypatch.setattr(Encoder, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "stopped", files, encoder())
    assert not (tmp_path / "stopped/store").exists()
    calls["before"] = stop
    built(tmp_path / "stopped", files, encoder())
    assert content(tmp_path / "whole/store") == content(tmp_path / "stopped/store")
    assert calls["before"] - stop <= 30 - (stop - 1)
    assert [path.name for path in (tmp_path / "stopped").iterdir() if path.name.startswith(".")] == []


SCRIPT = """
if __name__ == "__main__":  # processes that tokenize read this again
    import sys
    from pathlib import Path
    from lightgpt2.data import tokenizing
    from lightgpt2.data.encoding import Encoder
    from tests.support.text import built, letters
    tokenizing._DOCUMENTS, tokenizing._SAVED = 8, 1000
    built(Path(sys.argv[1]), {}, Encoder(letters().to_str(), 1, 2, "uint16", None), 2)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_no_other_and_what_it_did(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    for folder in ("whole", "killed"):
        (tmp_path / folder / "text").mkdir(parents=True)
        (tmp_path / folder / "text/train.jsonl").write_text((TEXT + "\n") * 4)
    command = [sys.executable, str(script), str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True)
    progress = tmp_path / "killed/.store.partial/progress.json"
    while not progress.is_file():
        time.sleep(0.01)
        assert process.poll() is None
    process.kill()
    process.wait()
    for _ in range(500):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.02)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("its workers are still there")
    for folder in ("killed", "whole"):
        subprocess.run([sys.executable, str(script), str(tmp_path / folder)], cwd=ROOT, env=ENVIRONMENT, check=True)
    assert content(tmp_path / "killed/store") == content(tmp_path / "whole/store")


def test_two_processes_tokenize_the_same_text_once(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/train.jsonl").write_text(TEXT)
    command = [sys.executable, str(script), str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert store.read(tmp_path / "store")[0]["splits"]["train"]["documents"] > 300
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_stores_that_nobody_goes_on_with_are_removed_after_a_week(tmp_path: Path) -> None:
    old, new = tmp_path / ".tokens-1.partial", tmp_path / ".tokens-2.partial"
    for folder in (old, new):
        folder.mkdir()
    long_ago = time.time() - 8 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    built(tmp_path, {"a.txt": "a"}, encoder())
    assert (old.exists(), new.exists()) == (False, True)


def test_offsets_of_many_documents_are_read_from_the_file(tmp_path: Path) -> None:
    _, splits = built(tmp_path, {"train.jsonl": TEXT}, encoder())
    split = splits["train"]
    assert isinstance(split.offsets, np.memmap)
    assert split.offsets[-1] == len(split.tokens)
    assert isinstance(split.tokens, store.Stream)
    assert split.tokens[3:9].tolist() == split.tokens[:].tolist()[3:9]
    assert split.tokens[len(split.tokens) - 2 : len(split.tokens) + 5].tolist() == split.tokens[:].tolist()[-2:]


def test_sources_of_a_ledger_are_those_of_the_configuration() -> None:
    given: list[Any] = ["a.txt", {"source": "b.txt", "weight": 2}]
    assert corpora(given, separator="x") == [Corpus("a.txt", separator="x"), Corpus("b.txt", weight=2)]
    splitter = Splitter([Corpus("requirements:50")], 0.1, 0.1)
    assert len([*splitter.documents()]) == 50
