"""Does training with integers in mind pay? QAT against the same steps in full precision and rounding after them, three seeds.

    python -m benchmarks.qat --model MODEL --source SOURCE --folder FOLDER [--steps N]

Runs the real commands in FOLDER: MODEL trained by `qat.yaml` in INT8 and in INT4 (embeddings included), with `model.delay` 1 as
the control, in which no step sees the integers and the weights are rounded at the end; and in full precision, which both are
held against. All are scored from disk, document by document, on the validation split; the intervals are bootstraps over
documents of the difference between two arms, of each seed and of the mean over seeds.
"""

from benchmarks.common import parser, place
from benchmarks.paired import SETTINGS, compare, options_of

_INT4 = ["--model.quantization.bits", "4"]
_AFTER = ["--model.delay", "1"]
ARMS = {
    "full precision": ["--config", "finetune.yaml"],
    "INT8 rounded after": ["--config", "qat.yaml", *_AFTER],
    "INT8 QAT": ["--config", "qat.yaml"],
    "INT4 rounded after": ["--config", "qat.yaml", *_INT4, *_AFTER],
    "INT4 QAT": ["--config", "qat.yaml", *_INT4],
}
PAIRS = [
    ("INT4 QAT", "INT4 rounded after"), ("INT8 QAT", "INT8 rounded after"), ("INT8 QAT", "full precision"),
    ("INT4 QAT", "full precision"),
]  # fmt: skip
_OPTIMIZER = {"lr": 3e-4, "weight_decay": 0.0, "warmup_steps": 20, "decay": "cosine"}  # as in qat.yaml

if __name__ == "__main__":
    _options = parser(__doc__, **SETTINGS).parse_args()
    compare(
        _options, ARMS, PAIRS, options_of(model__model=place(_options.model), model__optimizer=_OPTIMIZER), "source"
    )
