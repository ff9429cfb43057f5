"""Every adaptation: killed and resumed is uninterrupted, two processes are one, and mixed precision trains.

Runs of three optimizer steps of two micro-batches, by a plain `Trainer` with the callbacks of a run.
"""

import functools
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from lightgpt2.adaptations import Adaptation, FakeQuantize, Lora, LoraAdapters, MovementGates
from lightgpt2.adaptations.pruning_settings import Pruning, Threshold
from lightgpt2.callbacks import run_callbacks
from lightgpt2.data import ClassificationData, LanguageModelingData, TaskData, TextToTextData
from lightgpt2.errors import exit_with_message
from lightgpt2.methods import Method
from lightgpt2.methods.optimizer import OptimizerConfig
from lightgpt2.models.integers import Integers
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.loading import load_model
from lightgpt2.models.operations import KINDS
from lightgpt2.models.pruning import prunable
from lightgpt2.starts import Pretrained
from lightgpt2.tasks import Classification, LanguageModeling, Summarization
from tests.support.cli import run_cli
from tests.support.kill import KillAt
from tests.support.models import (
    WHOLE_BLOCKS,
    make_model,
    write_classifier,
    write_corpus,
    write_seq2seq,
    write_tokenizer,
)

pytestmark = pytest.mark.slow

_LATE: dict[str, Any] = {"warmup": 0.6, "cooldown": 0.0, "lr": 1e-3}  # when no two scores are equal any more
_HEADS = Pruning(attention=0.5, ffn=0.6, **_LATE)
_BLOCKS = Pruning(threshold=Threshold(0.4995, 300.0), granularity="block", block=16, **_LATE)
_ADAPTERS = LoraAdapters(r=2, dropout=0.0)
_INT4 = Integers(bits=4, group=16, activations=True, embeddings=True)
# The starting model, and what is done to it.
RUNS: dict[str, tuple[str, Callable[[], list[Adaptation]]]] = {
    "all weights": ("plain", list),
    "lora": ("plain", lambda: [Lora(_ADAPTERS)]),
    "qlora": ("nf4", lambda: [Lora(_ADAPTERS)]),
    "rounding": ("plain", lambda: [FakeQuantize(_INT4, delay=0.4)]),
    "rounded adapters": ("plain", lambda: [Lora(_ADAPTERS), FakeQuantize()]),
    "heads and neurons": ("plain", lambda: [MovementGates(_HEADS)]),
    "rounded blocks": ("plain", lambda: [MovementGates(_BLOCKS), FakeQuantize()]),
    "masks": ("pruned", list),
}
# The same of a classifier and of an encoder-decoder, of which the last cases also run on two processes.
SUMMARIZERS: dict[str, tuple[str, Callable[[], list[Adaptation]]]] = {
    "summarizer, all weights": ("summarizer", list),
    "summarizer, rounded heads and neurons": ("summarizer", lambda: [MovementGates(_HEADS), FakeQuantize()]),
}
CLASSIFIERS: dict[str, tuple[str, Callable[[], list[Adaptation]]]] = {
    "classifier, all weights": ("classifier", list),
    "classifier, lora": ("classifier", lambda: [Lora(_ADAPTERS)]),
    "classifier, rounded heads and neurons": ("classifier", lambda: [MovementGates(_HEADS), FakeQuantize()]),
}
_TASKS = {"classifier": Classification, "summarizer": partial(Summarization, samples=0, max_new_tokens=4)}
REFUSED_BY_FSDP2 = {
    "heads and neurons": "MovementGates is",
    "rounded blocks": "MovementGates is",
    "masks": "masks of pruned weights are",
}


class Losses(Callback):
    """Adds the loss of every optimizer step to a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(pl_module, Method) and pl_module.step_metrics and trainer.is_global_zero:
            with self.file.open("a") as file:
                print(trainer.global_step, pl_module.step_metrics["train/loss"], file=file)


def train(
    case: str,
    run: str,
    strategy: str = "auto",
    kill: int | None = None,
    dropout: float = 0.0,
    precision: Any = "32-true",
) -> None:
    """Trains in the working folder, going on with the run's checkpoint if there is one; killed after `kill` micro-batches."""
    torch.manual_seed(1)
    source, adaptations = (RUNS | CLASSIFIERS | SUMMARIZERS)[case]
    folder = source if source == "pruned" else f"{source if source in _TASKS else 'plain'}-{dropout}"
    start = Pretrained(folder, "nf4" if source == "nf4" else "fp32", adapters=True)
    optimizer = OptimizerConfig(lr=3e-4, decay="constant")  # low: Adam scales up what is rounded another way
    task = _TASKS.get(source, partial(LanguageModeling, samples=0))()
    method = Method(start, adaptations=adaptations(), task=task, optimizer=optimizer)
    processes = 1 if strategy == "auto" else 2
    # Windows of different lengths, classes of different weights: the mean is over the items of all processes.
    data: TaskData = LanguageModelingData("corpus", sequence_length=32, batch_size=4 // processes, mode="padded")
    if source == "classifier":
        text = {"max_length": 32, "class_weights": "balanced", "batch_size": 4 // processes}
        data = ClassificationData("requirements:200", **text)
    if source == "summarizer":
        sizes = {"max_source_length": 48, "max_target_length": 24, "batch_size": 4 // processes}
        data = TextToTextData("requirements:200", **sizes)
    callbacks: list[Callback] = [*run_callbacks(run, method, data, every_n_steps=1), Losses(Path(f"{run}.losses"))]
    callbacks += [] if kill is None else [KillAt(kill)]
    sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    trainer = Trainer(
        accelerator="cpu", devices=processes, strategy=sharded if strategy == "fsdp2" else strategy, precision=precision,
        max_steps=3, accumulate_grad_batches=2, gradient_clip_val=1.0, callbacks=callbacks,
        logger=False, use_distributed_sampler=False, num_sanity_val_steps=0, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    last = Path("checkpoints") / run / "last.ckpt"
    trainer.fit(method, datamodule=data, ckpt_path=last if last.exists() else None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and models: with and without dropout, and one that an earlier stage has pruned."""
    folder = tmp_path_factory.mktemp("processes")
    write_corpus(folder / "corpus", documents=24)
    for name, dropout in (("plain-0.0", 0.0), ("plain-0.1", 0.1), ("pruned", 0.0)):
        # Without biases: the gradient of a key's is noise around zero, which Adam scales up.
        model = make_model("llama", num_hidden_layers=2, attention_dropout=dropout, **WHOLE_BLOCKS["llama"])
        if name == "pruned":
            for weight in prunable(model, "linear", "").values():
                weight.data[weight.data.abs() < weight.data.abs().median()] = 0
            done = KINDS["global_l1"].record(criterion="l1", targets="linear", adapters=False, amount=0.5)
        write_tokenizer(folder / name)
        model.save_pretrained(folder / name)
    for dropout in (0.0, 0.1):
        dropouts = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout)
        write_classifier(folder / f"classifier-{dropout}", **dropouts)
        write_seq2seq(folder / f"summarizer-{dropout}", "t5", dropout_rate=dropout)
    Ledger([{"operations": [done]}]).write(folder / "pruned")
    return folder


def start(folder: Path, case: str, run: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `train` in processes of their own."""
    arguments = json.dumps({"case": case, "run": run, **options})
    processes = 1 if options.get("strategy", "auto") == "auto" else 2
    return run_cli(folder, arguments, module="tests.contracts.test_processes", processes=processes)


def finish(folder: Path, case: str, run: str, **options: Any) -> dict[str, float]:
    """Runs `train`, which must succeed; the losses by step."""
    done = start(folder, case, run, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return {step: float(loss) for step, loss in map(str.split, (folder / f"{run}.losses").read_text().splitlines())}


def finish_killed(folder: Path, case: str, run: str, **options: Any) -> dict[str, float]:
    """Runs `train`, which is killed somewhere and resumed; the losses by step."""
    kill = random.SystemRandom().randint(1, 5)
    print("killed in micro-batch", kill + 1)  # pytest shows it where the test fails
    killed = start(folder, case, run, kill=kill, **options)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    return finish(folder, case, run, **options)


def checkpoint(folder: Path, run: str) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "checkpoints" / run / "last.ckpt", weights_only=True)
    return found


def artefact(folder: Path, run: str) -> dict[str, Tensor]:
    return load_model(str(folder / "checkpoints" / run / "model"), "model").state_dict()


@pytest.mark.parametrize(
    ("case", "options"),
    [
        *((case, {}) for case in RUNS | CLASSIFIERS | SUMMARIZERS),
        ("lora", {"strategy": "fsdp2"}),
        ("all weights", {"precision": "bf16-mixed"}),
    ],
)
def test_killed_and_resumed_is_uninterrupted(folder: Path, case: str, options: dict[str, Any]) -> None:
    options = {"dropout": 0.1, **options}
    run = "-".join(map(str, (case, *options.values())))
    losses = finish(folder, case, run, **options)
    assert finish_killed(folder, case, f"{run}-killed", **options) == losses
    whole, resumed = (checkpoint(folder, name) for name in (run, f"{run}-killed"))
    for key in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(resumed[key], whole[key], rtol=0, atol=0)
    assert (resumed["rng"], resumed["global_step"]) == (whole["rng"], 3)
    torch.testing.assert_close(artefact(folder, f"{run}-killed"), artefact(folder, run), rtol=0, atol=0)
    qualities = [Ledger.read(folder / f"checkpoints/{name}/model").last["quality"] for name in (run, f"{run}-killed")]
    assert qualities[0] == qualities[1]


@pytest.fixture(scope="module")
def on_one(folder: Path) -> Callable[[str], dict[str, float]]:
    """The losses of a case on one process, whose run has the case's name."""
    return functools.cache(lambda case: finish(folder, case, case))


@pytest.mark.parametrize(
    ("case", "strategy"),
    [
        *((case, strategy) for case in RUNS for strategy in ("ddp", "fsdp2")),
        *((cases[-1], "ddp") for cases in ([*CLASSIFIERS], [*SUMMARIZERS])),
        (next(iter(SUMMARIZERS)), "fsdp2"),
    ],
)
def test_two_processes_are_one_and_resume(folder: Path, on_one: Callable[[str], Any], case: str, strategy: str) -> None:
    run = f"{case}-{strategy}"
    if strategy == "fsdp2" and case in REFUSED_BY_FSDP2:
        done = start(folder, case, run, strategy=strategy)
        message = f"trainer.strategy: {REFUSED_BY_FSDP2[case]} not supported with FSDP2; use auto, or ddp"
        assert done.returncode == 2
        assert {line for line in done.stderr.splitlines() if "error" in line} == {f"lightgpt2: error: {message}"}
        return
    expected = on_one(case)
    assert finish_killed(folder, case, run, strategy=strategy) == pytest.approx(expected, rel=1e-5)
    # The gradient of a key's bias is noise around zero, which Adam scales up.
    held = (checkpoint(folder, name)["state_dict"] for name in (run, case))
    weights = [{name: value for name, value in each.items() if not name.endswith("key.bias")} for each in held]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)
    masks = [value for name, value in weights[0].items() if ".masks." in name]
    assert not masks or not all(value.all() for value in masks), "nothing was pruned"
    found = (artefact(folder, run), artefact(folder, case))
    ours, theirs = ({name: value for name, value in each.items() if not name.endswith("key.bias")} for each in found)
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    # A weight in the middle between two integers may be rounded to either.
    assert all(((ours[name] - theirs[name]).abs() > 1e-5).float().mean() < 0.01 for name in theirs)


@pytest.mark.parametrize("case", RUNS)
def test_mixed_precision_trains_weights_in_full(folder: Path, on_one: Callable[[str], Any], case: str) -> None:
    losses = finish(folder, case, f"{case}-bf16", precision="bf16-mixed")
    assert losses != on_one(case)
    assert losses == pytest.approx(on_one(case), rel=2e-2)
    assert {value.dtype for value in checkpoint(folder, f"{case}-bf16")["state_dict"].values()} <= {
        torch.float32,
        torch.bool,
    }


if __name__ == "__main__":
    with exit_with_message():
        train(**json.loads(sys.argv[1]))
