"""Does the removal of heads and neurons give the speed that the removed work predicts? At GPT-2's shapes, on this machine.

    python -m benchmarks.removal [--heads 0.3] [--neurons 0.6] [--rounds 5]

Random weights, since only time is measured: a GPT-2 and the same without a share of its heads and neurons, drawn at random over
all layers, so that layers end with different numbers of them. Both are measured in turns as `lightgpt2 benchmark` does, each in
its own process. Predicted is the ratio of multiplications in linear layers, vocabulary head and attention.
"""

import tempfile
from pathlib import Path

import torch
import transformers

from benchmarks.common import machine, parser
from benchmarks.memory import write_model
from lightgpt2.cli.commands import benchmark
from lightgpt2.functional.pruning import keep_masks, random_scores
from lightgpt2.models.axes import Shape, block_sizes, block_units
from lightgpt2.models.loading import load_model
from lightgpt2.models.saving import save_model
from lightgpt2.models.tokenizers import load_tokenizer
from lightgpt2.models.trimming import remove


def multiplications(config: transformers.PretrainedConfig, tokens: int) -> int:
    """Those of one position in a forward pass over a number of tokens, on the average."""
    shape, (heads, neurons) = Shape.of(config), block_sizes(config)
    # A position sees half of the tokens, once for keys and once for values.
    attention = shape.head * sum(heads.values()) * (4 * shape.width + tokens + 1)
    return attention + 2 * shape.width * sum(neurons.values()) + shape.width * config.vocab_size


def without(whole: Path, smaller: Path, shares: tuple[float, float]) -> None:
    """Writes the model without shares of its heads and neurons, drawn at random."""
    model, masks = load_model(str(whole), "model"), []
    for seed, (share, counts) in enumerate(zip(shares, block_units(model.config), strict=True)):
        scores = random_scores({name: torch.empty(count) for name, count in counts.items()}, seed)
        masks.append(keep_masks(scores, share))
    save_model(remove(model, *masks), load_tokenizer(str(whole), "tokenizer"), smaller)


def main() -> None:
    options = parser(
        __doc__, heads=0.3, neurons=0.6, layers=12, width=768, model_heads=12, vocabulary=50257, length=128, new_tokens=64,
        rounds=5,
    ).parse_args()  # fmt: skip
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = write_model(folder / "whole", options.layers, options.width, options.model_heads, options.vocabulary)
        without(whole, folder / "removed", (options.heads, options.neurons))
        benchmark(
            [str(whole), str(folder / "removed")], precision=["fp32"], attention=["sdpa"], rounds=options.rounds,
            new_tokens=[options.new_tokens], forward_tokens=[options.length], device="cpu",
            output=str(folder / "benchmark.json"), traces=str(folder / "traces"),
        )  # fmt: skip
        configs = [load_model(str(path), "model").config for path in (whole, folder / "removed")]
    forward, token = f"forward of {options.length} tokens", "a new token"
    for what, tokens in {forward: options.length, token: 32 + options.new_tokens // 2}.items():
        before, after = (multiplications(config, tokens) for config in configs)
        counts = f"{before / 1e6:.1f} to {after / 1e6:.1f} million multiplications"
        print(f"predicted, {what}: {counts}, {before / after:.2f}x")


if __name__ == "__main__":
    main()
