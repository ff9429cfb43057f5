"""Peak memory of training steps by method, each a `lightgpt2 fit` in its own process.

    python -m benchmarks.memory [--model-type gpt2|bert] [--device cuda] [--batch 8] [--length 128] [--jobs 1]

GPT-2 models language, BERT classifies. Random weights, since only memory is measured; the figures are those of the ledgers.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from benchmarks.common import gpt2, machine, markdown, parser
from benchmarks.paired import fit_all, model_folder, options_of
from lightgpt2.data.corpora import Corpus
from lightgpt2.data.tokenizer import train_tokenizer
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.saving import save_model
from lightgpt2.models.tokenizers import load_tokenizer

METHODS = {"full fine-tuning": "FineTune", "LoRA, r = 8": "LoRA", "QLoRA, r = 8": "QLoRA"}
CHECKPOINTING = {"": False, ", activation checkpointing": True}
DATA = {
    "gpt2": {"data": "lightgpt2.data.LanguageModelingData", "data__source": "pydoc", "data__valid_fraction": 0.03},
    "bert": {
        "data": "lightgpt2.data.ClassificationData", "data__source": "texts.jsonl",
        "model__task": "lightgpt2.tasks.Classification",
    },
}  # fmt: skip
LENGTH = {"gpt2": "data__sequence_length", "bert": "data__max_length"}
TARGETS = {"gpt2": ["c_attn"], "bert": ["query", "key", "value"]}


def write_model(folder: Path, kind: str, layers: int, width: int, heads: int, vocabulary: int) -> Path:
    """A randomly initialised GPT-2, or BERT of two classes, and a tokenizer of the embedded text."""
    tokenizer = folder.with_name(f"{folder.name}-tokenizer")
    texts = [text for _, text in Corpus("pydoc").documents()]
    train_tokenizer(texts[:50], min(vocabulary, 2048), tokenizer)
    if kind == "gpt2":
        model = gpt2(layers, width, heads, 1024, vocabulary)
    else:
        shape = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
        config = AutoConfig.for_model(kind, vocab_size=vocabulary, intermediate_size=4 * width, **shape)
        model = AutoModelForSequenceClassification.from_config(config)
        rows = [json.dumps({"text": text, "label": i % 2}) for i, text in enumerate(texts)]
        (folder.parent / "texts.jsonl").write_text("\n".join(rows))
    save_model(model, load_tokenizer(str(tokenizer), "tokenizer"), folder)
    return folder


def fit_options(method: str, checkpointing: bool, model: Path, options: argparse.Namespace) -> list[str]:
    """Of a few training steps."""
    cuda, kind = options.device == "cuda", options.model_type
    lora = {"r": 8, "alpha": 32, "target_modules": TARGETS[kind]}
    return options_of(
        model=f"lightgpt2.methods.{method}", model__model=str(model), model__activation_checkpointing=checkpointing,
        **({} if method == "FineTune" else {"model__lora": lora}), **DATA[kind], **{LENGTH[kind]: options.length},
        data__batch_size=options.batch, trainer__accelerator="gpu" if cuda else "cpu", trainer__devices=1,
        trainer__max_steps=5, trainer__limit_val_batches=None, trainer__check_val_every_n_epoch=None,
        trainer__val_check_interval=1000, trainer__precision="bf16-mixed" if cuda else "32-true",
    )  # fmt: skip


def rows(folder: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """Peak memory by method, and above what the same process holds with next to no model."""
    kind = options.model_type
    model = write_model(folder / kind, kind, options.layers, options.width, options.heads, options.vocabulary)
    tiny = write_model(folder / "tiny", kind, 1, 64, 2, 300)  # NF4 wants multiples of 64
    fits = {
        f"{each.name}-{method}-{checkpointing}": fit_options(method, checkpointing, each, options)
        for method in METHODS.values()
        for each, checkpointing in ((tiny, False), *((model, each) for each in CHECKPOINTING.values()))
    }
    fit_all(folder, fits, options.jobs, torch.get_num_threads() // options.jobs or 1)
    peaks = {run: float(Ledger.read(model_folder(folder, run)).last["training"]["peak_memory_mb"]) for run in fits}
    whole = 0.0
    for name, method in METHODS.items():
        for more, checkpointing in CHECKPOINTING.items():
            peak = peaks[f"{kind}-{method}-{checkpointing}"]
            above = peak - peaks[f"tiny-{method}-False"]
            whole = whole or above
            yield [name + more, f"{peak:.0f}", f"{above:.0f}", f"{above / whole - 1:+.1%}"]


def table(options: argparse.Namespace) -> str:
    """A row for each method."""
    header = ["method", "peak MB", "above a process with a tiny model, MB", "against full fine-tuning"]
    with tempfile.TemporaryDirectory() as name:
        return markdown(header, rows(Path(name), options))


if __name__ == "__main__":
    _options = parser(
        __doc__, model_type="gpt2", layers=12, width=768, heads=12, vocabulary=50257, batch=8, length=128, jobs=1,
        device="cuda" if torch.cuda.is_available() else "cpu",
    ).parse_args()  # fmt: skip
    print(machine(), flush=True)
    print(table(_options))
