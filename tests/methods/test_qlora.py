"""QLoRA: what is trained on is what is saved, and what cannot be done is refused."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lightgpt2.models.loading import allow_packing
from lightgpt2.models.quantization import quantize_folder, settings
from tests.methods.test_lora import config
from tests.support.cli import succeed, write_config
from tests.support.mistakes import Bench
from tests.support.models import WHOLE_BLOCKS, write_corpus, write_model, write_tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_adapter_on_the_nf4_model_equals_the_merged_artefact(tmp_path: Path, family: str) -> None:
    write_corpus(tmp_path / "corpus")
    write_model(tmp_path / "base", family, **WHOLE_BLOCKS[family])
    made = config("base", target_modules="all-linear")
    made["model"]["class_path"] = "lightgpt2.methods.QLoRA"
    write_config(tmp_path / "qlora.yaml", made)
    succeed(tmp_path, "fit", "--config", "qlora.yaml")
    run = tmp_path / "checkpoints/qlora"
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=settings("nf4"))
    allow_packing(base, False)
    merged = AutoModelForCausalLM.from_pretrained(run / "model")
    ids = torch.arange(60).view(2, 30)
    with torch.no_grad():
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, run / "adapter").eval()(ids).logits
        torch.testing.assert_close(merged(ids).logits, adapted, rtol=1e-4, atol=1e-4)
    assert (plain - adapted).abs().max() > 0.01, "the adapters do nothing"
    dequantize, lora, merge = json.loads((run / "model/ledger.json").read_text())[-1]["operations"]
    linears = 4 * (4 if family == "gpt2" else 7)
    assert (dequantize["op"], dequantize["from"], dequantize["matched"]) == ("dequantize", "nf4", linears)
    assert (lora["op"], lora["matched"]) == ("lora", linears)
    assert merge == {"op": "merge", "dense": True}
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name for name in state), "a checkpoint holds the adapters only"


@pytest.mark.slow
def test_nf4_model_is_scored_and_trained_with_qlora_as_it_is(bench: Bench) -> None:
    write_model(Path("teacher"), n_embd=64)
    quantize_folder(Path("teacher"), Path("quantized"), "nf4", write_tokenizer(Path("t")))
    made = config("quantized")["model"]
    made["class_path"] = "lightgpt2.methods.QLoRA"
    bench.configure({"model": made})
    bench.succeed("fit")
    shown = bench.succeed("validate", "--ckpt_path", "quantized")
    before = json.loads(Path("checkpoints/r/model/ledger.json").read_text())[-1]["quality"]["before"]["perplexity"]
    assert float(shown.split("perplexity ")[1].split()[0]) == pytest.approx(before["value"], rel=1e-4)
