"""Windows cover every token once, orders are functions of seed and epoch, steps weigh the same however they are cut."""

from collections.abc import Callable

import numpy as np
import pytest

from lightgpt2.data.batches import Slice, StepSampler, WindowDataset, WindowLoader, evaluation_order
from lightgpt2.data.store import TokenSplit
from lightgpt2.data.windows import Windows, document_windows, packed_windows, prompt_windows
from lightgpt2.functional.divergence import IGNORE


@pytest.fixture
def split() -> TokenSplit:
    """Documents of 1, 2, 3, 9, 10, 11, 50 and 2 tokens; every token's value is its place."""
    offsets = np.cumsum([0, 1, 2, 3, 9, 10, 11, 50, 2])
    return TokenSplit(np.arange(offsets[-1], dtype=np.uint16), offsets, offsets[1:], *[np.diff(offsets)] * 2)


def predicted(split: TokenSplit, windows: Windows, batch: int = 3) -> list[int]:
    """Every token that some window asks for, in order."""
    loader = WindowLoader(WindowDataset(split, windows, 0), evaluation_order(windows, batch))
    found = []
    for item in loader:
        keep = item["labels"] != IGNORE
        assert (item["labels"][keep] == item["input_ids"][keep] + 1).all(), "a label is the next token"
        found += item["labels"][keep].tolist()
    return sorted(found)


@pytest.mark.parametrize(("length", "stride"), [(10, 5), (10, 9), (10, 1), (2, 1), (100, 50), (9, 8)])
def test_scoring_windows_predict_every_token_of_each_document_once(split: TokenSplit, length: int, stride: int) -> None:
    windows = document_windows(split, length, stride)
    first_tokens = set(split.offsets[:-1].tolist())
    assert predicted(split, windows) == [t for t in range(len(split.tokens)) if t not in first_tokens]
    ends = split.offsets[windows.documents + 1]
    assert (windows.starts + windows.lengths < ends).all(), "no window leaves its document"
    assert windows.lengths.max() <= length - 1


def test_scoring_windows_give_as_much_context_as_the_stride_allows(split: TokenSplit) -> None:
    windows = document_windows(split, 10, 4)
    later = windows.starts != split.offsets[windows.documents]
    assert (windows.scored[later] >= 10 - 4 - 1).all()


def test_packed_windows_tile_the_stream_and_can_be_shifted_over_all_of_it(split: TokenSplit) -> None:
    windows = packed_windows(split, 8)
    assert predicted(split, windows) == list(range(1, 1 + 8 * len(windows)))
    assert len(windows) == (len(split.tokens) - 1) // 8 - 1
    shifted = WindowDataset(split, windows, 0)[Slice(np.arange(len(windows)), shift=windows.slack[0])]
    assert shifted["labels"].max() == len(split.tokens) - 1
    assert (shifted["labels"] == shifted["input_ids"] + 1).all()


def test_epochs_cut_the_text_at_different_places(split: TokenSplit) -> None:
    windows = packed_windows(split, 8)
    per_epoch = len(windows) // 2
    dataset = WindowDataset(split, windows, 0)
    firsts = [next(iter(StepSampler(dataset, 2, 1, 0, 1, 5, lambda e=e: e * per_epoch))) for e in range(20)]
    shifts = [int(np.unique(np.asarray(first.shift)).item()) for first in firsts]
    assert len(set(shifts)) > 5
    assert 0 <= min(shifts) <= max(shifts) <= windows.slack[0]


def test_prompts_are_beginnings(split: TokenSplit) -> None:
    windows = prompt_windows(split, 4, 9)
    assert windows.starts.tolist() == split.offsets[:-1].tolist()
    assert windows.lengths.tolist() == [1, 2, 3, 4, 4, 4, 4, 2]
    assert predicted(split, windows) == []


def steps(split: TokenSplit, batch: int, accumulate: int, world: int, start: int = 0) -> list[tuple[set[int], int]]:
    """Windows and token count of each optimizer step of an epoch, over all processes."""
    windows = document_windows(split, 5, 4)
    found: list[tuple[set[int], int]] = []
    for rank in range(world):
        sampler = StepSampler(WindowDataset(split, windows, 0), batch, accumulate, rank, world, 3, lambda: start)
        for i, item in enumerate(sampler):
            if i // accumulate == len(found):
                found.append((set(), item.step_items))
            rows, tokens = found[i // accumulate]
            assert not rows & set(item.indices.tolist())
            assert tokens == item.step_items
            rows |= set(item.indices.tolist())
    supervised = windows.lengths - windows.scored
    assert all(supervised[sorted(rows)].sum() == tokens for rows, tokens in found)
    return found


def test_a_step_is_the_same_however_it_is_cut(split: TokenSplit) -> None:
    assert steps(split, 8, 1, 1) == steps(split, 2, 4, 1) == steps(split, 4, 1, 2) == steps(split, 2, 2, 2)


def test_order_is_a_function_of_seed_and_epoch_and_resumes_anywhere(split: TokenSplit) -> None:
    windows = document_windows(split, 5, 4)

    def order(seed: int, step: int) -> list[list[int]]:
        sampler = StepSampler(WindowDataset(split, windows, 0), 2, 2, 0, 1, seed, lambda: step)
        return [item.indices.tolist() for item in sampler]

    per_epoch = len(windows) // 4
    first, second = order(0, 0), order(0, per_epoch)
    assert len(first) == 2 * per_epoch
    assert first == order(0, 0)
    assert first != second
    assert first != order(1, 0)
    for step in range(per_epoch):
        assert order(0, step) == first[2 * step :]
        assert order(0, per_epoch + step) == second[2 * step :]


def test_evaluation_is_dealt_out_once_with_equally_many_batches(split: TokenSplit) -> None:
    windows = document_windows(split, 10, 5)
    parts = [evaluation_order(windows, 2, rank, 3) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    counted = sorted(i for part in parts for item in part if not item.silent for i in item.indices)
    assert counted == list(range(len(windows)))
    silent = next(item for part in parts for item in part if item.silent)
    assert (WindowDataset(split, windows, 0)[silent]["labels"] == IGNORE).all()


@pytest.mark.parametrize("make", [lambda s: packed_windows(s, 100), lambda s: document_windows(s, 4, 2)])
def test_an_empty_split_has_no_windows(make: Callable[[TokenSplit], Windows]) -> None:
    none = np.zeros(0, np.int64)
    empty = TokenSplit(np.zeros(0, np.uint16), np.zeros(1, np.int64), none, none, none)
    assert len(make(empty)) == 0
