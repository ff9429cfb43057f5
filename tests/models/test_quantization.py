"""NF4 and INT8: every linear layer, loadable without LightGPT2, and back to full precision exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from lightgpt2.errors import UserError
from lightgpt2.measure.memory import weights_mb
from lightgpt2.models import quantization
from lightgpt2.models.families import DECODERS, block_linears
from lightgpt2.models.loading import allow_packing, load_config, load_model
from lightgpt2.models.quantization import (
    Format,
    coverage,
    dequantized,
    load_quantized,
    quantization_of,
    quantize_folder,
)
from lightgpt2.models.saving import measure_sizes, save_model
from tests.support.models import WHOLE_BLOCKS, logits, make_model, write_model, write_tokenizer


@pytest.mark.parametrize("form", ["nf4", "int8"])
@pytest.mark.parametrize("family", DECODERS)
def test_sibling_has_every_linear_layer_quantized_and_loads_plainly(tmp_path: Path, family: str, form: Format) -> None:
    source = write_model(tmp_path / "m", family, **WHOLE_BLOCKS[family])
    made = quantize_folder(source, tmp_path / "q", form, write_tokenizer(tmp_path / "t"))
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    count = len(block_linears(plain))
    assert made == {"op": form, "matched": count, "linears": count + 1, "kept": {"lm_head": "tied to the embedding"}}
    stored = load_file(tmp_path / "q/model.safetensors")
    narrow = [name for name, t in stored.items() if t.dtype in (torch.uint8, torch.int8) and name.endswith(".weight")]
    assert len(narrow) == count, "what the ledger counts lies on disk"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "q").eval()
    allow_packing(loaded, False)
    configs = [load_config(str(folder), "model.model") for folder in (source, tmp_path / "q")]
    assert [quantization_of(config) for config in configs] == [None, form]
    error = (logits(loaded).float() - logits(plain)).norm() / logits(plain).norm()
    assert 0 < error < 0.4
    sizes = measure_sizes(loaded, tmp_path / "q")
    assert (sizes["parameters"], sizes["nonzero"]) == (plain.num_parameters(), None)
    assert weights_mb(loaded) < weights_mb(plain)
    assert (tmp_path / "q/model.safetensors").stat().st_size < (source / "model.safetensors").stat().st_size


def test_memory_counts_tied_weights_once_and_quantized_ones_as_stored(tmp_path: Path) -> None:
    plain = make_model("gpt2", n_embd=128)  # wide enough for the formats' own tables not to count
    buffers = sum(b.numel() * b.element_size() for b in plain.buffers())
    assert weights_mb(plain) * 1e6 == 4 * sum(p.numel() for p in plain.parameters()) + buffers
    save_model(plain, write_tokenizer(tmp_path / "t"), tmp_path / "m")
    quantized = load_quantized(str(tmp_path / "m"), "model.model", "nf4")
    linear = sum(p.numel() for n, p in plain.named_parameters() if ".h." in n and p.ndim == 2)
    saved = (weights_mb(plain) - weights_mb(quantized)) * 1e6
    assert linear * 3.4 < saved < linear * 3.5, "of 4 bytes half a byte stays, and the scales"


@pytest.mark.parametrize("family", DECODERS)
def test_dequantized_model_computes_what_the_nf4_model_computes(tmp_path: Path, family: str) -> None:
    source = write_model(tmp_path / "m", family, **WHOLE_BLOCKS[family])
    quantized = load_quantized(str(source), "model.model", "nf4").eval()
    plain = dequantized(quantized)
    torch.testing.assert_close(logits(plain), logits(quantized), rtol=1e-4, atol=1e-4)
    original = load_model(str(source), "model.model")
    assert plain.state_dict().keys() == original.state_dict().keys()
    for name, module in block_linears(original).items():
        rows = module.weight.detach().T.contiguous() if isinstance(module, Conv1D) else module.weight.detach()
        expected = dequantize_4bit(*quantize_4bit(rows, quant_type="nf4", compress_statistics=True))
        found = plain.get_submodule(name).weight
        assert torch.equal(found, expected.T if isinstance(module, Conv1D) else expected)
    assert not hasattr(plain.config, "quantization_config")


def test_layer_that_was_passed_over_is_an_error(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", n_embd=64)
    model: Any = load_quantized(str(source), "model.model", "nf4")
    model.transformer.h[1].mlp.c_fc = torch.nn.Linear(32, 128)
    with pytest.raises(UserError, match=r"nf4: linear layers were left .*h\.1\.mlp\.c_fc"):
        coverage(model, "nf4")


@pytest.mark.parametrize(("family", "rows"), [("gpt2", "32"), ("llama", "32, 48")])
def test_nf4_that_some_processors_compute_wrongly_is_refused(tmp_path: Path, family: str, rows: str) -> None:
    """With AVX-512, bitsandbytes 0.50 takes wrong scales where a block of 64 weights goes on in the next row."""
    source = write_model(tmp_path / "m", family)
    with pytest.raises(UserError, match=rf"^nf4: layers with {rows} inputs .*; choose int8, or .* multiples of 64$"):
        load_quantized(str(source), "model.model", "nf4")
    load_quantized(str(source), "model.model", "int8")


def test_nothing_is_trained_or_scored_with_a_kernel_that_lets_no_gradient_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which bitsandbytes takes in eval mode on processors with AVX-512 BF16; the benchmark measures with it."""
    source = write_model(tmp_path / "m", n_embd=64)
    for module in ("nn.modules", "functional"):
        monkeypatch.setattr(f"bitsandbytes.{module}.has_avx512bf16", lambda: True)
    quantized = load_quantized(str(source), "model.model", "nf4")
    flags = {name: m.support_avx512bf16_for_cpu for name, m in quantized.named_modules() if "c_" in name}
    assert len(flags) == 16
    assert not any(flags.values())
    deployed = quantization.load_for_inference(str(source), "model.model", "nf4", "sdpa", "cpu")
    assert all(m.support_avx512bf16_for_cpu for name, m in deployed.named_modules() if "c_" in name)
