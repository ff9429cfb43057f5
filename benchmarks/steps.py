"""The arms of `benchmarks.training`, each in a process of its own: a training loop that waits at a gate before every step."""

import argparse
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import GPT2LMHeadModel

from benchmarks.common import CE, KD, TEMPERATURE, plain_loss, random_batches
from lightgpt2.functional.vocabulary import LossWeights, vocabulary_loss
from lightgpt2.measure.child import parent
from lightgpt2.measure.memory import now_mb, peak_mb, reset_peak
from lightgpt2.tasks.base import Predictions

LEARNING_RATE = 1e-4


class Gate:
    """Where an arm's loop waits for its turn."""

    def __init__(self, cuda: bool, pipe: Any) -> None:
        self.cuda, self.pipe, self.loss, self._released = cuda, pipe, torch.zeros(()), 0.0

    def wait(self) -> None:
        """Reports the step that ended here, or that all is loaded, and waits for the word."""
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._released
        if self._released:
            answer = {"seconds": seconds, "loss": float(self.loss), "peak_mb": peak_mb(self.cuda)}
        else:
            reset_peak()
            answer = {"resident_mb": now_mb(self.cuda)}
        self.pipe.send((answer, ""))
        self.pipe.recv()
        self._released = time.perf_counter()


def load(folder: Path, options: argparse.Namespace) -> tuple[Any, Any]:
    """Student and teacher."""
    student = GPT2LMHeadModel.from_pretrained(folder / "student").to(options.device).train()
    teacher = GPT2LMHeadModel.from_pretrained(folder / "teacher").to(options.device).eval().requires_grad_(False)
    if options.compile:
        student.transformer.compile()
        teacher.transformer.compile()
    return student, teacher


def autocast(options: argparse.Namespace) -> torch.autocast:
    """A context, and a decorator, in which bf16 is computed if it is asked for."""
    return torch.autocast(options.device, torch.bfloat16, enabled=options.bf16)


def fused_loss(student: Any, teacher: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """The same mean as `plain_loss`, through LightGPT2's vocabulary loss."""
    hidden, target = (
        model.transformer(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        for model in (student, teacher)
    )
    targets = Predictions(target, teacher.lm_head.weight, labels.flatten()).logits
    weights = LossWeights(CE, KD, "kl", TEMPERATURE)
    return vocabulary_loss(hidden, student.lm_head.weight, labels.flatten(), weights, targets)[0] / labels.numel()


def bare(gate: Gate, folder: Path, batches: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """A loop of nothing but the arithmetic."""
    student, teacher = load(folder, options)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    compute = autocast(options)(fused_loss if options.arm == "bare fused" else plain_loss)
    for batch in batches:
        gate.wait()
        ids, labels = batch["input_ids"].to(options.device), batch["labels"].to(options.device)
        loss = compute(student, teacher, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        gate.loss = loss.detach()


def trainer(gate: Gate, folder: Path, batches: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The transformers Trainer with the plain loss."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    student, teacher = load(folder, options)

    class Distiller(Trainer):
        def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
            loss = autocast(options)(plain_loss)(model, teacher, inputs["input_ids"], inputs["labels"])
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


def lightgpt2(gate: Gate, folder: Path, batches: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """LightGPT2's own method under Lightning's Trainer, with the callbacks that a fit always has."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback

    from lightgpt2.callbacks.monitor import Monitor
    from lightgpt2.data.base import TaskData
    from lightgpt2.methods import Distill, OptimizerConfig
    from lightgpt2.objectives import DistillLoss

    class Wait(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            gate.wait()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
            gate.loss = outputs["loss"]

    class Data(pl.LightningDataModule):
        tokenizer, steps_per_epoch, kept_tokens = SimpleNamespace(get_vocab=dict), len(batches), ()
        connect, fits = TaskData.connect, TaskData.fits

        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

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


ARMS = {"bare plain": bare, "trainer plain": trainer, "bare fused": bare, "lightgpt2": lightgpt2}


def main() -> None:
    pipe = parent()
    _, options = pipe.recv()
    options = argparse.Namespace(**options)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    batches = random_batches(options.rounds + options.warmup + 1, options.batch, options.length, options.vocabulary)
    ARMS[options.arm](Gate(options.device == "cuda", pipe), Path(options.folder), batches, options)


if __name__ == "__main__":
    main()
