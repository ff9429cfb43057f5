"""Speed and memory of a distillation step on a CPU, at GPT-2's vocabulary.

    python -m benchmarks.training [--rounds 10] [--width 768]

Four arms, each in a process of its own that does one optimizer step when told to, so that steps interleave and memory is
each arm's alone:

- `bare plain`: a bare PyTorch loop with the plain loss;
- `trainer plain`: the transformers Trainer with the plain loss;
- `bare fused`: the bare loop with LightGPT2's loss through the vocabulary head;
- `lightgpt2`: the whole Lightning step, that loss and all bookkeeping included.

All take the same batches from the same weights with the same optimizer, and their losses must agree.
"""

import argparse
import ctypes
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import CE, KD, TEMPERATURE, gpt2, machine, plain_loss, random_batches, ratios

ARMS = ("bare plain", "trainer plain", "bare fused", "lightgpt2")
LEARNING_RATE = 1e-4


class Gate:
    """Where an arm waits for its turn: one step is what happens between two calls."""

    def __init__(self) -> None:
        self.released = 0.0
        self.loss = 0.0

    def wait(self) -> None:
        """Reports the step that ended here, if any, and waits for the word."""
        if self.released:
            print(f"{time.perf_counter() - self.released} {float(self.loss)}", flush=True)
        else:
            print("ready", flush=True)
            start_peak()
        if sys.stdin.readline().strip() != "go":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if sys.platform == "darwin" else status("VmHWM")
            print(peak, flush=True)
            sys.stdout.flush()
            os._exit(0)
        self.released = time.perf_counter()


def status(field: str) -> int:
    """A memory figure of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def start_peak() -> None:
    """Gives freed memory back, forgets the peak so far, and reports what is resident now."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    print(status("VmRSS"), flush=True)


def load(folder: Path) -> tuple[Any, Any]:
    """Student and teacher."""
    from transformers import GPT2LMHeadModel

    student = GPT2LMHeadModel.from_pretrained(folder / "student").train()
    teacher = GPT2LMHeadModel.from_pretrained(folder / "teacher").eval().requires_grad_(False)
    return student, teacher


def bare(folder: Path, batches: list[dict[str, Any]], fused: bool) -> None:
    """A loop of nothing but the arithmetic."""
    from lightgpt2.functional.vocabulary import LossWeights, Teacher, vocabulary_loss

    student, teacher = load(folder)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    gate, weights = Gate(), LossWeights(CE, KD, "kl", TEMPERATURE)
    for batch in batches:
        gate.wait()
        ids, labels = batch["input_ids"], batch["labels"]
        if fused:
            hidden = student.transformer(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
            with torch.no_grad():
                target = teacher.transformer(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
            source = Teacher(target, teacher.lm_head.weight)
            loss = (
                vocabulary_loss(hidden, student.lm_head.weight, labels.flatten(), weights, source)[0] / labels.numel()
            )
        else:
            loss = plain_loss(student, teacher, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        gate.loss = loss.detach()
        del loss
    gate.wait()


def trainer(folder: Path, batches: list[dict[str, Any]]) -> None:
    """The transformers Trainer with the plain loss."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    student, teacher = load(folder)
    gate = Gate()

    class Distiller(Trainer):
        def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
            loss = plain_loss(model, teacher, inputs["input_ids"], inputs["labels"])
            gate.loss = loss.detach()
            return loss

    class Wait(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            gate.wait()

    rows = [{k: b[k][i] for k in ("input_ids", "labels")} for b in batches for i in range(len(b["input_ids"]))]
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=len(batches[0]["input_ids"]), max_steps=len(batches),
        learning_rate=LEARNING_RATE, lr_scheduler_type="constant", max_grad_norm=1.0, weight_decay=0.0,
        optim="adamw_torch_fused", report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        train_sampling_strategy="sequential", use_cpu=True,
    )  # fmt: skip
    Distiller(student, arguments, train_dataset=rows, callbacks=[Wait()]).train()
    gate.wait()


def lightgpt2(folder: Path, batches: list[dict[str, Any]]) -> None:
    """LightGPT2's own method under Lightning's Trainer, with the callbacks that a fit always has."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback

    from lightgpt2.callbacks.monitor import Monitor
    from lightgpt2.methods.base import OptimizerConfig
    from lightgpt2.methods.distill import Distill, DistillLoss

    gate = Gate()

    class Wait(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            gate.wait()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            gate.loss = float(outputs["loss"])

    class Batches:
        def __len__(self) -> int:
            return len(batches)

        def __iter__(self) -> Iterator[dict[str, Any]]:
            return iter(batches)

    class Data(pl.LightningDataModule):
        tokenizer, sequence_length, steps_per_epoch = [0], batches[0]["input_ids"].shape[1], len(batches)

        def train_dataloader(self) -> Batches:
            return Batches()

    method = Distill(
        str(folder / "teacher"), str(folder / "student"),
        loss=DistillLoss(ce=CE, hidden=0.0, kd=KD, temperature=TEMPERATURE),
        optimizer=OptimizerConfig(lr=LEARNING_RATE, weight_decay=0.0, beta2=0.999, decay="constant"),
    )  # fmt: skip
    run = pl.Trainer(
        accelerator="cpu", max_steps=len(batches) + 1, max_epochs=2, gradient_clip_val=1.0, limit_val_batches=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Wait(), Monitor()],
    )  # fmt: skip
    run.fit(method, datamodule=Data())


def child(arm: str, folder: Path, options: argparse.Namespace) -> None:
    """Runs one arm's loop."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    batches = random_batches(options.rounds + options.warmup + 1, options.batch, options.length, options.vocabulary)
    if arm == "lightgpt2":
        lightgpt2(folder, batches)
    elif arm == "trainer plain":
        trainer(folder, batches)
    else:
        bare(folder, batches, fused=arm == "bare fused")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Runs all arms step by step in rounds."""
    torch.manual_seed(0)
    shape = (options.width, options.heads, max(options.length, 128), options.vocabulary)
    teacher, student = gpt2(options.teacher_layers, *shape), gpt2(options.student_layers, *shape)
    teacher.save_pretrained(folder / "teacher")
    student.save_pretrained(folder / "student")
    optimizer_bytes = 2 * 4 * sum(p.numel() for p in student.parameters())
    del teacher, student
    arms: dict[str, subprocess.Popen[str]] = {}
    resident: dict[str, int] = {}

    def answer(arm: str) -> str:
        assert arms[arm].stdout is not None
        while line := arms[arm].stdout.readline():
            if line.strip() == "ready" or line[0].isdigit():
                return line.strip()
        raise SystemExit(f"{arm} ended early")

    for arm in ARMS:  # one after the other: loading is not what is measured
        command = [sys.executable, "-m", "benchmarks.training", *sys.argv[1:], "--arm", arm, "--folder", str(folder)]
        arms[arm] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while answer(arm) != "ready":
            pass
        resident[arm] = int(answer(arm))
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    losses: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for turn in range(options.warmup + options.rounds):
        for arm in ARMS[turn % len(ARMS) :] + ARMS[: turn % len(ARMS)]:  # no arm always follows the same other
            tell(arms[arm], "go")
            seconds, loss = map(float, answer(arm).split())
            losses[arm].append(loss)
            if turn >= options.warmup:
                times[arm].append(seconds)
        print(f"round {turn}: " + ", ".join(f"{arm} {losses[arm][-1]:.5f}" for arm in ARMS), flush=True)
    result = {}
    for arm in ARMS:
        tell(arms[arm], "stop")
        peak = int(answer(arm))
        arms[arm].wait()
        memory = (peak - resident[arm] - optimizer_bytes) / 1e6
        result[arm] = {"times": times[arm], "losses": losses[arm], "memory_mb": memory}
    return result


def tell(process: subprocess.Popen[str], word: str) -> None:
    """Sends an arm a word."""
    assert process.stdin is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()


def main() -> None:
    """Prints a row for each arm, and the ratios that are promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("rounds", 10), ("warmup", 2), ("batch", 8), ("length", 128), ("width", 768), ("heads", 12),
        ("teacher-layers", 12), ("student-layers", 6), ("vocabulary", 50257),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        child(options.arm, options.folder, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    times = {arm: values["times"] for arm, values in result.items()}
    speed, plain = ratios(times, "bare plain"), result["bare plain"]["memory_mb"]
    print(f"\n{machine()}\n")
    print("| arm | s/step (median) | speed vs bare plain (range) | memory above weights and optimizer, MB | share |")
    print("| --- | --- | --- | --- | --- |")
    for arm in ARMS:
        median, memory = sorted(times[arm])[len(times[arm]) // 2], result[arm]["memory_mb"]
        middle, low, high = speed[arm]
        print(f"| {arm} | {median:.3f} | {middle:.3f} ({low:.3f} - {high:.3f}) | {memory:.0f} | {memory / plain:.1%} |")
    against_trainer = ratios(times, "trainer plain")["lightgpt2"][0]
    overhead = 1 / ratios(times, "bare fused")["lightgpt2"][0] - 1
    worst = max(
        abs(a - b) / abs(b)
        for arm in ARMS
        for a, b in zip(result[arm]["losses"], result["bare plain"]["losses"], strict=True)
    )
    print(f"\nlightgpt2 vs transformers Trainer: {against_trainer:.3f}x")
    print(f"Lightning's loop on the same arithmetic: {overhead:+.1%}")
    print(f"largest relative difference of any step's loss from the bare plain loop's: {worst:.1e}")


if __name__ == "__main__":
    main()
