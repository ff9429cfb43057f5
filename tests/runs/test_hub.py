"""`card` and `push`: the card says what the ledger says, and the hub gets the model as it was written."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, constants
from transformers import AutoModelForCausalLM

from tests.support.cli import call, refused
from tests.support.hub import Hub, hub
from tests.support.mistakes import Bench

MODEL = Path("checkpoints/r/model")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that knows who asks."""
    with hub() as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_known")
        yield made


def test_the_card_says_what_the_ledger_says(finished: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "card", "r", "--name", "me/small")
    assert code == 0
    assert out.splitlines()[-1] == f"card: {MODEL / 'README.md'}"
    text = (MODEL / "README.md").read_text()
    perplexity = json.loads((MODEL / "ledger.json").read_text())[-1]["quality"]["after"]["perplexity"]["value"]
    about = ModelCard(text).data
    found = {result.metric_type: result.metric_value for result in about.eval_results or []}
    assert found["perplexity"] == perplexity
    assert (about.library_name, about.pipeline_tag) == ("transformers", "text-generation")
    assert f"| r | {perplexity:.2f}" in text
    assert "r: Distill, 3 steps, layers" in text
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings["model"]["init_args"]["layers"] == 2
    assert str(Path.cwd()) not in text, "folders of this machine are nobody's business"
    code = text.split("```python\n")[1].split("```")[0].replace("me/small", str(MODEL))
    scope = dict[str, object]()
    exec(code, scope)
    assert scope["model"].config.n_layer == 2  # type: ignore[attr-defined]


def test_the_hub_gets_the_model_as_it_was_written(
    finished: Bench, stand_in: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "push", "r", "me/small", "--private")
    assert code == 0, err
    assert out == f"uploaded: {stand_in.address}/me/small/commit/1\n"
    assert stand_in.created[0]["visibility"] == "private"
    there = {name.removeprefix("me/small/"): content for name, content in stand_in.files.items()}
    here = {path.name: path.read_bytes() for path in MODEL.iterdir() if path.name != "scores.npz"}
    assert there == here
    assert "README.md" in there
    for name, content in there.items():
        (tmp_path / "again").mkdir(exist_ok=True)
        (tmp_path / "again" / name).write_bytes(content)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "again").config.n_layer == 2


def test_a_card_of_ones_own_is_kept(finished: Bench, stand_in: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    (MODEL / "README.md").write_text("mine")
    call(capsys, "push", "r", "me/small")
    assert stand_in.files["me/small/README.md"] == b"mine"


def test_what_cannot_be_uploaded_is_said(
    finished: Bench, stand_in: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(["push", "r", "small"], capsys) == ["NAME: must be owner/name, got 'small'; correct it"]
    assert refused(["push", "nowhere", "me/small"], capsys)[0].startswith("nowhere: no such run")
    stand_in.refuses = 403
    assert refused(["push", "r", "me/small"], capsys)[0].startswith("NAME: the hub refused it (")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    (message,) = refused(["push", "r", "me/small"], capsys)
    assert message.startswith("NAME: the hub cannot be reached (ConnectError); go online, or upload")
    with (MODEL / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert refused(["push", "r", "me/small"], capsys)[0].startswith("r: model.safetensors in")
    assert not stand_in.files
