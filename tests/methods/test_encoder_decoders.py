"""Every method on encoder-decoders: the real command, and what it leaves is what plain transformers computes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from lightgpt2.models.axes import Shape
from lightgpt2.models.families import family_of
from lightgpt2.models.loading import load_model
from tests.support.mistakes import Bench
from tests.support.models import write_seq2seq
from tests.support.stages import assert_replayed, entries, stage

_TASK = {"class_path": "lightgpt2.tasks.Summarization", "init_args": {"samples": 0, "max_new_tokens": 4}}
_DATA = {
    "class_path": "lightgpt2.data.TextToTextData",
    "init_args": {"source": "pairs.jsonl", "max_source_length": 32, "max_target_length": 12, "batch_size": 4},
}
_LOSS = {"ce": 0.1, "hidden": 3.0, "kd": 0.8}


def summarizing(bench: Bench, method: str, model: str = "model", steps: int = 2, **init: Any) -> dict[str, Any]:
    """The changes that train a model to summarize some lines."""
    words = [f"line {i} of the {'long' if i % 2 else 'short'} text says that {i * 7} things are {i}" for i in range(40)]
    pairs = [{"text": f"{word}. {words[i - 1]}.", "summary": word[:20]} for i, word in enumerate(words)]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    changes = stage(method, model, **{"task": _TASK, **init}) | {"trainer.max_steps": steps, "data": _DATA}
    if method == "Distill":
        changes["model"]["init_args"]["teacher"] = changes["model"]["init_args"].pop("model")
    return changes


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    ids = torch.arange(60).view(2, 30) * 3
    return model.eval()(input_ids=ids, decoder_input_ids=ids[:, :9]).logits


def fitted(bench: Bench, changes: dict[str, Any]) -> PreTrainedModel:
    """A run's artefact, of which transformers and this package agree."""
    bench.configure(changes)
    bench.succeed("fit")
    model = load_model("checkpoints/r/model", "m")
    plain = AutoModelForSeq2SeqLM.from_pretrained("checkpoints/r/model", trust_remote_code=True)
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=1e-5)
    return model


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "FineTune": ("FineTune", {}),
    "half of the layers": ("Distill", {"loss": _LOSS}),
    "layers by stack": (
        "Distill",
        {"layers": {"encoder": [0, 2], "decoder": 1}, "layer_map": {"decoder": [1]}, "loss": _LOSS},
    ),
    "Trim": ("Trim", {"layers": {"decoder": 2}, "width": 16, "ffn": 20, "heads": 2, "vocabulary": "corpus", "loss": _LOSS}),
    "Trim by activation": ("Trim", {"heads": 4, "ffn": 20, "importance": "activation", "calibration": 8}),
    "heads and neurons": ("MovementPruning", {"pruning": {"attention": 0.4, "ffn": 0.6}}),
    "blocks": ("MovementPruning", {"pruning": {"attention": 0.4, "ffn": 0.6, "granularity": "block", "block": 8}}),
    "LoRA": ("LoRA", {}),
    "QAT": ("QAT", {}),
    "QAT of everything": ("QAT", {"quantization": {"bits": 4, "group": 16, "embeddings": True, "activations": True}}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_each_method_trains_it(bench: Bench, family: str, name: str) -> None:
    method, init = METHODS[name]
    write_seq2seq(Path("model"), family)
    model = fitted(bench, summarizing(bench, method, **init))
    done = {operation["op"]: operation for operation in entries()[-1]["operations"]}
    depths, shape = family_of(model).depths(model.config), Shape.of(model.config)
    if name == "layers by stack":
        assert depths == {"encoder": 2, "decoder": 1}
        assert done["extract_layers"]["layers"] == {"encoder": [0, 2], "decoder": [0]}
    if name == "Trim":
        assert (shape.width, shape.heads, shape.ffn, depths["decoder"]) == (16, 2, 20, 2)
        assert done["trim_vocabulary"]["after"] == model.config.vocab_size < 300
    if name == "heads and neurons":
        assert done["remove"]["heads"]["removed"] == round(0.4 * done["remove"]["heads"]["of"])
        assert {*model.config.lightgpt2["heads"]} == {"encoder", "decoder", "decoder.cross"}
    if "remove" in done or "trim" in done:
        assert_replayed(load_model("model", "m"), entries()[-1], model)
