"""Adapters: the published count, what is trained, what a checkpoint holds, and what the libraries make of the folders."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lightgpt2.adaptations import FakeQuantize, HeldMasks, Lora, LoraAdapters
from lightgpt2.errors import UserError
from lightgpt2.models.families import DECODERS
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.loading import allow_packing, load_config, new_model
from lightgpt2.models.quantization import quantize_folder, settings
from tests.support.mistakes import Bench
from tests.support.models import WHOLE_BLOCKS, make_model, write_model, write_tokenizer
from tests.support.refusals import context_of
from tests.support.stages import assert_replayed, entries, stage, validated


def adapted(model: PreTrainedModel, adapters: LoraAdapters | None = None) -> list[dict[str, Any]]:
    """Puts adapters on a model in memory; what was done."""
    return Lora(adapters).apply_to(model, context_of(model))


def test_published_setting_on_gpt2_trains_exactly_the_published_number() -> None:
    """Hu et al. 2021: c_attn, r = 8."""
    with torch.device("meta"):
        gpt2 = new_model(load_config({"model_type": "gpt2"}, "model.model"))
    (operation,) = adapted(gpt2, LoraAdapters(target_modules=["c_attn"]))
    assert (operation["matched"], operation["trainable"], operation["parameters"]) == (12, 294_912, 124_734_720)
    assert sum(p.numel() for p in gpt2.parameters() if p.requires_grad) == 294_912


@pytest.mark.parametrize("family", DECODERS)
def test_every_family_says_what_gets_adapters(family: str) -> None:
    """PEFT, or the family where PEFT has no choice of its own: each block has some."""
    (operation,) = adapted(make_model(family))
    assert operation["matched"] % 4 == 0 < operation["matched"]


def lora(model: str = "teacher", method: str = "LoRA", **adapters: Any) -> dict[str, Any]:
    return stage(method, model, lora={"r": 4, **adapters}, optimizer={"lr": 1.0e-2}) | {"trainer.max_steps": 12}


ADAPTED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "c_attn": ("LoRA", "gpt2", {"target_modules": ["c_attn"]}),
    "dora-all-linear": ("LoRA", "gpt2", {"use_dora": True, "target_modules": "all-linear"}),
    "rslora-with-a-whole-module": ("LoRA", "llama", {"use_rslora": True, "modules_to_save": ["norm"]}),
    "qlora-gpt2": ("QLoRA", "gpt2", {"target_modules": "all-linear"}),
    "qlora-llama": ("QLoRA", "llama", {"target_modules": "all-linear"}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "family", "adapters"), ADAPTED.values(), ids=ADAPTED)
def test_adapter_loads_in_peft_and_equals_the_merged_artefact(
    bench: Bench, method: str, family: str, adapters: dict[str, Any]
) -> None:
    quantized = method == "QLoRA"
    write_model(Path("base"), family, **(WHOLE_BLOCKS[family] if quantized else {}))
    bench.configure(lora("base", method, **adapters))
    output, run = bench.succeed("fit"), Path("checkpoints/r")
    assert len({path.stat().st_mode for path in (run / "adapter").iterdir()}) == 1
    options = {"quantization_config": settings("nf4", AutoConfig.from_pretrained("base"))} if quantized else {}
    base = AutoModelForCausalLM.from_pretrained("base", **options)
    allow_packing(base, False)
    merged = AutoModelForCausalLM.from_pretrained(run / "model")
    ids, tolerance = torch.arange(60).view(2, 30), 1e-4 if quantized else 1e-5
    with torch.no_grad():
        plain = base(ids).logits
        with_adapters = PeftModel.from_pretrained(base, run / "adapter").eval()(ids).logits
        torch.testing.assert_close(merged(ids).logits, with_adapters, rtol=tolerance, atol=tolerance)
    assert (plain - with_adapters).abs().max() > 0.01, "the adapters do nothing"

    (entry,) = entries()
    *before, operation, merge = entry["operations"]
    assert merge == {"op": "merge", "dense": True}
    if quantized:
        linears = 4 * (4 if family == "gpt2" else 7)
        (dequantize,) = before
        assert (dequantize["op"], dequantize["from"], dequantize["matched"]) == ("dequantize", "nf4", linears)
        assert operation["matched"] == linears
    else:
        assert_replayed(base, entry, merged)
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    held = sum(value.numel() for value in state.values())
    assert held == operation["trainable"], "a checkpoint holds what is trained"
    assert operation["trainable"] < operation["parameters"] / 2
    quality = {label: scored["perplexity"]["value"] for label, scored in entry["quality"].items()}
    assert quality["after"] < quality["before"]
    assert f"{quality['after']:.2f}" in output
    assert validated(bench, "--ckpt_path", "last") == pytest.approx(quality["after"], rel=10 * tolerance)


def test_nothing_but_adapters_is_trained() -> None:
    model = make_model("gpt2")
    (operation,) = adapted(model)
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    assert operation["target_modules"] == ["c_attn"], "PEFT's own choice for the family"


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_modules": ["nowhere"]},
        {"target_modules": ["c_attn", "nowhere"]},
        {"target_modules": "nowhere"},
        {"target_modules": "("},
        {"modules_to_save": ["nowhere"]},
        {"target_modules": ["c_attn", "wte"]},  # tied to the head, which would move with it
        {"target_modules": ["c_attn", "lm_head"]},  # which the loss does not call
    ],
)
def test_adapters_that_match_no_module_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^adaptations\.lora.*: ."):
        adapted(make_model("gpt2"), LoraAdapters(**wrong))


@pytest.mark.slow
def test_adapters_are_no_model_and_name_theirs(bench: Bench) -> None:
    bench.configure(lora())
    bench.succeed("fit")
    (message,) = bench.refuse("validate", "--ckpt_path", "checkpoints/r/adapter")
    assert "is a folder of adapters; give the model that they are merged into" in message
    Path("teacher").rename("checkpoints/moved")
    bench.configure(stage("LoRA", "checkpoints/r/adapter"))
    (message,) = bench.refuse("fit", "--run", "next")
    assert message.startswith(
        f"model.model: checkpoints/r/adapter names {Path.cwd() / 'teacher'} as its base model (in adapter_config.json)"
    )


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_of_a_folder_go_on_with_rounding_unless_it_cannot_be_exact(tmp_path: Path, use_dora: bool) -> None:
    adapter = LoraConfig(use_dora=use_dora, lora_dropout=0.1, fan_in_fan_out=True, task_type="CAUSAL_LM")
    get_peft_model(make_model("gpt2"), adapter).save_pretrained(tmp_path)
    context = replace(context_of(make_model("gpt2")), adapter=str(tmp_path), others=[FakeQuantize()])
    if not use_dora:
        (operation,) = Lora().apply_to(make_model("gpt2"), context)
        assert operation["matched"] == 4
        return
    with pytest.raises(UserError, match=r"^start\.model: DoRA's weights are not rounded as they are merged"):
        Lora().apply_to(make_model("gpt2"), context)


@pytest.mark.slow
def test_nf4_model_is_scored_and_trained_with_qlora_as_it_is(bench: Bench) -> None:
    write_model(Path("teacher"), n_embd=64)
    quantize_folder(Path("teacher"), Path("quantized"), "nf4", write_tokenizer(Path("t")))
    bench.configure(lora("quantized", "QLoRA"))
    bench.succeed("fit")
    before = entries()[-1]["quality"]["before"]["perplexity"]["value"]
    assert validated(bench, "--ckpt_path", "quantized") == pytest.approx(before, rel=1e-4)


def test_zeros_of_whole_modules_are_held_and_new_adapters_are_not_taken_for_zeros() -> None:
    model, held = make_model("gpt2"), HeldMasks()
    adapted(model, LoraAdapters(modules_to_save=["c_fc"]))
    whole = {n: p for n, p in model.named_parameters() if ".modules_to_save." in n and p.ndim == 2}
    for parameter in whole.values():
        parameter.data[::2] = 0
    pruning = {"op": "global_l1", "targets": "c_", "adapters": False, "amount": 0.5}
    held.hold(model, Ledger([{"operations": [pruning]}]))
    assert {name for name, _ in held.masks.items()} == {*whole}
    assert held.masks.counts()[1] == sum(p.numel() for p in whole.values()) // 2
