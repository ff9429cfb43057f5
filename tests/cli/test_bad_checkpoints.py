"""A bad checkpoint, a loss that explodes, a full disk: a clear message, and nothing lost."""

import errno
import json
import os
import re
import resource
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from safetensors.torch import load_file, save_file

from lightgpt2.callbacks.checkpointing import AtomicCheckpointIO
from lightgpt2.errors import UserError
from lightgpt2.models.files import atomic_file, atomic_folder
from lightgpt2.runs.run import Run, find_checkpoint
from tests.support.cli import logged
from tests.support.mistakes import Bench, Evil, files

write = AtomicCheckpointIO().save_checkpoint
LAST, BEST = Path("checkpoints/r/last.ckpt"), Path("checkpoints/r/best.ckpt")


def foreign(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    write({**checkpoint, "run": {**checkpoint["run"], "model.teacher": "other"}}, path)


def change(path: Path) -> None:
    """As a script of somebody's does."""
    checkpoint = torch.load(path, weights_only=True)
    next(iter(checkpoint["state_dict"].values())).zero_()
    torch.save(checkpoint, path)


def flip_a_bit(path: Path) -> None:
    """In the middle of the largest tensor."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    with path.open("r+b") as file:
        file.seek(largest.header_offset + largest.file_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


UNREADABLE = "is truncated or was not written by lightgpt2"
SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size // 2), UNREADABLE),
    "head only": (lambda path: os.truncate(path, 100), UNREADABLE),
    "empty": (lambda path: os.truncate(path, 0), UNREADABLE),
    "no checkpoint": (lambda path: torch.save([1, 2], path), UNREADABLE),
    "malicious": (lambda path: torch.save({"run": Evil()}, path), UNREADABLE),
    "bit flip": (flip_a_bit, "is damaged"),
    "changed": (change, "was changed since lightgpt2 wrote it"),
    "foreign": (foreign, "is of another run (model.teacher: other there, teacher here)"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_bad_checkpoint(finished: Bench, name: str) -> None:
    spoil, problem = SPOILT[name]
    run = Run("r")
    ours = run.owner() or {}
    spoil(LAST)
    assert find_checkpoint(run, "last", ours) == (BEST, 2, [f"{LAST} {problem}", f"going on from {BEST} (step 2)"])
    fix = "give last, best, or the checkpoint of this run"
    with pytest.raises(UserError, match=re.escape(f"--ckpt_path: {LAST} {problem}; {fix}")):
        find_checkpoint(run, str(LAST), ours)
    spoil(BEST)
    unusable = f"--ckpt_path: no usable checkpoint: {LAST} {problem}; {BEST} {problem}. Start anew with another --run"
    with pytest.raises(UserError, match=re.escape(unusable)):
        find_checkpoint(run, "last", ours)
    assert not Path("executed").exists()
    if name == "malicious":
        torch.load(LAST, weights_only=False)
        assert Path("executed").exists(), "it would have run"


@pytest.mark.slow
def test_a_run_goes_on_from_its_best_checkpoint_where_the_last_is_damaged(finished: Bench) -> None:
    os.truncate(LAST, 100)
    assert f"going on from {BEST} (step 2)" in finished.succeed("validate", "--ckpt_path", "last")
    finished.succeed("fit", "--ckpt_path", "last", "--trainer.max_steps=4")
    assert torch.load(LAST, weights_only=True)["global_step"] == 4


@pytest.mark.slow
def test_checkpoint_that_does_not_fit_the_models(finished: Bench) -> None:
    assert finished.refused("fit", "--ckpt_path", "gone.ckpt").startswith(
        "--ckpt_path: gone.ckpt does not exist; give last"
    )
    teacher = Path("teacher/model.safetensors")
    tensors = load_file(teacher)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, teacher, {"format": "pt"})
    message = finished.refused("validate", "--ckpt_path", "last")
    assert message.startswith("--ckpt_path: the weights of teacher are not those that the checkpoint was trained with")
    checkpoint = torch.load(LAST, weights_only=True)
    del checkpoint["state_dict"]["model.lm_head.weight"]
    write(checkpoint, LAST)
    save_file(tensors, teacher, {"format": "pt"})
    message = finished.refused("validate", "--ckpt_path", "last")
    assert message.startswith("--ckpt_path: the checkpoint is of a model of another shape (Missing key(s)")
    assert all(words in message for words in ("model.lm_head.weight", "resume with the settings that wrote it"))


def test_resuming_with_nothing_left_to_train_says_so_and_keeps_the_ledger(finished: Bench) -> None:
    ledger = Path("checkpoints/r/model/ledger.json")
    before = json.loads(ledger.read_text())
    out = finished.succeed("fit", "--ckpt_path", "last", "--trainer.max_steps=2")
    assert "Nothing was left to train: checkpoints/r is at step 3." in out
    assert json.loads(ledger.read_text()) == before


@pytest.mark.slow
def test_repetition_replaces_the_curves(finished: Bench) -> None:
    before = set(Path("tb-logs/r").glob("events*"))
    finished.succeed("fit", "--trainer.max_steps=2")
    (after,) = Path("tb-logs/r").glob("events*")
    assert after not in before
    assert list(logged(Path(), "r")["train/loss"]) == [1, 2]


# -- while training --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_exploding_weights_stop_the_run(bench: Bench) -> None:
    bench.configure({"model.optimizer.lr": 1.0e30})
    message = bench.refused("fit", touches=True)
    assert message.startswith("the loss is not finite at step 2 (epoch 0, batch 1); the weights before it are saved")
    for fix in ("Lower model.optimizer.lr", "set trainer.gradient_clip_val", "--ckpt_path last"):
        assert fix in message
    checkpoint = torch.load(LAST, weights_only=True)
    assert checkpoint["global_step"] == 1
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())
    assert not Path("checkpoints/r/model").exists()


@pytest.mark.slow
def test_run_goes_on_after_a_non_finite_loss(bench: Bench) -> None:
    bench.configure({"trainer.accumulate_grad_batches": 2, "checkpoint.every_n_steps": 100})
    poison = ["--trainer.callbacks=tests.support.mistakes.Poison", "--trainer.callbacks.batch=5"]
    message = bench.refused("fit", *poison, touches=True)
    assert message.startswith("the loss is not finite at step 3 (epoch 0, batch 5)")
    assert torch.load(LAST, weights_only=True)["global_step"] == 2
    bench.succeed("fit", "--ckpt_path", "last")
    assert list(logged(Path(), "r")["train/loss"]) == [1, 2, 3]


class Stop(Callback):
    """Sends its own process a signal while it trains, as a terminal does that closes."""

    def __init__(self, signum: int) -> None:
        self.signum = signum

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            os.kill(os.getpid(), self.signum)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_stop_saves_first(bench: Bench, signum: signal.Signals) -> None:
    handler = signal.getsignal(signum)
    bench.configure({"checkpoint.every_n_steps": 100})
    stop = [f"--trainer.callbacks={__name__}.Stop", f"--trainer.callbacks.signum={int(signum)}"]
    code, _, err = bench.run("fit", *stop)
    message = "lightgpt2: stopped at step 2; go on with the same command and --ckpt_path last\n"
    assert (code, err.rpartition("\r")[2]) == (130, message)
    assert torch.load(LAST, weights_only=True)["global_step"] == 2
    assert signal.getsignal(signum) is handler
    bench.succeed("fit", "--ckpt_path", "last")
    assert list(logged(Path(), "r")["train/loss"]) == [1, 2, 3]


def refused_by_a_full_disk(bench: Bench, room: int, *args: str) -> str:
    """The message of a `fit` where no file can grow beyond `room` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        message = bench.refused("fit", *args, touches=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "the disk is full; what was saved before is untouched. Free some space and run it again" in message
    return message


@pytest.mark.slow
def test_full_disk_while_saving_a_checkpoint(finished: Bench) -> None:
    before = files()  # the limit leaves room for the logs and the teacher, not for a checkpoint
    message = refused_by_a_full_disk(finished, 300_000, "--ckpt_path", "last", "--trainer.max_steps=6")
    assert message.startswith((f"{LAST}: ", f"{BEST}: "))
    for path in (LAST, BEST, Path("checkpoints/r/model/model.safetensors")):
        assert path.read_bytes() == before[path]
    finished.succeed("fit", "--ckpt_path", "last", "--trainer.max_steps=6")
    assert torch.load(LAST, weights_only=True)["global_step"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("room", [4_000, 100_000])  # the tokenized corpus does not fit; the model does not
def test_full_disk_before_training(bench: Bench, room: int) -> None:
    refused_by_a_full_disk(bench, room)
    bench.succeed("check")


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError(errno.EFBIG, "File too large"),
    RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("Error while serializing: I/O error: File too large (os error 27)"),
]


def write_half(target: Path, error: BaseException) -> None:
    with (atomic_folder if target.is_dir() else atomic_file)(target) as temporary:
        (temporary / "weights" if target.is_dir() else temporary).write_text("half of the n")
        raise error


@pytest.mark.parametrize("name", ["last.ckpt", "model/weights"])
@pytest.mark.parametrize(
    "error", [*FULL, ValueError("x"), OSError(errno.EACCES, "Permission denied"), KeyboardInterrupt()], ids=repr
)
def test_what_was_there_is_kept_and_only_a_full_disk_is_said_to_be_one(
    tmp_path: Path, name: str, error: BaseException
) -> None:
    file, target = tmp_path / name, tmp_path / Path(name).parts[0]
    file.parent.mkdir(exist_ok=True)
    file.write_text("old")
    with pytest.raises(UserError if error in FULL else type(error)) as caught:
        write_half(target, error)
    if error in FULL:
        assert f"{target.name}: the disk is full" in str(caught.value)
    else:
        assert caught.value is error
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_said_of_the_outer_folder_unless_another_message_says_more(tmp_path: Path) -> None:
    def write(target: Path, about: UserError | None) -> None:
        with atomic_folder(target) as temporary:
            try:
                with atomic_file(temporary / "weights"):
                    raise FULL[0]
            except UserError as error:
                raise about or error from FULL[0]

    with pytest.raises(UserError, match=r"/model: the disk is full"):
        write(tmp_path / "model", None)
    with pytest.raises(UserError, match=r"^MODEL: make room in TMPDIR$"):
        write(tmp_path / "model", UserError("MODEL: make room in TMPDIR"))
    assert not list(tmp_path.iterdir())
