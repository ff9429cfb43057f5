"""The table of docs/families.md: each family of models through each method and format, by the real command.

    python -m benchmarks.families > docs/families.md

A model of a family is tiny and random, and has what the default configuration of its type in transformers has, but for its
sizes. A cell is `yes` if the command succeeds, which verifies what it exports; else it is what the command says.
"""

import io
import tempfile
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from pydoc_data.topics import topics
from sys import modules
from typing import Any, get_args

import torch
import yaml
from transformers import AutoConfig, PreTrainedModel

from benchmarks.common import markdown, parser
from lightgpt2.cli import verbs
from lightgpt2.conversions.target import Format
from lightgpt2.data.tokenizer import train_tokenizer
from lightgpt2.models.axes import Shape
from lightgpt2.models.families import DECODERS, ENCODER_DECODERS, ENCODERS, RECURRENT
from lightgpt2.models.loading import new_model
from lightgpt2.models.surgery import keep_layers

_ERROR = "lightgpt2: error: "
_LAYERS, _HEAD, _VOCABULARY, _POSITIONS = 6, 64, 300, 8192  # in every sixth layer of Gemma 3 is another attention

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "train": ("FineTune", {}),
    "adapters": ("LoRA", {}),
    "trim": ("Trim", {"layers": 3}),
    "remove": ("MovementPruning", {"pruning": {"attention": 0.5, "ffn": 0.5}}),
    "QAT": ("QAT", {}),
}
EXPORTS = {"ONNX": [form for form in get_args(Format) if form.startswith("onnx")], "GGUF": ["gguf"]}

_TEXT = """# Families of models

A model of one of these types can be trained and exported; each type is one file in `lightgpt2/models/families/`. This page is
what `python -m benchmarks.families` prints. It tries each method and format with a tiny random model that has the default
configuration of its type in transformers, but for its sizes. A cell that is not `yes` is the reason that the command gives.
With other settings the answer may differ: the command gives a model's own before anything is trained or written.

{table}

| column | what was tried |
| --- | --- |
| train | `FineTune`; `Distill` takes the same models as teacher and student |
| adapters | `LoRA`, on the layers that PEFT or the family chooses |
| trim | `Trim` to half of the layers and of the width |
| remove | `MovementPruning`; its heads and neurons are removed |
| QAT | `QAT` in INT8 |
| ONNX | `lightgpt2 export` in FP32, INT8 and INT4, with a cache |
| GGUF | `lightgpt2 export` in F16, for llama.cpp |

GGUF also needs a tokenizer that is written there: a byte-level BPE of the kind of GPT-2, Pythia, SmolLM, Llama 3 or Qwen.
Those of Gemma 3, Phi-3 and Mistral 7B are not: export these models to ONNX. Phi models of 128k tokens (rotary positions
of type longrope) can be trained and not exported.

DistilGPT-2 is of type `gpt2`, Pythia of type `gpt_neox`. Encoders ({encoders}) [classify](classification.md).
Encoder-decoders ({encoder_decoders}) take every method with `lightgpt2.tasks.Summarization`; FLAN-T5 is of
type `t5`. Not supported are those whose encoder and decoder have different numbers of heads or neurons, and a T5 whose decoder
is deeper than its encoder. Other types, for example `gpt_neo` and `bloom`, are refused in one line.
Recurrent models ({recurrent}) are described in [Typing](typing.md#character-models).
"""


def page() -> str:
    """The page: one row for each family."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        text = "\n".join(topics[name] for name in sorted(topics)[:12])
        Path("corpus").mkdir()
        Path("corpus/text.txt").write_text(text[:9600])
        rows = [[f"`{name}`", _title(name), *_cells(name)] for name in sorted(DECODERS)]
    table = markdown(["type", "models", *METHODS, *EXPORTS], rows)
    others = {"encoders": ENCODERS, "encoder_decoders": ENCODER_DECODERS, "recurrent": RECURRENT}
    named = {key: ", ".join(f"`{name}`" for name in sorted(types)) for key, types in others.items()}
    return _TEXT.format(table=table, **named)


def _title(model_type: str) -> str:
    """The models of a type, as its file's first line names them."""
    return str(modules[type(DECODERS[model_type]).__module__].__doc__).partition(":")[0]


def _cells(model_type: str) -> Iterator[str]:
    torch.manual_seed(0)
    model = tiny(model_type)
    train_tokenizer([topics["class"]], _VOCABULARY, Path(model_type))
    model.save_pretrained(model_type)
    width = Shape.of(model.config).width // 2
    for method, settings in METHODS.values():
        config = _config(model_type, method, settings | ({"width": width} if method == "Trim" else {}))
        Path("config.yaml").write_text(yaml.safe_dump(config))
        yield _said("fit", "--config", "config.yaml", "--run", f"{model_type}-{method}")
    for forms in EXPORTS.values():
        said = [
            _said("export", model_type, "--format", form, "--data", "corpus", "--output", f"{model_type}-{form}")
            for form in forms
        ]
        yield (
            said[0]
            if len({*said}) == 1
            else ", ".join(f"{form}: {each}" for form, each in zip(forms, said, strict=True))
        )


def tiny(model_type: str) -> PreTrainedModel:
    """A random model with two heads of the default size, but at most `_HEAD`."""
    config, family = AutoConfig.for_model(model_type), DECODERS[model_type]
    head = min(family.shape(config).head, _HEAD)
    config = family.resized(config, Shape(2 * head, 2, 1, head, 128))
    keep_layers(config, {stack: range(_LAYERS) for stack in family.depths(config)})
    config.vocab_size, config.max_position_embeddings = _VOCABULARY, min(_POSITIONS, config.max_position_embeddings)
    if hasattr(config, "query_pre_attn_scalar"):  # the size of a head, in the default configuration of Gemma 3
        config.query_pre_attn_scalar = head
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    return new_model(config)


def _config(model: str, method: str, settings: dict[str, Any]) -> dict[str, Any]:
    task = {"class_path": "lightgpt2.tasks.language_modeling.LanguageModeling", "init_args": {"samples": 0}}
    data = {"source": "corpus", "sequence_length": 32, "batch_size": 4}
    return {
        "model": {"class_path": f"lightgpt2.methods.{method}", "init_args": {"model": model, "task": task, **settings}},
        "data": {"class_path": "lightgpt2.data.LanguageModelingData", "init_args": data},
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 1, "enable_progress_bar": False},
    }


def _said(*args: str) -> str:
    """`yes` if a command succeeds; else what it says, without keys and fixes."""
    errors, code = io.StringIO(), 0
    with redirect_stdout(io.StringIO()), redirect_stderr(errors):
        try:
            verbs.run([*args])
        except SystemExit as stop:
            code = int(str(stop.code or 0))
    if not code:
        return "yes"
    lines = [line.removeprefix(_ERROR) for line in errors.getvalue().splitlines() if line.startswith(_ERROR)]
    return "; ".join(line.partition(": ")[2].rpartition(";")[0] for line in lines)


if __name__ == "__main__":
    parser(__doc__).parse_args()
    print(page(), end="")
