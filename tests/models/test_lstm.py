"""The recurrent family: what it computes, what of it lies in a folder, and what cannot be done with it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightgpt2.adaptations.pruning_settings import Pruning
from lightgpt2.data.tokenizer import train_characters
from lightgpt2.errors import UserError
from lightgpt2.methods import QAT, LoRA, MovementPruning, Trim
from lightgpt2.models.families import block_linears, check_head, family_of
from lightgpt2.models.integers import Integers
from lightgpt2.models.loading import load_config, load_model
from lightgpt2.models.quantization import load_for_inference
from lightgpt2.models.saving import save_model, whole_weights
from lightgpt2.models.standalone.modeling_lstm import LstmForCausalLM
from lightgpt2.models.surgery import extract_layers
from lightgpt2.models.tokenizers import load_tokenizer
from lightgpt2.tasks import LanguageModeling
from tests.support.cli import run_alone
from tests.support.models import IDS, logits, make_model, save_integers, write_model
from tests.support.refusals import assert_refused


def by_hand(model: LstmForCausalLM, ids: Tensor) -> Tensor:
    """The logits `[T, V]` of a text `[T]`, one token after another, in double precision by the formulas of Hochreiter's net."""
    weights = {name: value.detach().double() for name, value in model.named_parameters()}
    layers = range(model.config.num_hidden_layers)
    h = [torch.zeros(model.config.hidden_size, dtype=torch.float64) for _ in layers]
    c, found = [state.clone() for state in h], []
    for token in ids:
        x = weights["model.embed_tokens.weight"][token]
        for i in layers:
            of = f"model.layers.{i}"
            w, bias, r = (weights[f"{of}.{name}"] for name in ("input.weight", "input.bias", "recurrent.weight"))
            gates = w @ x + bias + r @ h[i]
            let, forget, new, out = gates.view(4, -1)
            c[i] = forget.sigmoid() * c[i] + let.sigmoid() * new.tanh()
            x = h[i] = out.sigmoid() * c[i].tanh()
        found.append(weights["lm_head.weight"] @ x + weights["lm_head.bias"])
    return torch.stack(found)


def test_it_computes_what_its_formulas_say() -> None:
    model = make_model("lstm", seed=1)
    torch.testing.assert_close(logits(model)[0].double(), by_hand(model, IDS[0]), rtol=0, atol=1e-5)
    check_head(model, "m")


@torch.no_grad()
def test_pads_anywhere_change_nothing_and_a_state_goes_on() -> None:
    model = make_model("lstm")
    mask = torch.ones_like(IDS)
    mask[0, :7], mask[1, 25:] = 0, 0
    found = model(IDS, attention_mask=mask)
    torch.testing.assert_close(found.logits[0, 7:], logits(model, IDS[:1, 7:])[0])
    torch.testing.assert_close(found.logits[1, :25], logits(model, IDS[1:, :25])[0])
    state = found.past_key_values
    more = model(IDS[:, :5], attention_mask=torch.ones(2, 35), past_key_values=state).logits
    torch.testing.assert_close(more[0], logits(model, torch.cat([IDS[:1, 7:], IDS[:1, :5]], 1))[0, -5:])
    torch.testing.assert_close(more[1], logits(model, torch.cat([IDS[1:, :25], IDS[1:, :5]], 1))[0, -5:])
    nothing = model(IDS[:, :3], attention_mask=torch.zeros(2, 3), past_key_values=state)
    assert torch.equal(nothing.past_key_values.cell, state.cell), "a row of pads alone keeps its state"


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_transformers_generates_with_the_state_as_without(beams: int) -> None:
    model, mask = make_model("lstm", seed=3), torch.ones_like(IDS)
    mask[0, :4] = 0
    model.generation_config.eos_token_id = None
    how: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 9, "num_beams": beams, "pad_token_id": 0}
    assert torch.equal(model.generate(IDS, use_cache=True, **how), model.generate(IDS, use_cache=False, **how))


def test_documents_of_a_row_do_not_see_each_other() -> None:
    model = make_model("lstm").double()
    starts = torch.zeros_like(IDS, dtype=torch.bool)
    starts[0, [3, 4, 20]] = True
    starts[1, 11] = True
    positions = torch.zeros_like(IDS)
    for row in range(2):
        for place in range(1, IDS.shape[1]):
            positions[row, place] = 0 if starts[row, place] else positions[row, place - 1] + 1
    family = family_of(model)
    found = family.final_states(model, input_ids=IDS, **family.apart(model, positions))
    for row, bounds in enumerate(([0, 3, 4, 20, 30], [0, 11, 30])):
        for begin, end in pairwise(bounds):
            alone = family.final_states(model, input_ids=IDS[row : row + 1, begin:end])
            torch.testing.assert_close(found[row, begin:end], alone[0])


def test_a_tied_head_and_the_layers_of_a_deeper_one() -> None:
    tied = make_model("lstm", tie_word_embeddings=True, embedding_size=16)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    deep = make_model("lstm", num_hidden_layers=4)
    taken = extract_layers(deep, [0, 2])
    want = nn.ModuleList([deep.model.layers[0], deep.model.layers[2]]).state_dict()
    assert all(torch.equal(value, want[name]) for name, value in taken.model.layers.state_dict().items())
    with pytest.raises(ValueError, match="begin with layer 0"):
        extract_layers(deep, [1, 2])


ALONE = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    text = "class A:\\n    pass\\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    inputs = tokenizer("class", return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=4, min_new_tokens=4).shape == (1, 9)
    model.save_pretrained(folder + "-again")
    again = AutoModelForCausalLM.from_pretrained(folder + "-again", trust_remote_code=True).eval()
    logits = model(inputs["input_ids"]).logits
    assert torch.equal(again(inputs["input_ids"]).logits, logits)
    torch.save(logits, folder + "-logits")
"""


def test_plain_transformers_loads_folders_with_the_code_in_them(tmp_path: Path) -> None:
    train_characters(["class A:\n    pass  # \t"], None, tmp_path / "t")
    tokenizer = load_tokenizer(str(tmp_path / "t"), "t")
    model = make_model("lstm", vocab_size=len(tokenizer))
    folders = [tmp_path / "whole", tmp_path / "integers"]
    save_model(model, tokenizer, folders[0])
    save_integers(model, Integers(embeddings=True), tokenizer, folders[1], whole_weights(model))
    done = run_alone(ALONE, *map(str, folders))
    assert done.returncode == 0, done.stderr
    ids = tokenizer("class", return_tensors="pt")["input_ids"]
    for folder in folders:
        loaded = load_model(str(folder), "m").eval()
        assert type(loaded) is LstmForCausalLM, "ours, whatever code the folder has"
        torch.testing.assert_close(torch.load(f"{folder}-logits"), logits(loaded, ids), rtol=0, atol=1e-6)
        assert (folder == folders[0]) == torch.equal(logits(loaded, ids), logits(model, ids))


def test_integers_are_of_all_matrices() -> None:
    names = {name.removeprefix("model.layers.") for name in block_linears(make_model("lstm"))}
    assert names == {"0.input", "0.recurrent", "1.input", "1.recurrent"}


def test_what_cannot_be_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    folder, task = str(write_model(tmp_path / "m", "lstm")), LanguageModeling()
    assert_refused(LoRA(folder, task=task), "model", "one kernel reads all weights", "FineTune")
    assert_refused(Trim(folder, width=8, task=task), "model.width", "feed each other", "distil")
    heads = MovementPruning(folder, Pruning(attention=0.5), task=task)
    assert_refused(heads, "model", "no attention and no neurons", "GlobalL1Pruning")
    assert_refused(QAT(folder, Integers(activations=True), task=task), "model.quantization.activations", "give false")
    for form in ("nf4", "int8", "dynamic-int8"):
        with pytest.raises(UserError, match=f"{form}: one kernel reads"):
            load_for_inference(folder, "m", form, "sdpa", "cpu")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tie_word_embeddings": True}, "m: a tied head wants one width, .* give both the same"),
        ({"dropout": 1.0}, "m: dropout must be at least 0 and below 1, got 1.0"),
        ({"embedding_size": 0}, "m.embedding_size: must be a whole number of at least 1"),
        ({"n_layer": 3}, "m: a lstm configuration has no n_layer"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config({"model_type": "lstm", **wrong}, "m")


def test_trim_takes_layers_out(tmp_path: Path) -> None:
    folder = str(write_model(tmp_path / "m", "lstm", num_hidden_layers=4))
    assert Trim(folder, layers=[0, 3], task=LanguageModeling()).configs()["model.layers"].num_hidden_layers == 2
