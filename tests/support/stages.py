"""Stages on the bench: changes of its configuration, and what a run has left."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lightgpt2.models.surgery import replay
from tests.support.mistakes import Bench

RATE = {"lr": 1.0e-3, "warmup_steps": 0, "decay": "constant"}
_TASK = {"class_path": "lightgpt2.tasks.language_modeling.LanguageModeling", "init_args": {"samples": 0}}


def stage(method: str, model: str = "teacher", callbacks: tuple[Any, ...] = (), **init: Any) -> dict[str, Any]:
    """A method that trains `model`, without samples, and callbacks."""
    arguments = {"model": model, "optimizer": RATE, "task": _TASK, **init}
    chosen = {"class_path": f"lightgpt2.methods.{method}", "init_args": arguments}
    return {"model": chosen, "trainer.callbacks": [*callbacks]}


def callback(name: str, **init: Any) -> dict[str, Any]:
    return {"class_path": f"lightgpt2.callbacks.{name}", "init_args": init}


def entries(folder: str = "r/model") -> list[dict[str, Any]]:
    """The ledger of a folder of a run."""
    found: list[dict[str, Any]] = json.loads(Path("checkpoints", folder, "ledger.json").read_text())
    return found


def validated(bench: Bench, *options: str) -> float:
    """The perplexity that `validate` prints."""
    return float(bench.succeed("validate", *options).split("perplexity ")[1].split()[0])


def assert_replayed(source: PreTrainedModel, entry: dict[str, Any], model: PreTrainedModel) -> None:
    """The operations of a ledger's entry make the shapes of the model from its source."""
    replayed = replay(source.config, entry["operations"]).state_dict()
    assert {n: v.shape for n, v in replayed.items()} == {n: v.shape for n, v in model.state_dict().items()}
