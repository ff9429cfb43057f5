"""Does training with integers in mind pay? QAT against the same steps in full precision and rounding after them, three seeds.

    python -m benchmarks.qat --model MODEL --source SOURCE --folder FOLDER [--steps N]

Runs the real commands in FOLDER: MODEL trained by `qat.yaml` in INT8 and in INT4 (embeddings included), with `model.delay` 1 as
the control, in which no step sees the integers and the weights are rounded at the end; and in full precision, which both are
held against. All are scored from disk, document by document, on the validation split; the intervals are bootstraps over
documents of the difference between two arms, seeds averaged.
"""

from benchmarks.paired import arguments, compare, ledger, place, run_name

_INT4 = ["--model.quantization.bits", "4"]
_AFTER = ["--model.delay", "1"]
ARMS = {
    "full precision": ["--config", "finetune.yaml"],
    "INT8 QAT": ["--config", "qat.yaml"],
    "INT8 rounded after": ["--config", "qat.yaml", *_AFTER],
    "INT4 QAT": ["--config", "qat.yaml", *_INT4],
    "INT4 rounded after": ["--config", "qat.yaml", *_INT4, *_AFTER],
}
_OPTIMIZER = {"lr": "3.0e-4", "weight_decay": "0", "warmup_steps": "20", "decay": "cosine"}  # as in qat.yaml


def main() -> None:
    """Runs everything that is not there yet and prints the table."""
    parser = arguments(__doc__)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    optimizer = [part for key, value in _OPTIMIZER.items() for part in (f"--model.optimizer.{key}", value)]
    common = ["--model.model", place(options.model), "--data.source", place(options.source), *optimizer]
    steps = ["--trainer.max_steps", str(options.steps), "--trainer.val_check_interval", str(options.steps)]
    found = compare(options.folder, ARMS, options.seeds, common, steps)
    before = ledger(options.folder, run_name("INT8 QAT", options.seeds[0]))["quality"]["source"]["perplexity"]
    print(f"\n{options.source}: before {before:.2f}, {options.steps} steps\n\n{found.table(options.seeds)}\n")
    pairs = [("INT4 QAT", "INT4 rounded after"), ("INT8 QAT", "INT8 rounded after")]
    for pair in [*pairs, ("INT8 QAT", "full precision"), ("INT4 QAT", "full precision")]:
        print(found.difference(*pair))


if __name__ == "__main__":
    main()
