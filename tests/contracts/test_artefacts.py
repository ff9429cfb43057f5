"""What is trained is what ships: each adaptation's artefact, loaded from disk, computes what the model computed."""

from pathlib import Path

import pytest
import torch

from lightgpt2.adaptations import MovementGates
from lightgpt2.models.axes import block_sizes
from lightgpt2.models.families import DECODERS, ENCODER_DECODERS, block_linears, family_of
from lightgpt2.models.families.substitution import computed
from lightgpt2.models.loading import load_model
from lightgpt2.models.saving import save_model, whole_weights
from lightgpt2.models.trimming import remove
from lightgpt2.tasks import LanguageModeling, Summarization
from tests.contracts.test_steps import ADAPTATIONS, prepared
from tests.support.models import write_tokenizer

CASES = [
    *((family, name) for family in ("gpt2", "llama", "bart", "t5") for name in ADAPTATIONS if name != "int8"),
    *(
        (f, n)
        for f in DECODERS
        if f not in ("gpt2", "llama")
        for n in ("gates and int8", "lora and int4 of everything")
    ),
]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_artefact_computes_what_was_trained(tmp_path: Path, family: str, name: str) -> None:
    task = Summarization() if family in ENCODER_DECODERS else LanguageModeling()
    method, plain, _ = prepared(family, task, "cross-entropy", name)
    method.float()
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    save_model(plain.float(), tokenizer, tmp_path / "source")
    method.start.source = str(tmp_path / "source")
    folders = method.save(tmp_path / "run/model", tokenizer, whole_weights(method.model))
    again = method.save(tmp_path / "run/model", tokenizer, whole_weights(method.model))
    assert folders[tmp_path / "run/model"] == again[tmp_path / "run/model"]
    loaded = load_model(str(tmp_path / "run/model"), "model").eval()
    inputs = dict.fromkeys(family_of(plain).text_inputs, torch.arange(40).view(2, 20))
    with torch.no_grad():
        trained, shipped = method.model.eval()(**inputs).logits, loaded(**inputs).logits
    exact = not method.removes and name != "lora"  # fewer channels are added up in another order; merged ones too
    most = 5e-5 * max(1.0, float(trained.abs().max()) / 10)
    torch.testing.assert_close(shipped, trained, rtol=0, atol=0 if exact else most)

    if name == "gates and int8":  # rounded with gates and then cut, or cut and then rounded: the same to the last bit
        with torch.no_grad():
            for path, module in block_linears(plain).items():
                module.weight.copy_(computed(method.model.get_submodule(path), "weight"))
        gates = next(part for part in method.adaptations if isinstance(part, MovementGates))
        kept = [
            {name: gates.units[kind].keep(name) for name in names}
            for kind, names in zip(("attention", "ffn"), block_sizes(plain.config), strict=True)
        ]
        expected = remove(plain, *kept).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
