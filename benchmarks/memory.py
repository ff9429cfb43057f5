"""Peak memory of training steps by method at GPT-2's shapes, each a `lightgpt2 fit` in its own process.

    python -m benchmarks.memory [--device cuda] [--batch 8] [--length 128]

Random weights, since only memory is measured; the figures are those of the ledgers.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.common import gpt2, machine, markdown, parser
from benchmarks.paired import fit_all, model_folder, options_of
from lightgpt2.data.corpora import Corpus
from lightgpt2.data.tokenizer import train_tokenizer
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.saving import save_model
from lightgpt2.models.tokenizers import load_tokenizer

METHODS = {"full fine-tuning": "FineTune", "LoRA, c_attn, r = 8": "LoRA", "QLoRA, c_attn, r = 8": "QLoRA"}
CHECKPOINTING = {"": False, ", activation checkpointing": True}


def write_model(folder: Path, layers: int, width: int, heads: int, vocabulary: int) -> Path:
    """A randomly initialised GPT-2 and a tokenizer of the embedded text."""
    tokenizer = folder.with_name(f"{folder.name}-tokenizer")
    train_tokenizer([text for _, text in Corpus("pydoc").documents()][:50], min(vocabulary, 2048), tokenizer)
    save_model(gpt2(layers, width, heads, 1024, vocabulary), load_tokenizer(str(tokenizer), "tokenizer"), folder)
    return folder


def fit_memory(folder: Path, method: str, checkpointing: bool, model: Path, options: argparse.Namespace) -> float:
    """Peak memory of a few training steps in MB, in its own process."""
    cuda, run = options.device == "cuda", f"{model.name}-{method}-{checkpointing}"
    adapters = {} if method == "FineTune" else {"model__lora": {"r": 8, "alpha": 32, "target_modules": ["c_attn"]}}
    settings = options_of(
        model=f"lightgpt2.methods.{method}", model__model=str(model), model__activation_checkpointing=checkpointing, **adapters,
        data="lightgpt2.data.LanguageModelingData", data__source="pydoc", data__sequence_length=options.length,
        data__batch_size=options.batch, data__valid_fraction=0.03, trainer__accelerator="gpu" if cuda else "cpu",
        trainer__devices=1, trainer__max_steps=5, trainer__limit_val_batches=None, trainer__check_val_every_n_epoch=None,
        trainer__val_check_interval=1000, trainer__precision="bf16-mixed" if cuda else "32-true",
    )  # fmt: skip
    fit_all(folder, {run: settings}, threads=torch.get_num_threads())
    return float(Ledger.read(model_folder(folder, run)).last["training"]["peak_memory_mb"])


def rows(folder: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """Peak memory by method, and above what the same process holds with next to no model."""
    model = write_model(folder / "gpt2", options.layers, options.width, options.heads, options.vocabulary)
    tiny = write_model(folder / "tiny", 1, 64, 2, 300)  # NF4 wants multiples of 64
    whole = 0.0
    for name, method in METHODS.items():
        libraries = fit_memory(folder, method, False, tiny, options)
        for more, checkpointing in CHECKPOINTING.items():
            peak = fit_memory(folder, method, checkpointing, model, options)
            above = peak - libraries
            whole = whole or above
            yield [name + more, f"{peak:.0f}", f"{above:.0f}", f"{above / whole - 1:+.1%}"]


def main() -> None:
    options = parser(
        __doc__, layers=12, width=768, heads=12, vocabulary=50257, batch=8, length=128,
        device="cuda" if torch.cuda.is_available() else "cpu",
    ).parse_args()  # fmt: skip
    print(machine(), flush=True)
    header = ["method", "peak MB", "above a process with a tiny model, MB", "against full fine-tuning"]
    with tempfile.TemporaryDirectory() as name:
        print(markdown(header, rows(Path(name), options)))


if __name__ == "__main__":
    main()
