"""What the chain's stages cost and save on this machine, at GPT-2's shapes.

    python -m benchmarks.chain [--parts training inference decode] [--device cuda]

Random weights, since only time and memory are measured. `training`: peak memory of the training steps by method, each a
`lightgpt2 fit` in its own process, as the ledger has it. `inference`: every precision with every attention, as `lightgpt2
benchmark` measures them. `decode`: greedy decoding with a static cache, compiled on CUDA, against eager decoding, in turns.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common import gpt2, machine, markdown, parser
from benchmarks.paired import fit_all, model_folder, options_of
from lightgpt2.cli.commands import benchmark
from lightgpt2.data.corpora import Corpus
from lightgpt2.data.tokenizer import train_tokenizer
from lightgpt2.measure.arms import Arm, Settings
from lightgpt2.measure.benchmark import ratios, speeds_of
from lightgpt2.measure.torch_worker import TorchWorker
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.loading import load_tokenizer
from lightgpt2.models.saving import save_model

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


def training(folder: Path, model: Path, options: argparse.Namespace) -> None:
    """Peak memory by method, and above what the same process holds with next to no model."""
    tiny = write_model(folder / "tiny", 1, 64, 2, 300)  # NF4 wants multiples of 64
    rows: list[list[str]] = []
    whole = 0.0
    for name, method in METHODS.items():
        libraries = fit_memory(folder, method, False, tiny, options)
        for more, checkpointing in CHECKPOINTING.items():
            peak = fit_memory(folder, method, checkpointing, model, options)
            above = peak - libraries
            whole = whole or above
            rows.append([name + more, f"{peak:.0f}", f"{above:.0f}", f"{above / whole - 1:+.1%}"])
    header = ["method", "peak MB", "above a process with a tiny model, MB", "against full fine-tuning"]
    print(markdown(header, rows))


def inference(folder: Path, model: Path, options: argparse.Namespace) -> None:
    """All precisions with all kinds of attention."""
    benchmark(
        [str(model)], precision=["fp32", "bf16", "int8", "nf4"], attention=["eager", "sdpa", "flash"], rounds=options.rounds,
        new_tokens=[options.new_tokens, 2 * options.new_tokens], prompt_tokens=options.prompt, forward_tokens=options.length,
        device=options.device, output=str(folder / "benchmark.json"), traces=str(folder / "traces"),
    )  # fmt: skip


def decode(folder: Path, model: Path, options: argparse.Namespace) -> None:
    """Tokens/s with the default cache, eager, and with a compiled static one; the first runs of each are not counted."""
    # With a static cache transformers compiles by itself, on CUDA only.
    cuda = options.device == "cuda"
    static = "compiled, static cache" if cuda else "static cache, not compiled"
    precision, device = ("bf16", "cuda:0") if cuda else ("fp32", "cpu")
    settings = Settings(options.prompt, [options.new_tokens], options.length, [], options.rounds)
    arms = {name: TorchWorker(Arm(name, str(model), precision, "sdpa"), settings, device) for name in ("eager", static)}
    for name, arm in arms.items():
        arm.load()
        arm.model.generation_config.cache_implementation = "static" if name == static else None
        arm.round()
    rounds = [{name: arm.round() for name, arm in arms.items()} for _ in range(options.rounds)]
    speeds = {name: speeds_of([each[name] for each in rounds]) for name in arms}
    rows = []
    for name, ratio in ratios(speeds).items():
        (speed,), (against,) = speeds[name].values(), ratio.values()
        rows.append([name, f"{statistics.median(speed):.1f}", f"{against['median']:.2f}x"])
    print(markdown(["decode", "tokens/s", "against eager"], rows))


PARTS = {"training": training, "inference": inference, "decode": decode}


def tables(parts: Sequence[str], options: argparse.Namespace) -> None:
    """Prints the named tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder / "gpt2", options.layers, options.width, options.heads, options.vocabulary)
        for part in parts:
            print(f"\n{part}\n", flush=True)
            PARTS[part](folder, model, options)


def main() -> None:
    options = parser(
        __doc__, layers=12, width=768, heads=12, vocabulary=50257, batch=8, length=128, prompt=32, new_tokens=128, rounds=5,
        device="cuda" if torch.cuda.is_available() else "cpu", parts={"nargs": "+", "choices": PARTS, "default": [*PARTS]},
    ).parse_args()  # fmt: skip
    print(machine(), flush=True)
    tables(options.parts, options)


if __name__ == "__main__":
    main()
