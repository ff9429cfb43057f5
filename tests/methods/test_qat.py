"""Quantization-aware training as a stage: what was trained, what is saved, and that they are the same to the last bit."""

import random
import subprocess
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lightgpt2.adaptations import FakeQuantize
from lightgpt2.conversions.packing import pack_folder
from lightgpt2.errors import UserError
from lightgpt2.functional.pruning import keep_masks, magnitudes
from lightgpt2.functional.schedules import Progress
from lightgpt2.methods import QAT
from lightgpt2.models import loading
from lightgpt2.models.integers import Integers, round_weights
from lightgpt2.models.loading import load_model, new_model
from lightgpt2.models.pruning import prunable
from lightgpt2.models.saving import save_model, whole_weights
from lightgpt2.objectives import DistillLoss
from tests.support.mistakes import Bench
from tests.support.models import make_model, save_integers, write_model, write_tokenizer
from tests.support.refusals import assert_refused, context_of
from tests.support.stages import callback, entries, stage, validated


@torch.no_grad()
def logits(model: PreTrainedModel, seed: int = 0) -> Tensor:
    ids = torch.randint(0, model.config.vocab_size, (2, 13), generator=torch.Generator().manual_seed(seed))
    output: Tensor = model(input_ids=ids).logits
    return output


# -- exactly what was trained ------------------------------------------------------------------------------------------------


def random_config(draw: random.Random, family: str) -> Any:
    """A shape that nothing divides, of layers that differ in some."""
    head, groups, heads = draw.choice([2, 4, 6, 10]), draw.randint(1, 2), draw.randint(1, 3)
    layers, ffn = draw.randint(1, 2), draw.randint(3, 70)
    common = {"vocab_size": draw.randint(20, 90), "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        shape = {"n_layer": layers, "n_embd": heads * head, "n_head": heads, "n_inner": ffn, "n_positions": 16}
        config = AutoConfig.for_model("gpt2", **common, **shape, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        full = heads
    else:
        shape = {"num_hidden_layers": layers, "hidden_size": heads * groups * draw.randint(3, 9), "intermediate_size": ffn,
                 "num_attention_heads": heads * groups, "num_key_value_heads": heads, "head_dim": head,
                 "max_position_embeddings": 16}  # fmt: skip
        config = AutoConfig.for_model("llama", **common, **shape, tie_word_embeddings=draw.random() < 0.5)
        full = heads * groups
    if draw.random() < 0.3:
        config.lightgpt2 = {
            "heads": [draw.choice([0, full, groups if family == "llama" else 1]) for _ in range(layers)],
            "ffn": [draw.randint(0, ffn) for _ in range(layers)],
        }
    return config


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "seeds",
    [
        range(5),
        pytest.param(range(5, 40), marks=pytest.mark.slow),
        pytest.param(range(40, 200), marks=[pytest.mark.slow, pytest.mark.long]),
    ],
    ids=["few", "some", "many"],
)
def test_what_loads_computes_what_was_trained_to_the_last_bit(tmp_path: Path, family: str, seeds: range) -> None:
    """Over seeds, shapes and formats: tied and untied, of even and uneven layers, dense and pruned."""
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    for seed in seeds:
        draw = random.Random(seed)
        torch.manual_seed(seed)
        model = new_model(random_config(draw, family)).train()
        bits = draw.choice([8, 4])
        group = draw.choice([None, 2, 3, 16, 32]) if bits == 4 else None
        form = Integers(bits, group, draw.random() < 0.5, draw.random() < 0.5)  # type: ignore[arg-type]
        for parameter in model.parameters():
            with torch.no_grad():
                parameter.mul_(draw.choice([1, 4]))
                if draw.random() < 0.3:
                    parameter.mul_(torch.rand_like(parameter) > 0.8)
        round_weights(model, form, lambda: True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        ids = torch.randint(0, model.config.vocab_size, (2, 13))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        trained = logits(model)
        save_integers(model, form, tokenizer, tmp_path / "model", whole_weights(model))
        loading._named_config.cache_clear()
        loaded = load_model(str(tmp_path / "model"), "model")
        assert torch.equal(logits(loaded), trained), (seed, form)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "form"),
    [("gpt2", {"activations": True, "embeddings": True}), ("llama", {"bits": 4, "group": 5, "activations": True})],
)
def test_the_artefact_is_the_trained_model(bench: Bench, family: str, form: dict[str, Any]) -> None:
    write_model(Path("given"), family)
    bench.configure(stage("QAT", "given", quantization=form))
    output = bench.succeed("fit")
    state = torch.load("checkpoints/r/last.ckpt", weights_only=True)["state_dict"]
    model = AutoModelForCausalLM.from_pretrained("given")
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    assert not torch.equal(next(model.parameters()), next(load_model("given", "model").parameters()))
    round_weights(model, Integers(**form), lambda: True)
    artefact = load_model("checkpoints/r/model", "model")
    assert torch.equal(logits(artefact), logits(model))
    (entry,) = entries()
    assert set(entry["quality"]) == {"source", "before", "after"}
    assert entry["quality"]["before"]["perplexity"]["value"] != entry["quality"]["source"]["perplexity"]["value"]
    (operation,) = entry["operations"]
    assert {key: operation[key] for key in form} == form
    assert "\nsource " in output
    figure = entry["quality"]["after"]["perplexity"]["value"]
    for checkpoint in ("last", "checkpoints/r/model"):
        assert validated(bench, "--ckpt_path", checkpoint) == pytest.approx(figure, abs=1e-4)
    with safe_open("checkpoints/r/model/model.safetensors", "pt") as file:
        integers = [name for name in file.keys() if file.get_tensor(name).dtype in (torch.int8, torch.uint8)]  # noqa: SIM118
    assert len(integers) == operation["matched"] + (family == "gpt2" and form.get("embeddings", False))


@pytest.mark.slow
def test_plain_transformers_loads_it_and_refuses_to_take_integers_for_weights(bench: Bench) -> None:
    form = {"bits": 4, "activations": True, "embeddings": True}
    bench.configure(stage("QAT", callbacks=(callback("PackedArtefact"),), quantization=form))
    bench.succeed("fit")
    torch.save(logits(load_model("checkpoints/r/model", "model")), "logits.pt")
    code = """
import sys, torch
sys.modules["lightgpt2"] = None
from transformers import AutoModelForCausalLM
wanted = torch.load("logits.pt")
ids = torch.randint(0, 300, (2, 13), generator=torch.Generator().manual_seed(0))
for name in ("model", "model-packed"):
    folder = f"checkpoints/r/{name}"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert torch.equal(model(ids).logits, wanted)
    model.save_pretrained("again")
    again = AutoModelForCausalLM.from_pretrained("again", trust_remote_code=True)
    assert torch.equal(again(ids).logits, wanted)
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (2, 16)
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except OSError as error:
        assert "needs trust_remote_code=True" in str(error)
    else:
        raise AssertionError("plain GPT-2 took integers for weights")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [{"n_layer": 1, "vocab_size": 3000, "n_positions": 64}, pytest.param({}, marks=pytest.mark.long)],
    ids=["small", "124M"],
)
def test_gpt2_in_int8_is_a_quarter_and_packed_without_its_zeros_an_eighth(
    tmp_path: Path, shape: dict[str, int]
) -> None:
    """A model with random weights, embeddings included; then with 80 % of its linear layers' weights pruned."""
    model = new_model(AutoConfig.for_model("gpt2", **shape))
    tokenizer, shares = write_tokenizer(tmp_path / "tokenizer"), {}
    for name in ("dense", "pruned"):
        save_integers(model, Integers(embeddings=True), tokenizer, tmp_path / "model", whole_weights(model))
        pack_folder(tmp_path / "model", tmp_path / "model-packed")
        files = [tmp_path / folder / "model.safetensors" for folder in ("model", "model-packed")]
        shares[name] = [file.stat().st_size / (4 * model.num_parameters()) for file in files]
        matrices = prunable(model, "linear", "targets")
        for matrix, mask in keep_masks(magnitudes(matrices), 0.8).items():
            matrices[matrix].data.mul_(mask)
    print(shares)
    assert shares["dense"][0] == pytest.approx(shares["pruned"][0], rel=1e-4)
    assert shares["dense"][0] < 0.27
    assert shares["pruned"][1] < 0.14


# -- training ----------------------------------------------------------------------------------------------------------------


def test_rounding_starts_after_the_delay() -> None:
    """Until then the model computes in full precision; validation rounds always."""
    plain = make_model("gpt2")
    for delay, rounds in ((0.0, [True] * 6), (0.5, [False] * 3 + [True] * 3), (1.0, [False] * 6)):
        model = make_model("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        part = FakeQuantize(Integers(bits=4), delay)
        part.apply_to(model, context_of(model, 6))
        for step, rounded in enumerate(rounds):
            part.before_step(Progress(step, 6))
            assert torch.equal(logits(model.train()), logits(plain)) != rounded
            assert not torch.equal(logits(model.eval()), logits(plain))


@pytest.mark.slow
@pytest.mark.parametrize(("teacher", "labels"), [("teacher", {"teacher"}), ("other", {"teacher", "source"})])
def test_a_teacher_may_teach(bench: Bench, teacher: str, labels: set[str]) -> None:
    write_model(Path("other"), seed=1)
    bench.configure(stage("QAT", teacher=teacher, loss={"ce": 0.0, "kd": 1.0, "hidden": 1.0}))
    bench.succeed("fit")
    (entry,) = entries()
    assert set(entry["quality"]) == {"before", "after", *labels}
    assert entry["teacher"]["source"] == teacher


@pytest.mark.slow
def test_what_was_pruned_stays_zero_and_takes_no_space(bench: Bench) -> None:
    """Pruned, packed in full precision; then trained with rounded weights, packed as integers."""
    packing, pruning = callback("PackedArtefact"), callback("GlobalL1Pruning", targets="linear", amount=0.8)
    bench.configure(stage("FineTune", callbacks=(pruning, packing)) | {"trainer.max_steps": 0})
    bench.succeed("fit")
    sizes = entries("r/model-packed")[-1]["sizes"]
    assert sizes["dense_megabytes"] == pytest.approx(entries()[-1]["sizes"]["megabytes"])
    assert sizes["megabytes"] < 0.6 * sizes["dense_megabytes"] < 0.6 * 1.2 * sizes["memory"]
    Path("checkpoints/r").rename("checkpoints/pruned")
    bench.configure(stage("QAT", "checkpoints/pruned/model-packed", (packing,), quantization={"embeddings": True}))
    bench.succeed("fit")
    pruned, trained = (load_model(f"checkpoints/{run}/model", "model") for run in ("pruned", "r"))
    for name, value in pruned.named_parameters():
        if name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight")):
            assert (trained.get_parameter(name)[value == 0] == 0).all()
            assert trained.get_parameter(name).count_nonzero() > 0
    held = entries()[-1]["operations"][-1]
    assert held["held"]
    assert held["achieved"] >= 0.8
    last = entries("r/model-packed")[-1]
    assert last["operations"][0]["sparse"] >= 16
    assert last["sizes"]["megabytes"] < last["sizes"]["dense_megabytes"] < last["sizes"]["memory"]
    assert last["quality"]["after"] == entries()[-1]["quality"]["after"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_compiled_is_the_same_model(bench: Bench, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was trained and scored compiled scores the same when it is not; with kernels of its own it takes minutes."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    write_model(Path("given"), n_layer=1)
    form = {"activations": True, "embeddings": True}
    bench.configure(stage("QAT", "given", quantization=form, compile=True, delay=0.5))
    bench.succeed("fit")
    figure = entries()[-1]["quality"]["after"]["perplexity"]["value"]
    assert validated(bench, "--ckpt_path", "last", "--model.compile=false") == pytest.approx(figure, rel=1e-4)


# -- what is refused ---------------------------------------------------------------------------------------------------------


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a group for int8": (
        {"quantization": Integers(group=16)},
        ["model.quantization.group: INT8 has one scale for each output channel", "give bits 4"],
    ),
    "a group of one": ({"quantization": Integers(4, 1)}, ["model.quantization.group: must be between 2 and 128, the most"]),
    "a group too big": ({"quantization": Integers(4, 129)}, ["model.quantization.group: must be between 2 and"]),
    "no group": ({"quantization": Integers(4, 0)}, ["model.quantization.group: must be between 2 and"]),
    "a fraction of bits": (
        {"quantization": Integers(8.0)}, ["model.quantization.bits: must be a whole number, got 8.0"],  # type: ignore[arg-type]
    ),
    "a loss without a teacher": ({"loss": DistillLoss()}, ["model.loss: means nothing without model.teacher"]),
    "no loss": ({"teacher": "teacher", "loss": DistillLoss(0, 0, 0)}, ["model.loss: every weight is 0"]),
    "no model": ({"model": "nowhere/at/all"}, ["model.model: nowhere/at/all does not exist"]),
}  # fmt: skip


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(("init", "words"), MISTAKES.values(), ids=MISTAKES)
def test_settings_that_make_no_sense_are_refused(init: dict[str, Any], words: list[str]) -> None:
    assert_refused(QAT(**{"model": "teacher", **init}), *words)


@pytest.mark.parametrize("where", ["cut off", "in a byte"])
def test_a_damaged_file_has_a_plain_message(tmp_path: Path, where: str) -> None:
    model, tokenizer = make_model("gpt2"), write_tokenizer(tmp_path / "tokenizer")
    save_integers(model, Integers(), tokenizer, tmp_path / "model", whole_weights(model))
    pack_folder(tmp_path / "model", tmp_path / "packed")
    for folder in ("packed", "model") if where == "cut off" else ("packed",):  # which alone has checksums
        file = tmp_path / folder / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-20] ^= 255
        file.write_bytes(content[:-100] if where == "cut off" else content)
        with pytest.raises(UserError, match=rf"^model: {tmp_path / folder} is damaged \("):
            load_model(str(tmp_path / folder), "model")


def test_what_is_saved_of_a_packed_model_is_one_of_plain_transformers(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    save_model(make_model("gpt2"), tokenizer, tmp_path / "model")
    pack_folder(tmp_path / "model", tmp_path / "packed")
    save_model(load_model(str(tmp_path / "packed"), "model"), tokenizer, tmp_path / "again")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "again").config
    assert config.architectures == ["GPT2LMHeadModel"]
    assert not {"lightgpt2", "auto_map"} & {*config.to_dict()}
    assert not [*(tmp_path / "again").glob("*.py")]
