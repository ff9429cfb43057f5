"""Speed and memory of a distillation step at GPT-2's vocabulary.

    python -m benchmarks.training [--rounds 10] [--width 768 --teacher-width 768]

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
import statistics
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

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.released = 0.0
        self.loss: Any = 0.0

    def wait(self) -> None:
        """Reports the step that ended here, if any, and waits for the word."""
        if self.cuda:
            torch.cuda.synchronize()
        if self.released:
            print(f"{time.perf_counter() - self.released} {float(self.loss)}", flush=True)
        else:
            print("ready", flush=True)
            print(self._start_peak(), flush=True)
        if sys.stdin.readline().strip() != "go":
            print(torch.cuda.max_memory_allocated() if self.cuda else status("VmHWM"), flush=True)
            os._exit(0)
        self.released = time.perf_counter()

    def _start_peak(self) -> int:
        """Forgets the peak so far, and tells the bytes in use now: those of the weights."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # gives freed memory back
        Path("/proc/self/clear_refs").write_text("5")
        return status("VmRSS")


def status(field: str) -> int:
    """A memory figure of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def load(folder: Path, options: argparse.Namespace) -> tuple[Any, Any]:
    """Student and teacher."""
    from transformers import GPT2LMHeadModel

    student = GPT2LMHeadModel.from_pretrained(folder / "student").to(options.device).train()
    teacher = GPT2LMHeadModel.from_pretrained(folder / "teacher").to(options.device).eval().requires_grad_(False)
    if options.compile:
        student.transformer.compile()
        teacher.transformer.compile()
    return student, teacher


def fused_loss(student: Any, teacher: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """The same mean as `plain_loss`, through LightGPT2's vocabulary loss."""
    from lightgpt2.functional.vocabulary import LossWeights, Teacher, vocabulary_loss

    hidden = student.transformer(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
    with torch.no_grad():
        target = teacher.transformer(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
    source = Teacher(target, teacher.lm_head.weight)
    weights = LossWeights(CE, KD, "kl", TEMPERATURE)
    return vocabulary_loss(hidden, student.lm_head.weight, labels.flatten(), weights, source)[0] / labels.numel()


def bare(folder: Path, batches: list[dict[str, Any]], options: argparse.Namespace, fused: bool) -> None:
    """A loop of nothing but the arithmetic."""
    student, teacher = load(folder, options)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    gate, compute = Gate(options.device), fused_loss if fused else plain_loss
    for batch in batches:
        gate.wait()
        ids, labels = batch["input_ids"].to(options.device), batch["labels"].to(options.device)
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            loss = compute(student, teacher, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        gate.loss = loss.detach()
        del loss
    gate.wait()


def trainer(folder: Path, batches: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The transformers Trainer with the plain loss."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    student, teacher = load(folder, options)
    gate = Gate(options.device)

    class Distiller(Trainer):
        def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
            with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
                loss = plain_loss(model, teacher, inputs["input_ids"], inputs["labels"])
            gate.loss = loss.detach()
            return loss

    class Wait(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            gate.wait()

    rows = [{k: b[k][i] for k in ("input_ids", "labels")} for b in batches for i in range(len(b["input_ids"]))]
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=options.batch, max_steps=len(batches),
        learning_rate=LEARNING_RATE, lr_scheduler_type="constant", max_grad_norm=1.0, weight_decay=0.0, bf16=options.bf16,
        optim="adamw_torch_fused", report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        train_sampling_strategy="sequential", use_cpu=options.device == "cpu",
    )  # fmt: skip
    Distiller(student, arguments, train_dataset=rows, callbacks=[Wait()]).train()
    gate.wait()


def lightgpt2(folder: Path, batches: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """LightGPT2's own method under Lightning's Trainer, with the callbacks that a fit always has."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback

    from lightgpt2.callbacks.monitor import Monitor
    from lightgpt2.methods.distill import Distill, DistillLoss
    from lightgpt2.methods.optimizer import OptimizerConfig

    gate = Gate(options.device)

    class Wait(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            gate.wait()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            gate.loss = outputs["loss"]

    class Batches:
        def __len__(self) -> int:
            return len(batches)

        def __iter__(self) -> Iterator[dict[str, Any]]:
            return iter(batches)

    class Data(pl.LightningDataModule):
        tokenizer, sequence_length, steps_per_epoch = [0], options.length, len(batches)

        def train_dataloader(self) -> Batches:
            return Batches()

    method = Distill(
        str(folder / "teacher"), str(folder / "student"), compile=options.compile,
        loss=DistillLoss(ce=CE, hidden=0.0, kd=KD, temperature=TEMPERATURE),
        optimizer=OptimizerConfig(lr=LEARNING_RATE, weight_decay=0.0, beta2=0.999, decay="constant"),
    )  # fmt: skip
    run = pl.Trainer(
        accelerator="cpu" if options.device == "cpu" else "gpu", devices=1, max_steps=len(batches) + 1, max_epochs=2,
        precision="bf16-mixed" if options.bf16 else "32-true", gradient_clip_val=1.0, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Wait(), Monitor()],
    )  # fmt: skip
    run.fit(method, datamodule=Data())


def child(arm: str, folder: Path, options: argparse.Namespace) -> None:
    """Runs one arm's loop."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    batches = random_batches(options.rounds + options.warmup + 1, options.batch, options.length, options.vocabulary)
    if arm == "lightgpt2":
        lightgpt2(folder, batches, options)
    elif arm == "trainer plain":
        trainer(folder, batches, options)
    else:
        bare(folder, batches, options, fused=arm == "bare fused")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Runs all arms step by step in rounds."""
    torch.manual_seed(0)
    positions = max(options.length, 128)
    teacher = gpt2(options.teacher_layers, options.teacher_width, options.teacher_heads, positions, options.vocabulary)
    student = gpt2(options.student_layers, options.width, options.heads, positions, options.vocabulary)
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
        command = [
            sys.executable,
            "-m",
            "benchmarks.training",
            *as_flags(options),
            "--arm",
            arm,
            "--folder",
            str(folder),
        ]
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


SHAPES = {
    "rounds": 10, "warmup": 2, "batch": 8, "length": 128, "width": 768, "heads": 12, "teacher_width": 768, "teacher_heads": 12,
    "teacher_layers": 12, "student_layers": 6, "vocabulary": 50257,
}  # fmt: skip


def parse(description: str, **defaults: Any) -> argparse.Namespace:
    """The options of a measurement, with its own defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (SHAPES | defaults).items():
        if isinstance(default, int) and not isinstance(default, bool):
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--device", choices=["cpu", "cuda"], default=defaults.get("device", "cpu"))
    parser.add_argument("--bf16", action="store_true", default=defaults.get("bf16", False))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def as_flags(options: argparse.Namespace) -> list[str]:
    """The options as a child process takes them."""
    flags = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in (*SHAPES, "device")]
    return flags + [f"--{name}" for name in ("bf16", "compile") if getattr(options, name)]


def table(result: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """A row for each arm, and the ratios that are promised."""
    times = {arm: values["times"] for arm, values in result.items()}
    speed, plain = ratios(times, "bare plain"), result["bare plain"]["memory_mb"]
    lines = [
        "| arm | s/step (median) | tokens/s | speed vs bare plain (range) | memory above weights and optimizer, MB | share |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for arm in ARMS:
        seconds, memory = statistics.median(times[arm]), result[arm]["memory_mb"]
        middle, low, high = speed[arm]
        tokens = options.batch * options.length / seconds
        ratio = f"{middle:.3f} ({low:.3f} - {high:.3f})"
        lines.append(f"| {arm} | {seconds:.4f} | {tokens:,.0f} | {ratio} | {memory:.0f} | {memory / plain:.1%} |")
    worst = max(
        abs(a - b) / abs(b)
        for arm in ARMS
        for a, b in zip(result[arm]["losses"], result["bare plain"]["losses"], strict=True)
    )
    return "\n".join([
        *lines, "",
        f"lightgpt2 vs transformers Trainer: {ratios(times, 'trainer plain')['lightgpt2'][0]:.3f}x",
        f"Lightning's loop on the same arithmetic: {1 / ratios(times, 'bare fused')['lightgpt2'][0] - 1:+.1%}",
        f"largest relative difference of any step's loss from the bare plain loop's: {worst:.1e}",
    ])  # fmt: skip


def main() -> None:
    """Runs one arm, or all of them and prints the table."""
    options = parse(__doc__ or "")
    if options.arm:
        child(options.arm, options.folder, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    print(f"\n{machine()}\n\n{table(result, options)}")


if __name__ == "__main__":
    main()
