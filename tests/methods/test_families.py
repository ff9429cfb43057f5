"""Every family through every method: the real command, and what it leaves is what plain transformers computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightgpt2.models.families import DECODERS
from lightgpt2.models.loading import load_model
from tests.support.cli import call
from tests.support.mistakes import Bench
from tests.support.models import logits, write_model
from tests.support.stages import entries, stage

pytestmark = pytest.mark.slow

METHODS: dict[str, dict[str, Any]] = {
    "FineTune": {},
    "LoRA": {},
    "Trim": {"layers": 2, "width": 16, "ffn": 20},
    "MovementPruning": {"pruning": {"attention": 0.5, "ffn": 0.5}},
    "QAT": {},
}
DISTILLED = {"model.teacher": "model", "model.loss": {"ce": 0.5, "kd": 0.5, "hidden": 1.0}}  # to half of the layers


def fitted(bench: Bench, changes: dict[str, Any]) -> torch.Tensor:
    """The logits of a run's artefact, which transformers and this package agree on."""
    bench.configure({**changes, "trainer.max_steps": 2})
    bench.succeed("fit")
    plain = AutoModelForCausalLM.from_pretrained("checkpoints/r/model", trust_remote_code=True).eval()
    found = logits(plain)
    torch.testing.assert_close(found, logits(load_model("checkpoints/r/model", "m").eval()), rtol=0, atol=1e-5)
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", DECODERS)
def test_each_method_trains_it(bench: Bench, family: str, method: str) -> None:
    write_model(Path("model"), family)
    fitted(bench, stage(method, "model", **METHODS[method]))
    assert entries()[-1]["operations"] or method == "FineTune"


@pytest.mark.parametrize("family", DECODERS)
def test_half_of_its_layers_learn_from_it_and_are_exported(
    bench: Bench, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(Path("model"), family)
    fitted(bench, DISTILLED)
    assert load_model("checkpoints/r/model", "m").config.num_hidden_layers == 2
    code, out, err = call(capsys, "export", "checkpoints/r/model", "--format", "onnx", "--output", "out")
    assert code == 0, err
    assert "out: " in out


@pytest.mark.parametrize("family", DECODERS)
def test_a_run_that_is_stopped_and_resumed_is_the_run_that_was_not(bench: Bench, family: str) -> None:
    write_model(Path("model"), family)
    bench.configure({**stage("FineTune", "model"), "trainer.max_steps": 3})
    bench.succeed("fit")
    bench.succeed("fit", "--run", "s", "--trainer.max_steps", "1")
    bench.succeed("fit", "--run", "s", "--ckpt_path", "last")
    whole, resumed = (Path(f"checkpoints/{run}/model/model.safetensors").read_bytes() for run in "rs")
    assert whole == resumed
