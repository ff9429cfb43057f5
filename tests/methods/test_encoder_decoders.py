"""Every method on encoder-decoders: the real command, and what it leaves is what plain transformers computes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from lightgpt2.methods import FineTune
from lightgpt2.models.axes import Shape
from lightgpt2.models.families import block_linears, family_of, is_tied
from lightgpt2.models.loading import load_model
from lightgpt2.models.quantization import Format, quantize_folder
from tests.models.test_encoder_decoder import untied
from tests.support.mistakes import Bench
from tests.support.models import write_seq2seq, write_tokenizer
from tests.support.stages import assert_replayed, callback, entries, stage

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


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Distill", {"layers": {"decoder": [0, 4]}}, "model.layers: decoder: layers [4]: a model of 4 layers has layers 0 to 3"),
    ("Distill", {"layers": {"decodr": 1}}, "model.layers: the model has no decodr; it has encoder and decoder"),
    ("Distill", {"layers": 9}, "model.layers: encoder: cannot choose 9 of 3 layers; give at most 3"),
    ("Trim", {"layers": {"encoder": [1, 1]}}, "model.layers: encoder: layers [1] come more than once"),
    (
        "Distill", {"layers": 2, "layer_map": {"encoder": [0, 7]}, "loss": _LOSS},
        "model.layer_map: encoder: layers [7]: a model of 3 layers has layers 0 to 2",
    ),
    (
        "Distill", {"layers": 2, "layer_map": {"decoder": [0]}, "loss": _LOSS},
        "model.layer_map: decoder: it lists 1 layers and the student has 2",
    ),
    ("LoRA", {"lora": {"target_modules": ["c_attn"]}}, "model.lora.target_modules: the model has no module c_attn; its linear"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "init", "words"), REFUSED)
def test_layers_that_a_stack_lacks_are_refused(bench: Bench, method: str, init: dict[str, Any], words: str) -> None:
    write_seq2seq(Path("model"), "bart")
    bench.configure(summarizing(bench, method, **init))
    assert bench.refused("fit", touches=method == "LoRA").startswith(words)


def test_a_decoder_deeper_than_the_encoder_of_a_t5_is_refused(bench: Bench) -> None:
    write_seq2seq(Path("model"), "t5")
    bench.configure(summarizing(bench, "Distill", layers={"encoder": 1, "decoder": 2}))
    assert bench.refused("fit").startswith("model.layers: a T5 whose decoder has more layers (2) than its encoder (1)")


def test_a_task_for_decoders_refuses_an_encoder_decoder_and_the_other_way_round(bench: Bench) -> None:
    write_seq2seq(Path("model"), "bart")
    bench.configure(stage("FineTune", "model"))
    assert bench.refused("fit").startswith("model.model: models of type 'bart' are not supported for this task; use")


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


WIDE = {  # of which bitsandbytes computes every layer right
    "bart": {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128},
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 128},
}
WHOLE = {"bart": 0, "t5": 7}  # layers that transformers leaves in full precision, beside the head


@pytest.mark.parametrize("form", ["nf4", "int8"])
@pytest.mark.parametrize("family", WIDE)
def test_a_quantized_sibling_loads_plainly(tmp_path: Path, family: str, form: Format) -> None:
    source = write_seq2seq(tmp_path / "m", family, **WIDE[family])
    made = quantize_folder(source, tmp_path / "q", form, write_tokenizer(tmp_path / "t"))
    count = len(block_linears(load_model(str(source), "m")))
    assert (made["matched"], made["linears"]) == (count - WHOLE[family], count + 1)
    assert len(made["kept"]) == WHOLE[family] + 1
    plain = AutoModelForSeq2SeqLM.from_pretrained(source, dtype=torch.float32)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "q")
    error = (logits(loaded).float() - logits(plain)).norm() / logits(plain).norm()
    assert 0 < error < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("family", WIDE)
def test_adapters_on_an_nf4_base_and_pruned_weights(bench: Bench, family: str) -> None:
    """QLoRA; then global pruning of what it left, whose zeros lie on disk."""
    write_seq2seq(Path("model"), family, **WIDE[family])
    fitted(bench, summarizing(bench, "QLoRA"))
    assert [operation["op"] for operation in entries()[-1]["operations"]] == ["dequantize", "lora", "merge"]
    Path("checkpoints/r/model").rename("merged")
    shutil.rmtree("checkpoints/r")
    pruning = callback("GlobalL1Pruning", amount=0.5)
    model = fitted(bench, summarizing(bench, "FineTune", "merged") | {"trainer.callbacks": [pruning]})
    weights = [module.weight for module in block_linears(model).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros / sum(weight.numel() for weight in weights) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.slow
def test_a_checkpoint_of_a_model_whose_head_is_not_tied_is_that_model(bench: Bench) -> None:
    write_seq2seq(Path("model"), "t5")
    untied(load_model("model", "m")).save_pretrained("model")
    model = fitted(bench, summarizing(bench, "FineTune"))
    found = FineTune.load_from_checkpoint("checkpoints/r/last.ckpt").model
    assert not is_tied(found)
    torch.testing.assert_close(logits(found), logits(model))
