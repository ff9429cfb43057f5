"""What the chain's stages cost and save on this machine, at GPT-2's shapes.

    python -m benchmarks.chain [--parts training inference decode] [--device cuda]

Random weights, since only time and memory are measured. `training`: peak memory of the training steps by method, each a
`lightgpt2 fit` in its own process, as the ledger has it. `inference`: every precision with every attention, as `lightgpt2
benchmark` measures them. `decode`: greedy decoding with a static cache, compiled on CUDA, against eager decoding, in turns.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GPT2LMHeadModel

from benchmarks.common import gpt2, machine, markdown, parser, ratios
from benchmarks.paired import Fit, fit_all, model_folder
from lightgpt2.data.corpora import Corpus
from lightgpt2.data.tokenizer import train_tokenizer
from lightgpt2.measure.arms import Settings, plan
from lightgpt2.measure.benchmark import measure
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.loading import load_tokenizer
from lightgpt2.models.saving import save_model
from lightgpt2.report.benchmark_table import benchmark_table

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
    init: dict[str, Any] = {"model": str(model), "activation_checkpointing": checkpointing}
    if method != "FineTune":
        init["lora"] = {"r": 8, "alpha": 32, "target_modules": ["c_attn"]}
    data = {"source": "pydoc", "sequence_length": options.length, "batch_size": options.batch, "valid_fraction": 0.03}
    cuda = options.device == "cuda"
    config = {
        "model": {"class_path": f"lightgpt2.methods.{method}", "init_args": init},
        "data": {"class_path": "lightgpt2.data.LanguageModelingData", "init_args": data},
        "trainer": {
            "accelerator": "gpu" if cuda else "cpu", "devices": 1, "max_steps": 5, "limit_val_batches": None,
            "check_val_every_n_epoch": None, "val_check_interval": 1000, "precision": "bf16-mixed" if cuda else "32-true",
        },
    }  # fmt: skip
    path = folder / f"{model.name}-{method}-{checkpointing}.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    fit_all(folder, [Fit(path.stem, ["--config", str(path)])], threads=torch.get_num_threads())
    return float(Ledger.read(model_folder(folder, path.stem)).last["training"]["peak_memory_mb"])


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
    new = [options.new_tokens, 2 * options.new_tokens]
    settings = Settings(options.prompt, new, options.length, [1, 16], options.rounds)
    arms = plan([str(model)], ["fp32", "bf16", "int8", "nf4"], ["eager", "sdpa", "flash"], settings)
    device = "cuda:0" if options.device == "cuda" else "cpu"
    print(benchmark_table(measure(arms, settings, device, folder / "traces")))


def decode(folder: Path, model: Path, options: argparse.Namespace) -> None:
    """Tokens/s with the default cache, eager, and with a compiled static one; the first runs of each are not counted."""
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    loaded = GPT2LMHeadModel.from_pretrained(model, dtype=dtype).to(options.device).eval()
    loaded.generation_config.eos_token_id = None
    prompt = torch.ones(1, options.prompt, dtype=torch.long, device=options.device)
    count = options.new_tokens

    def seconds(**more: Any) -> float:
        start = time.perf_counter()
        loaded.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, min_new_tokens=count, max_new_tokens=count,
            pad_token_id=0, **more,
        )  # fmt: skip
        if options.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    # With a static cache transformers compiles by itself, on CUDA only.
    static = "compiled, static cache" if options.device == "cuda" else "static cache, not compiled"
    arms: dict[str, dict[str, Any]] = {"eager": {}, static: {"cache_implementation": "static"}}
    for more in arms.values():
        for _ in range(3):
            seconds(**more)
    rounds = [{name: seconds(**more) for name, more in arms.items()} for _ in range(options.rounds)]
    times = {name: [found[name] for found in rounds] for name in arms}
    rows = (
        [name, f"{count / statistics.median(times[name]):.1f}", f"{middle:.2f}x"]
        for name, (middle, _, _) in ratios(times, "eager").items()
    )
    print(markdown(["decode", "tokens/s", "against eager"], rows))


PARTS = {"training": training, "inference": inference, "decode": decode}


def tables(parts: Sequence[str], options: argparse.Namespace) -> None:
    """Prints the named tables."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder / "gpt2", options.layers, options.width, options.heads, options.vocabulary)
        for part in parts:
            print(f"\n{part}\n", flush=True)
            PARTS[part](folder, model, options)


def main() -> None:
    """Prints the tables that are asked for."""
    command = parser(
        __doc__, layers=12, width=768, heads=12, vocabulary=50257, batch=8, length=128, prompt=32, new_tokens=128, rounds=5,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )  # fmt: skip
    command.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    options = command.parse_args()
    print(machine(), flush=True)
    tables(options.parts, options)


if __name__ == "__main__":
    main()
