"""Does the removal of heads and neurons give the speed that the removed work predicts? At GPT-2's shapes, on this machine.

    python -m benchmarks.removal [--heads 0.3] [--neurons 0.6] [--rounds 5]

Random weights, since only time is measured: a GPT-2 and the same without a share of its heads and neurons, drawn at random over
all layers, so that layers end with different numbers of them. Both are measured in turns as `lightgpt2 benchmark` does, each in
a process of its own. Predicted is the ratio of multiplications in linear layers, vocabulary head and attention.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import transformers

from benchmarks.chain import write_model
from benchmarks.common import machine
from lightgpt2.functional.pruning import keep_masks, random_scores
from lightgpt2.measure.arms import Settings, plan
from lightgpt2.measure.benchmark import measure
from lightgpt2.models.axes import Shape, block_sizes, block_units
from lightgpt2.models.loading import load_model, load_tokenizer
from lightgpt2.models.saving import save_model
from lightgpt2.models.trimming import remove
from lightgpt2.report.benchmark_table import benchmark_table


def multiplications(config: transformers.PretrainedConfig, tokens: int) -> int:
    """Of one position in a forward pass of so many tokens, on the average."""
    shape, (heads, neurons) = Shape.of(config), block_sizes(config)
    channels = shape.head * sum(heads)
    attention = channels * (
        4 * shape.width + tokens + 1
    )  # a position sees half of the tokens, once for keys and once for values
    return attention + 2 * shape.width * sum(neurons) + shape.width * config.vocab_size


def without(whole: Path, smaller: Path, shares: tuple[float, float]) -> None:
    """Writes the model without shares of its heads and neurons, drawn at random."""
    model, masks = load_model(str(whole), "model"), []
    for seed, (share, counts) in enumerate(zip(shares, block_units(model.config), strict=True)):
        scores = random_scores({str(i): torch.empty(count) for i, count in enumerate(counts)}, seed)
        masks.append(list(keep_masks(scores, share).values()))
    save_model(remove(model, *masks), load_tokenizer(str(whole), "tokenizer"), smaller)


def main() -> None:
    """Prints what was measured and what was predicted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=float, default=0.3)
    parser.add_argument("--neurons", type=float, default=0.6)
    defaults = {
        "layers": 12,
        "width": 768,
        "model-heads": 12,
        "vocabulary": 50257,
        "length": 128,
        "new-tokens": 64,
        "rounds": 5,
    }
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = write_model(folder / "whole", options.layers, options.width, options.model_heads, options.vocabulary)
        without(whole, folder / "removed", (options.heads, options.neurons))
        settings = Settings(32, [options.new_tokens], options.length, [1, 16], options.rounds)
        arms = plan([str(whole), str(folder / "removed")], ["fp32"], ["sdpa"], settings)
        print(benchmark_table(measure(arms, settings, "cpu", folder / "traces")))
        configs = [load_model(str(path), "model").config for path in (whole, folder / "removed")]
    for what, tokens in (
        (f"forward of {options.length} tokens", options.length),
        ("a new token", 32 + options.new_tokens // 2),
    ):
        before, after = (multiplications(config, tokens) for config in configs)
        print(
            f"predicted, {what}: {before / 1e6:.1f} to {after / 1e6:.1f} million multiplications, {before / after:.2f}x"
        )


if __name__ == "__main__":
    main()
