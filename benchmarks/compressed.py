"""What the whole chain buys at GPT-2's shape: half of the layers, heads and neurons removed, INT4, against plain GPT-2.

    python -m benchmarks.compressed [--heads 0.5] [--neurons 0.6] [--rounds 5] [--folder KEEP]

Random weights, since only time, files and memory are measured. Six of twelve layers are taken (0, 2, 4, 7, 9, 11), and exported
without a share of their heads and neurons, drawn at random over all layers, so that these differ as movement pruning leaves
them. All is measured by `benchmarks.inference` against the whole model in transformers (eager attention, FP32).
"""

import tempfile
from pathlib import Path

from benchmarks import inference
from benchmarks.common import parser
from benchmarks.removal import without
from lightgpt2.models.loading import load_model
from lightgpt2.models.saving import save_model
from lightgpt2.models.surgery import extract_layers
from lightgpt2.models.tokenizers import load_tokenizer

LAYERS = [0, 2, 4, 7, 9, 11]


def main() -> None:
    options = parser(__doc__, heads=0.5, neurons=0.6, rounds=5, folder={"type": Path}).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        whole, halved, compressed = inference.random_gpt2(folder / "whole"), folder / "halved", folder / "compressed"
        if not compressed.exists():
            model = extract_layers(load_model(str(whole), "model"), LAYERS)
            save_model(model, load_tokenizer(str(whole), "tokenizer"), halved)
            without(halved, compressed, (options.heads, options.neurons))
        models = ["--model", str(compressed), "--baseline", str(whole), "--folder", str(folder)]
        inference.main([*models, "--arms", "lightgpt2", "--rounds", str(options.rounds)])


if __name__ == "__main__":
    main()
