"""Several teachers: the target against a reference in float64, the real command, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightgpt2.tasks.language_modeling import LanguageModeling
from lightgpt2.teachers import Mixture, ModelTeacher
from tests.methods.test_other_tokens import edited, reversed_ids
from tests.support.cli import logged
from tests.support.mistakes import Bench
from tests.support.models import make_model, write_model
from tests.support.stages import stage

LOSS = {"ce": 0.1, "hidden": 0.0, "kd": 0.9}


def test_the_target_is_the_weighted_mean_of_the_distributions() -> None:
    """Of those rows that all vocabularies have; the hidden states are the first teacher's."""
    models = [make_model("gpt2", seed=seed, vocab_size=size) for seed, size in ((1, 300), (2, 304), (3, 300))]
    weights = [1.0, 0.25, 3.0]
    teacher = Mixture([ModelTeacher(model, str(i)) for i, model in enumerate(models)], weights)
    teacher.load(LanguageModeling(), False)
    ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids), "tokens": torch.tensor(16)}
    with torch.no_grad():
        found = teacher.targets(batch, ["decoder.1"])
        single = ModelTeacher(models[0], "")
        single.load(LanguageModeling(), False)
        states = single.targets(batch, ["decoder.1"]).states
        whole = [LanguageModeling().predictions(model, batch).logits(slice(None), torch.float32) for model in models]
    each = [logits[:, :300].double().softmax(-1) for logits in whole]
    expected = torch.stack([w * p for w, p in zip(weights, each, strict=True)]).sum(0) / sum(weights)
    rows = slice(3, 11)
    assert (found.logits(rows, torch.float32).double().exp() - expected[rows]).abs().max() < 1e-6
    assert (expected - each[0]).abs().max() > 1e-2  # the others matter
    assert torch.equal(found.states["decoder.1"], states["decoder.1"])


def kd_of(bench: Bench, run: str, method: str, **settings: Any) -> torch.Tensor:
    """The divergence from the teachers in each step."""
    changes = stage(method, "student", teacher="teacher", loss=LOSS, **settings)
    if method == "Distill":  # whose student is cut out of the teacher
        del changes["model"]["init_args"]["model"]
    bench.configure(changes)
    bench.succeed("fit", "--run", run)
    return torch.tensor([*logged(Path(), run)["train/kd"].values()])


@pytest.mark.slow
def test_more_of_the_same_teacher_changes_nothing(bench: Bench) -> None:
    alone = kd_of(bench, "alone", "Distill", layers=1)
    same = kd_of(bench, "same", "Distill", layers=1, teachers=[{"model": "teacher", "weight": 0.5}])
    assert torch.allclose(same, alone, rtol=1e-4)


@pytest.mark.slow
def test_another_teacher_counts_by_its_weight(bench: Bench) -> None:
    write_model(Path("student"), seed=3)
    write_model(Path("other"), seed=5)
    alone, little, much = (
        kd_of(bench, f"weight-{weight}", "FineTune", teachers=[{"model": "other", "weight": weight}])
        for weight in (1.0e-6, 1.0e-2, 1.0)
    )
    assert (little - alone).abs().max() < (much - alone).abs().max()
    assert not torch.allclose(much, alone, rtol=1e-2)


OTHER = {"model": "other"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "is not there": ({"teachers": [{"model": "nowhere"}]}, "model.teachers.1.model: "),
    "weight": ({"teachers": [{"model": "other", "weight": 0}]}, "model.teachers"),
    "no divergence": (
        {"teachers": [OTHER], "loss": {"ce": 1.0, "kd": 0.0, "hidden": 1.0}},
        "model.teachers: have no effect with loss.kd 0; give loss.kd above 0",
    ),
    "other tokens": ({"teachers": [{"model": "strange"}]}, "model.teachers.1.model: strange reads other tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_further_teacher_is_refused(bench: Bench, case: str) -> None:
    settings, message = REFUSED[case]
    write_model(Path("other"), seed=5)
    if "strange" in message:
        write_model(Path("strange"), seed=5)
        edited("strange", reversed_ids)
    bench.configure({f"model.{key}": value for key, value in settings.items()})
    assert bench.refused("fit").startswith(message)
    assert bench.refused("check").startswith(message)


def test_further_teachers_need_a_first_one(bench: Bench) -> None:
    bench.configure(stage("FineTune", "teacher", teachers=[OTHER]))
    assert bench.refused("check") == "model.teachers: means nothing without model.teacher; give both"
