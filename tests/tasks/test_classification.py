"""Classification: logits and pads, the head that is new or trained, classes in another order, metrics."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lightgpt2.errors import UserError
from lightgpt2.models.families import CLASSIFICATION, FAMILIES, family_of
from lightgpt2.models.loading import load_config, load_model, new_model
from lightgpt2.models.saving import save_model
from lightgpt2.objectives import Distillation, DistillLoss
from lightgpt2.starts import Fresh, Pretrained
from lightgpt2.tasks import Classification
from lightgpt2.teachers import ModelTeacher
from tests.support.models import ENCODERS, SHAPES, make_classifier, make_model, write_tokenizer

CLASSIFIERS = [
    name for name, family in FAMILIES.items() if CLASSIFICATION in family.auto_classes and name in ENCODERS | SHAPES
]
NAMES = ["a", "b", "c"]


def padded(side: str, pad: int) -> dict[str, Any]:
    """Three texts with pads on a side."""
    torch.manual_seed(0)
    texts = [torch.randint(5, 290, (length,)) for length in (9, 4, 7)]
    ids, mask = torch.full((3, 9), pad), torch.zeros(3, 9, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(len(text)) if side == "right" else slice(9 - len(text), 9)
        ids[row, place], mask[row, place] = text, 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 2])}


def logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return Classification().predictions(model, batch).logits(slice(None), torch.float32)


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_logits_are_those_of_transformers_and_do_not_depend_on_pads(family: str) -> None:
    model = make_classifier(family)
    pad = model.config.pad_token_id
    batch = padded("right", pad)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model(**inputs).logits
    found = logits(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):  # each alone
        alone = {name: value[row : row + 1, :length] for name, value in inputs.items()}
        torch.testing.assert_close(
            logits(model, {**alone, "labels": batch["labels"][:1]})[0], found[row], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("family", [family for family in CLASSIFIERS if family not in ENCODERS])
def test_a_decoder_reads_the_last_token_on_whichever_side_the_pads_are(family: str) -> None:
    model = make_classifier(family)
    left, right = (logits(model, padded(side, model.config.pad_token_id)) for side in ("left", "right"))
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ENCODERS)
def test_pads_before_the_texts_of_an_encoder_are_refused(family: str) -> None:
    """It would read one of them in the place of its first token."""
    model = make_classifier(family)
    batch = {**padded("left", model.config.pad_token_id), "example": torch.arange(3)}
    with pytest.raises(UserError, match=rf"^data: pads stand before the texts, where a {family} reads .*; put them"):
        bound().rows(model, batch)


def bound(names: list[str] = NAMES) -> Classification:
    task = Classification()
    task.bind(SimpleNamespace(labels=names, tokenizer=SimpleNamespace(pad_token_id=0)))
    return task


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2", "llama"])
def test_a_base_model_gets_a_new_head_and_a_classifier_keeps_its_own(family: str, tmp_path: Any) -> None:
    tokenizer = write_tokenizer(tmp_path / "t")
    plain = make_classifier(family).base_model if family in ENCODERS else make_model(family)
    plain.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    start = Pretrained(str(tmp_path / "base"))
    start.task = bound()
    model, _ = start.build(None, False)  # type: ignore[arg-type]
    assert list(model.config.id2label.values()) == NAMES
    assert len(family_of(model).head(model).weight) == 3
    body = plain.base_model.state_dict()
    kept = model.base_model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in body.items())

    save_model(model, tokenizer, tmp_path / "trained")
    start = Pretrained(str(tmp_path / "trained"))
    start.task = bound()
    again, _ = start.build(None, False)  # type: ignore[arg-type]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert type(load_model(str(tmp_path / "trained"), "model")) is type(model)  # as its folder says


def test_a_head_of_other_classes_is_refused() -> None:
    model = make_classifier("bert", classes=2)
    with pytest.raises(
        UserError, match=r"model: its head has 2 classes \(LABEL_0, LABEL_1\) and the data 3 \(a, b, c\); give"
    ):
        bound().check(model, "model")


def test_a_new_model_has_the_classes_of_the_data() -> None:
    start = Fresh({"model_type": "bert", **ENCODERS["bert"]})
    start.task = bound()
    config = start._config({**(start.task.head_settings(None) or {})}, False)
    assert list(config.id2label.values()) == NAMES
    bound().check(new_model(config).eval(), "model")


def test_a_teacher_of_the_same_classes_in_another_order_is_put_in_the_students() -> None:
    student, teacher = make_classifier("bert"), make_classifier("distilbert", seed=1)
    student.config.id2label, teacher.config.id2label = dict(enumerate(NAMES)), {0: "c", 1: "a", 2: "b"}
    batch = padded("right", 0)
    before = logits(teacher, batch)
    bound().align(teacher, student.config)
    assert torch.equal(logits(teacher, batch), before[:, [1, 2, 0]])
    bound().align(teacher, student.config)
    assert torch.equal(logits(teacher, batch), before[:, [1, 2, 0]])
    teacher.config.id2label = {0: "x", 1: "y", 2: "z"}
    with pytest.raises(
        UserError, match=r"objective\.teacher: it has the classes x, y, z and the student a, b, c; choose"
    ):
        bound().align(teacher, student.config)


@pytest.mark.parametrize(
    ("teacher", "student", "allowed"),
    [("bert", "distilbert", True), ("bert", "roberta", True), ("gpt2", "llama", True), ("bert", "gpt2", False)],
)
def test_hidden_states_are_compared_between_layers_of_one_kind(teacher: str, student: str, allowed: bool) -> None:
    objective = Distillation(ModelTeacher(make_classifier(teacher), "t"), DistillLoss(hidden=1.0), "even")
    problems = objective.problems(make_classifier(student).config, None, None, False)
    refused = [
        "objective.loss.hidden: layers of one kind are compared, and the teacher has encoder layers and the student "
        "decoder layers; give 0"
    ]
    assert problems == ([] if allowed else refused)
    logits_only = Distillation(objective.teacher, DistillLoss(hidden=0.0))
    assert logits_only.problems(make_classifier(student).config, None, None, False) == []


def test_a_model_without_a_head_is_no_teacher(tmp_path: Any) -> None:
    make_classifier("bert").base_model.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"teacher: .* has no classification head \(its architecture: BertModel\); fine-tune"
    ):
        load_config(str(tmp_path), "teacher", auto_classes=(CLASSIFICATION,))


def test_metrics_are_what_their_definitions_say() -> None:
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.ones(3), 200)
    labels = np.where(generator.random(200) < 0.6, shares.argmax(1), generator.integers(3, size=200))
    rows = [
        {"example": i, "loss": 1.0, "items": 1, "label": int(label), "probabilities": list(share)}
        for i, (label, share) in enumerate(zip(labels, shares, strict=True))
    ]
    found = bound().metrics(reversed(rows))
    guesses = shares.argmax(1)
    assert next(iter(found)) == "accuracy"
    table = np.zeros((3, 3))
    np.add.at(table, (labels, guesses), 1)
    hits, rows_, columns = table.diagonal(), table.sum(1), table.sum(0)
    assert found["accuracy"].value() == pytest.approx(hits.sum() / 200)
    assert found["macro_f1"].value() == pytest.approx((2 * hits / (rows_ + columns)).mean())
    # Gorodkin 2004: the correlation of one-hot labels and guesses
    covariance = hits.sum() * 200 - rows_ @ columns
    norm = np.sqrt((200**2 - rows_ @ rows_) * (200**2 - columns @ columns))
    assert found["mcc"].value() == pytest.approx(covariance / norm)
    assert found["accuracy"].details["confusion"] == {"classes": NAMES, "counts": table.tolist()}
    confidence, right = shares.max(1), (guesses == labels).astype(float)
    bins = np.minimum((confidence * 15).astype(int), 14)
    error = sum(abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in set(bins))
    assert found["ece"].value() == pytest.approx(error, abs=1e-6)
