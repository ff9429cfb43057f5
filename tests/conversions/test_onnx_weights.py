"""Weights in INT8 and INT4 in ONNX graphs: which numbers lie in the file, and what is computed with them."""

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightgpt2.conversions.onnx.weights import GROUP, Form, block_size
from lightgpt2.conversions.onnx.writer import Forms
from lightgpt2.functional.quantization import affine_integers, fake_quantize
from lightgpt2.models.families import block_linears, is_tied
from lightgpt2.models.integers import Integers
from lightgpt2.models.loading import load_model
from lightgpt2.models.saving import whole_weights
from lightgpt2.models.standalone import stored_weights
from lightgpt2.runtime.prefill import from_blocks
from tests.support.models import make_restless_model, save_integers, write_tokenizer
from tests.support.onnx_client import Array, Client, off, torch_logits, write_onnx

# What rounding the inputs of layers to 8 bits may do to logits, as a share of the largest (in random models, which are worse
# than trained ones).
ROUNDED_INPUTS = 0.1

FORMS: dict[str, Forms] = {
    "int8": Forms("int8", "int8"),
    "int8, embeddings in fp32": Forms("int8", "fp32"),
    "int8, all in blocks": Forms("int8-blocks", "int8-blocks"),
    "int4": Forms("int4", "int8"),
    "int4, embeddings too": Forms("int4", "int4"),
    "int4 in groups of 16": Forms("int4", "int4", group=16),
    "int4 in groups of 128": Forms("int4", "int4", group=128),
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"n_layer": 2}),
    "gpt2, untied, 1021 tokens": ("gpt2", {"n_layer": 1, "tie_word_embeddings": False, "vocab_size": 1021}),
    "gpt2, widths that 32 does not divide": ("gpt2", {"n_layer": 1, "n_embd": 200, "n_head": 5, "n_inner": 62}),
    "gpt2, 5 tokens, 8 wide": ("gpt2", {"n_layer": 1, "vocab_size": 5, "n_embd": 8, "n_head": 1}),
    "llama": ("llama", {"num_hidden_layers": 2}),
    "llama, untied, biases": ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "llama, widths that 32 does not divide": ("llama", {"hidden_size": 100, "intermediate_size": 62}),
    "mistral": ("mistral", {"num_hidden_layers": 1, "tie_word_embeddings": False}),
    "qwen2": ("qwen2", {"num_hidden_layers": 2, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"num_hidden_layers": 2, "max_window_layers": 1}),
    "smollm3": ("smollm3", {"num_hidden_layers": 2}),
    "phi3": ("phi3", {"num_hidden_layers": 2}),
    "gemma3_text": ("gemma3_text", {"num_hidden_layers": 2}),
    "gpt_neox": ("gpt_neox", {"num_hidden_layers": 2}),
    "opt": ("opt", {"num_hidden_layers": 2}),
}


def arrays(folder: Path) -> dict[str, Array]:
    """All that a graph's file holds, by name."""
    graph = onnx.load(folder / "model.onnx").graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def whole_weight(found: dict[str, Array], name: str, what: str) -> Array | None:
    """A weight by its own name; or that of a vocabulary, by the names of its parts, or as it is looked up."""
    if f"{name}.{what}" in found:
        return found[f"{name}.{what}"]
    lookup = found.get(f"{name}.lookup" + ("" if what == "weight" else f"_{what}"))
    first = re.compile(rf"{re.escape(name)}\.from_(\d+)\.{what}")
    parts = {int(match[1]): array for key, array in found.items() if (match := first.fullmatch(key))}
    if not parts:
        return lookup
    whole = np.concatenate([parts[start] for start in sorted(parts)])
    assert lookup is None or lookup.tobytes() == whole.tobytes(), "both are one place of the file"
    return whole


def read(found: dict[str, Array], name: str, inputs: int, form: Form, embedding: bool = False) -> Array:
    """The numbers `[O, I]` that a matrix of a file stands for, as what the operators do with it says."""
    data, scale, zero = (whole_weight(found, name, what) for what in ("weight", "scale", "zero"))
    assert data is not None
    assert scale is not None
    product: Array
    if form == "int8":
        assert data.dtype == np.int8
        product = (data if embedding else data.T) * scale.reshape(-1, 1)
        return product
    assert data.dtype == np.uint8
    data = data.reshape(*scale.shape, -1)  # a row without its groups, where it is looked up
    if form == "int4":
        return from_blocks(data, scale, zero, inputs)
    product = (data.astype(np.float32) - 128) * scale[..., None]
    return product.reshape(len(data), -1)[:, :inputs]


def rows_of(module: Any) -> Tensor:
    weight = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def in_graph(model: PreTrainedModel, names: list[str]) -> Tensor:
    """The rows of layers that are multiplied with together, queries of all heads first."""
    rows = torch.cat([rows_of(model.get_submodule(name)) for name in names])
    if "query_key_value" not in names[0]:
        return rows
    return rows.unflatten(0, (model.config.num_attention_heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def groups(model: PreTrainedModel) -> list[list[str]]:
    """The linear layers of the blocks; those that are multiplied with together are one."""
    joined = {"q_proj": ["q_proj", "k_proj", "v_proj"], "gate_proj": ["gate_proj", "up_proj"]}
    paths = [name.rpartition(".") for name in block_linears(model)]
    firsts = [(path, name) for path, _, name in paths if name not in ("k_proj", "v_proj", "up_proj")]
    return [[f"{path}.{last}" for last in joined.get(first, [first])] for path, first in firsts]


def embeddings(model: PreTrainedModel) -> list[str]:
    modules = {model.get_input_embeddings()} | (set() if is_tied(model) else {model.get_output_embeddings()})
    return [name for name, module in model.named_modules() if module in modules]


def matrices(model: PreTrainedModel, forms: Forms) -> list[tuple[list[str], Form, bool]]:
    """Names of the matrices that are no FP32, how they are stored, and whether each is an embedding or head."""
    layers = [(names, forms.of(names), False) for names in groups(model)]
    return layers + [([name], forms.embeddings, True) for name in embeddings(model) if forms.embeddings != "fp32"]


def nearest(rows: Tensor, form: Form, group: int = GROUP, power: Tensor | None = None) -> Tensor:
    """What the integers stand for that `functional.quantization` chooses."""
    if form != "int4":
        return fake_quantize(rows, 8)
    whole, scales, zeros = affine_integers(rows, group, power)
    return ((whole.float() - zeros.float()) * scales).flatten(1)[:, : rows.shape[1]]


def rounded(model: PreTrainedModel, forms: Forms) -> PreTrainedModel:
    """The model with its weights rounded, in torch."""
    smaller = copy.deepcopy(model)
    for names, form, _ in matrices(model, forms):
        for name in names:
            module: Any = smaller.get_submodule(name)
            rows = nearest(rows_of(module), form, forms.group)
            module.weight.data = rows.T.contiguous() if isinstance(module, Conv1D) else rows
    if is_tied(smaller):
        smaller.tie_weights()
    return smaller


def draw(model: PreTrainedModel, *shape: int) -> Array:
    return np.random.default_rng(0).integers(0, model.config.vocab_size, shape)


CASES = [(s, form) for s in SHAPES for form in FORMS if s == "gpt2" or form in ("int8", "int4, embeddings too")]


@pytest.mark.parametrize(("shape", "form"), CASES)
def test_the_file_holds_the_nearest_integers_and_the_graph_computes_with_them(
    tmp_path: Path, shape: str, form: str
) -> None:
    family, changes = SHAPES[shape]
    model, forms = make_restless_model(family, **changes), FORMS[form]
    found = arrays(write_onnx(model, tmp_path, forms))
    for names, stored_as, embedding in matrices(model, forms):
        rows = in_graph(model, names)
        wanted_rows = nearest(rows, stored_as, forms.group).numpy()
        np.testing.assert_array_equal(read(found, names[0], rows.shape[1], stored_as, embedding), wanted_rows)
    client, ids = Client(tmp_path), draw(model, 2, 20)
    wanted = torch_logits(rounded(model, forms), ids)
    found_logits, past = client.run(ids[:, :19], np.ones((2, 19), np.int64))
    assert off(found_logits, wanted[:, :19]) < ROUNDED_INPUTS
    last, _ = client.run(ids[:, 19:], np.ones((2, 20), np.int64), past, keep=1)
    assert off(last, wanted[:, 19:]) < ROUNDED_INPUTS


@pytest.mark.parametrize(("family", "tied"), [("gpt2", True), ("llama", False)])
def test_integers_of_4_bits_are_chosen_for_the_inputs(tmp_path: Path, family: str, tied: bool) -> None:
    model = make_restless_model(family, tie_word_embeddings=tied)
    random = torch.Generator().manual_seed(0)
    powers = {
        name: torch.rand(rows_of(model.get_submodule(name)).shape[1], generator=random) ** 4
        for name in [*block_linears(model), "lm_head"]
    }
    found = arrays(write_onnx(model, tmp_path, Forms("int4", "int4", powers=powers)))
    source = model.get_input_embeddings() if tied else model.get_output_embeddings()
    head = next(name for name, module in model.named_modules() if module is source)
    for names, power in [*((names, powers[names[0]]) for names in groups(model)), ([head], powers["lm_head"])]:
        rows = torch.cat([rows_of(model.get_submodule(name)) for name in names])
        stored = read(found, names[0], rows.shape[1], "int4")
        np.testing.assert_array_equal(stored, nearest(rows, "int4", power=power).numpy())
        assert not np.array_equal(stored, nearest(rows, "int4").numpy())


@pytest.mark.parametrize("form", ["int8", "int8-blocks", "int4"])
def test_rows_that_are_looked_up_are_exact(tmp_path: Path, form: Form) -> None:
    """With layers in FP32, and a head of its own that is the identity: what comes out is what was looked up."""
    model = make_restless_model("llama", num_hidden_layers=1, hidden_size=44, vocab_size=44, tie_word_embeddings=False)
    with torch.no_grad():
        for module in block_linears(model).values():
            module.weight.zero_()  # type: ignore[operator, union-attr]
        model.base_model.norm.weight.fill_(1)
        embedding: nn.Module = model.get_input_embeddings()
        model.get_output_embeddings().weight.copy_(torch.eye(44))
        rows = nearest(embedding.weight.detach(), form)
    client = Client(write_onnx(model, tmp_path, Forms("fp32", form)))
    found, _ = client.run(np.arange(44)[None], np.ones((1, 44), np.int64))
    wanted = (rows / rows.pow(2).mean(dim=1, keepdim=True).sqrt()).numpy()
    assert off(found[0], wanted) < 0.01  # the rounding of the head's inputs


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("form", "share"), [("fp32", 1.02), ("int8", 0.35), ("int4", 0.2)])
def test_weights_are_stored_once_and_shrink(tmp_path: Path, form: Form, share: float, tied: bool) -> None:
    model = make_restless_model("gpt2", n_layer=1, n_embd=512, n_head=8, vocab_size=3000, tie_word_embeddings=tied)
    fp32 = sum(4 * parameter.numel() for parameter in model.parameters())
    folder = write_onnx(model, tmp_path, Forms(form, form))
    assert sum(path.stat().st_size for path in folder.iterdir()) < share * fp32


# -- trained integers --------------------------------------------------------------------------------------------------------

QAT: dict[str, Integers] = {
    "int8": Integers(8),
    "int8, embeddings": Integers(8, embeddings=True),
    "int8, embeddings, activations": Integers(8, activations=True, embeddings=True),
    "int4": Integers(4),
    **{f"int4, embeddings, groups of {group}": Integers(4, group, embeddings=True) for group in (16, 48, 128)},
}


TRAINED = [("gpt2", form) for form in QAT] + [
    ("llama", "int4, embeddings, groups of 48"), ("llama, untied", "int8, embeddings"),
    ("gpt2, 200 wide", "int4, embeddings, groups of 48"), ("phi3", "int8, embeddings, activations"), ("qwen3", "int4"),
    ("gemma3_text", "int8, embeddings"), ("gpt_neox", "int4, embeddings, groups of 16"),
    ("opt", "int8, embeddings, activations"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "form"), TRAINED)
def test_trained_integers_are_those_of_the_artefact(tmp_path: Path, family: str, form: str) -> None:
    changes: dict[str, Any] = {"n_embd": 200, "n_head": 5} if "200" in family else {}
    changes |= {"tie_word_embeddings": False} if "untied" in family else {}
    model, quantization = make_restless_model(family.split(",")[0], **changes), QAT[form]
    save_integers(model, quantization, write_tokenizer(tmp_path / "t"), tmp_path / "m", whole_weights(model))
    halve(tmp_path / "m/model.safetensors")
    stored = stored_weights.read_stored(tmp_path / "m/model.safetensors")
    loaded = load_model(str(tmp_path / "m"), "m").eval()
    own: Form = "int8" if quantization.bits == 8 else "int4"
    forms = Forms(own, own if quantization.embeddings else "int8")
    found = arrays(write_onnx(loaded, tmp_path / "onnx", forms, stored))
    checked = 0
    for names, stored_as, embedding in matrices(loaded, forms):
        if f"{names[0]}.weight" in stored[1]:
            rows = in_graph(loaded, names)
            np.testing.assert_array_equal(read(found, names[0], rows.shape[1], stored_as, embedding), rows.numpy())
            checked += len(names)
    assert checked == len([name for name in stored[1] if "wpe" not in name and "positions" not in name])
    ids = draw(loaded, 2, 20)
    logits, _ = Client(tmp_path / "onnx").run(ids, np.ones_like(ids))
    assert off(logits, torch_logits(loaded, ids)) < ROUNDED_INPUTS


def halve(file: Path) -> None:
    """Halves a file's integers, so that none is the largest that there is: whoever estimates scales finds others."""
    tensors, table = stored_weights.read_stored(file)
    for name, about in table.items():
        whole = stored_weights.whole(tensors[name], about["bits"], about["group"]) // 2
        tensors[name] = stored_weights.halved(whole) if about["bits"] == 4 else whole
    stored_weights.write(file, tensors, table)


def test_blocks_are_what_divides_a_group() -> None:
    assert [block_size(group) for group in (16, 32, 48, 64, 96, 128, 512, 768)] == [16, 32, 16, 64, 32, 128, 256, 256]
    assert [block_size(group) for group in (5, 8, 24, 100)] == [0, 0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_a_plain_client_is_warned_of_nothing_but_the_option(tmp_path: Path, tied: bool) -> None:
    model = make_restless_model("gpt2", tie_word_embeddings=tied)
    folders = [str(write_onnx(model, tmp_path / str(number), forms)) for number, forms in enumerate(FORMS.values())]
    script = "import sys, onnxruntime\nfor folder in sys.argv[1:]: onnxruntime.InferenceSession(f'{folder}/model.onnx')"
    done = subprocess.run([sys.executable, "-c", script, *folders], capture_output=True, text=True, check=True)
    known = "Initializer num_logits_to_keep appears in graph inputs"
    assert (done.stdout, [line for line in done.stderr.splitlines() if known not in line]) == ("", [])
