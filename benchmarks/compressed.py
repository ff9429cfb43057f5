"""What the whole chain buys at GPT-2's shape: half of the layers, heads and neurons removed, INT4, against plain GPT-2.

    python -m benchmarks.compressed [--heads 0.5] [--neurons 0.6] [--rounds 5]

Random weights, since only time, files and memory are measured. Six of twelve layers are taken (0, 2, 4, 7, 9, 11), and exported
without a share of their heads and neurons, drawn at random over all layers, so that these differ as movement pruning leaves
them. All is measured by `benchmarks.inference` against the whole model in transformers (eager attention, FP32).
"""

import argparse
import tempfile
from pathlib import Path

import transformers

from benchmarks import inference
from benchmarks.removal import without
from lightgpt2.models.loading import load_model, load_tokenizer
from lightgpt2.models.saving import save_model
from lightgpt2.models.surgery import apply

LAYERS = [0, 2, 4, 7, 9, 11]


def compress(whole: Path, target: Path, shares: tuple[float, float]) -> None:
    """Writes the model with half of its layers, and those without shares of their heads and neurons."""
    halved = target.with_name("halved")
    operation = {"op": "extract_layers", "layers": LAYERS}
    save_model(apply(load_model(str(whole), "model"), [operation]), load_tokenizer(str(whole), "tokenizer"), halved)
    without(halved, target, shares)


def main() -> None:
    """Prints the table of `benchmarks.inference`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=float, default=0.5)
    parser.add_argument("--neurons", type=float, default=0.6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keeps the models here")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        whole, compressed = inference.random_gpt2(folder / "whole"), folder / "compressed"
        if not compressed.exists():
            compress(whole, compressed, (options.heads, options.neurons))
        command = ["--model", str(compressed), "--baseline", str(whole), "--arms", "lightgpt2"]
        settings = inference.parse([*command, "--rounds", str(options.rounds)])
        print(inference.table(inference.measure(settings, folder)))


if __name__ == "__main__":
    main()
