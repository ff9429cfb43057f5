"""Workloads: what they run on a model, and what they make of the times."""

import threading
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from lightgpt2.errors import UserError
from lightgpt2.models.workloads import Documents, Forward, Generation, Positions, Texts
from lightgpt2.tasks import Classification, LanguageModeling, Summarization, task_of
from tests.support.models import make_classifier, make_model

LENGTHS = (5, 9, 3, 9, 7)


class Recorder:
    """A runner that computes nothing, keeps what it is given, and takes as long as it is told."""

    device, vocabulary = "cpu", 50

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.masks, self.written = seconds, list[Tensor](), list[tuple[int, int, int]]()
        self.inside, self.most, self._lock = 0, 0, threading.Lock()

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.masks.append(torch.ones_like(ids) if mask is None else mask)
            assert ids.shape == self.masks[-1].shape
        time.sleep(self.seconds)
        with self._lock:
            self.inside -= 1

    def encode(self, ids: Tensor) -> None:
        self.forward(ids)

    def generate(self, prompt: Tensor, count: int) -> tuple[list[float], float]:
        self.written.append((prompt.shape[1], count, 1))
        return [], 0.0

    def search(self, prompt: Tensor, count: int, beams: int) -> None:
        self.written.append((prompt.shape[1], count, beams))


@pytest.mark.parametrize(("batch", "shapes"), [(2, [(2, 9), (2, 9), (1, 7)]), (1, [(1, n) for n in LENGTHS])])
def test_every_text_is_read_once_and_padded_to_the_longest_of_its_batch(
    batch: int, shapes: list[tuple[int, int]]
) -> None:
    runner, work = Recorder(), Texts(LENGTHS, batch)
    measured = work.measure(runner)
    assert [tuple(mask.shape) for mask in runner.masks] == shapes
    assert torch.cat([mask.sum(dim=1) for mask in runner.masks]).tolist() == [*LENGTHS]
    assert len(measured["calls"]) == len(shapes)
    assert work.speed({"seconds": 2.0}) == len(LENGTHS) / 2


@pytest.mark.parametrize(("beams", "name"), [(1, "greedy"), (4, "4 beams")])
def test_documents_are_written_one_by_one_with_their_own_lengths(beams: int, name: str) -> None:
    runner, work = Recorder(), Documents(((9, 4), (5, 7)), beams)
    assert len(work.measure(runner)) == 2
    assert runner.written == [(9, 4, beams), (5, 7, beams)]
    assert work.key == f"documents {name}"
    assert work.speed([100.0, 300.0]) == 5.0
    assert work.about == {"count": 2, "tokens": 14, "new_tokens": 11}


def test_a_summarizer_is_measured_with_what_fits() -> None:
    found = Summarization().workloads(Positions(100), new_tokens=[20])
    assert [work.key for work in found] == ["encode 1x100", "generate 20", "documents greedy", "documents 4 beams"]
    documents = found[2]
    assert isinstance(documents, Documents)
    assert all(read <= 100 and new <= 100 for read, new in documents.lengths)
    with pytest.raises(UserError) as error:
        Summarization().workloads(Positions(100), new_tokens=[1], batches=[])
    assert sorted(problem.key for problem in error.value.problems) == ["batches", "new_tokens"]


@pytest.mark.parametrize("threads", [1, 4])
def test_so_many_threads_call_the_model_at_once(threads: int) -> None:
    runner, work = Recorder(0.01), Texts((4,) * 12, threads=threads)
    measured = work.measure(runner)
    assert runner.most == threads
    assert measured["seconds"] < 12 * 0.01 / threads + 0.1
    assert work.setting == ("1 thread" if threads == 1 else "4 threads")


def test_figures_are_over_the_calls_of_all_rounds() -> None:
    rounds = [{"seconds": 1.0, "calls": [1.0, 2.0]}, {"seconds": 2.0, "calls": [3.0, 40.0]}]
    found = Texts((5, 5)).figures(rounds)
    assert found == {
        "texts_per_s": 1.5,
        "p50_ms": 2.5,
        "p95_ms": pytest.approx(np.quantile([1.0, 2.0, 3.0, 40.0], 0.95)),
    }


def test_a_classifier_reads_what_fits_and_the_lengths_of_the_validation_split() -> None:
    class Data:
        def scoring_loader(self, split: str) -> list[dict[str, Tensor]]:
            assert split == "valid"
            return [{"attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])}]

    short = Classification().workloads(Positions(200), Data())
    assert [work.key for work in short if isinstance(work, Forward)] == ["forward 1x8", "forward 1x32", "forward 1x128"]
    texts = [work for work in short if isinstance(work, Texts)]
    assert [work.setting for work in texts] == ["batch 16", "1 thread", "2 threads", "4 threads", "8 threads"]
    assert {*texts[0].lengths} == {2, 3}
    assert len({work.lengths for work in texts}) == 1, "all read the same texts"
    alone = Classification().workloads(Positions(64), batches=[1, 4], concurrency=[1])
    keys = [work.key for work in alone]
    assert keys == ["forward 1x8", "forward 1x32", "texts 1 thread", "texts batch 4"]
    (_, _, random, _) = alone
    assert isinstance(random, Texts)
    assert max(random.lengths) <= 64
    assert 10 < np.median(random.lengths) < 30, "as sentences have"


def test_lengths_that_are_asked_for_and_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        Classification().workloads(Positions(64, "x's"), forward_tokens=[8, 128], concurrency=[])
    assert caught.value.problems == [
        "concurrency: must have at least one value",
        "forward_tokens: must be within x's 64 positions, got 128; give at most 64",
    ]


@pytest.mark.parametrize(
    ("positions", "length", "new"), [(1024, 128, [128, 256]), (256, 128, [128]), (100, 100, [68]), (64, 64, [32])]
)
def test_a_decoder_is_measured_at_lengths_that_fit(positions: int, length: int, new: list[int]) -> None:
    work = LanguageModeling().workloads(Positions(positions))
    assert work == [Forward(1, length), Forward(16, length), *(Generation(32, count) for count in new)]


def test_a_model_says_which_task_it_has() -> None:
    assert isinstance(task_of(make_classifier("bert").config), Classification)
    assert isinstance(task_of(make_classifier("gpt2").config), Classification)
    assert isinstance(task_of(make_model("gpt2").config), LanguageModeling)
    work = LanguageModeling().workloads(Positions(64), new_tokens=[4], forward_tokens=[8])
    assert work == [Forward(1, 8), Forward(16, 8), Generation(32, 4)]
