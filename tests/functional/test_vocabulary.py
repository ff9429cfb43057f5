"""The chunked loss against a naive float64 reference."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lightgpt2.functional import vocabulary
from lightgpt2.functional.divergence import IGNORE, Divergence, cross_entropy, divergence
from lightgpt2.functional.vocabulary import LossWeights, Targets, token_nll, vocabulary_loss

KINDS: list[Divergence] = ["kl", "reverse_kl", "js"]


def targets_of(hidden: Tensor, weight: Tensor) -> Targets:
    """A teacher's logits of a slice of positions."""
    return lambda rows, dtype: hidden[rows].to(dtype) @ weight.to(dtype).T


def naive_divergence(student: Tensor, teacher: Tensor, kind: Divergence, t: float, beta: float) -> Tensor:
    """Each divergence from its definition, differentiable, `[n]`."""
    p, q = F.softmax(teacher / t, -1), F.softmax(student / t, -1)
    m = beta * p + (1 - beta) * q

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a.log() - b.log())).sum(-1)

    value = {"kl": kl(p, q), "reverse_kl": kl(q, p), "js": beta * kl(p, m) + (1 - beta) * kl(q, m)}[kind]
    return t * t * value


@pytest.fixture
def case() -> dict[str, Tensor]:
    torch.manual_seed(0)
    n, d, dt, v = 37, 12, 20, 101
    labels = torch.randint(v, (n,))
    labels[::5] = IGNORE
    return {
        "hidden": torch.randn(n, d, dtype=torch.float64) * 2,
        "weight": torch.randn(v, d, dtype=torch.float64),
        "labels": labels,
        "teacher_hidden": torch.randn(n, dt, dtype=torch.float64),
        "teacher_weight": torch.randn(v, dt, dtype=torch.float64),
    }


@pytest.fixture(params=[16, 1000], ids=["many chunks", "one chunk"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(vocabulary, "chunk_length", lambda _: request.param)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize(("biased", "scale"), [(False, 1.0), (True, 0.25)])
@pytest.mark.parametrize("padding", [0, 7, -7], ids=["one vocabulary", "padded teacher", "padded student"])
@pytest.mark.usefixtures("chunk")
def test_equals_naive_loss_and_gradients(
    case: dict[str, Tensor], kind: Divergence, temperature: float, biased: bool, scale: float, padding: int
) -> None:
    rows = torch.randn(len(case["weight"]) + padding, 20, dtype=torch.float64)
    common = min(len(rows), len(case["weight"]))
    case["teacher_weight"] = torch.cat([case["teacher_weight"][:common], rows[common:]])
    weights = LossWeights(ce=0.3, kd=0.7, divergence=kind, temperature=temperature, beta=0.3)
    offsets = torch.linspace(-1, 1, len(case["weight"]), dtype=torch.float64)

    def leaves() -> list[Tensor]:
        return [t.clone().requires_grad_() for t in (case["hidden"], case["weight"], offsets)]

    hidden, weight, bias = leaves()
    supervised = case["labels"] != IGNORE
    targets = case["teacher_hidden"] @ case["teacher_weight"].T
    logits = scale * hidden @ weight.T + (bias if biased else 0 * bias)
    ce = F.cross_entropy(logits, case["labels"], reduction="sum", ignore_index=IGNORE)
    kd = naive_divergence(logits[:, :common], targets[:, :common], kind, temperature, 0.3)[supervised].sum()
    expected = 0.3 * ce + 0.7 * kd
    (expected * 0.01).backward()

    ours = leaves()
    teacher = targets_of(case["teacher_hidden"], case["teacher_weight"])
    head = {"bias": ours[2] if biased else None, "scale": scale}
    loss, ours_ce, ours_kd = vocabulary_loss(ours[0], ours[1], case["labels"], weights, teacher, **head)
    (loss * 0.01).backward()

    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.stack([ours_ce, ours_kd]), torch.stack([ce, kd]), rtol=1e-10, atol=1e-10)
    for mine, plain in zip(ours, (hidden, weight, bias) if biased else (hidden, weight), strict=False):
        torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-8, atol=1e-12)


def test_gpt2_vocabulary_in_fp32() -> None:
    torch.manual_seed(0)
    v, n, d = 50257, 96, 64
    hidden, weight = torch.randn(n, d), torch.randn(v, d) * 0.2
    teacher_logits = torch.randn(n, 2 * d) @ (torch.randn(v, 2 * d) * 0.2).T
    labels = torch.randint(v, (n,))
    grads = []
    for plain in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if plain:
            logits = h @ w.T
            kd = naive_divergence(logits, teacher_logits, "kl", 2.0, 0.5).sum()
            loss = 0.3 * F.cross_entropy(logits, labels, reduction="sum") + 0.7 * kd
        else:
            weights = LossWeights(ce=0.3, kd=0.7, divergence="kl", temperature=2.0)
            loss = vocabulary_loss(h, w, labels, weights, lambda rows, dtype: teacher_logits[rows].clone())[0]
        (loss / n).backward()
        grads.append((loss.detach(), h.grad, w.grad))
    for ours, plain_value in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(ours, plain_value, rtol=1e-5, atol=1e-5 * float(plain_value.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_divergence_is_zero_at_equality_and_finite_at_extremes(kind: Divergence) -> None:
    teacher = torch.randn(5, 9, dtype=torch.float64)
    values, grads = divergence(teacher.clone(), teacher.clone(), kind, 1.7, 0.4)
    assert max(values.abs().max(), grads.abs().max()) < 1e-14
    student = torch.tensor([[200.0, -200.0, 0.0]])
    values, grads = divergence(student.clone(), -student, kind, 1.0, 0.5)
    assert torch.isfinite(values).all()
    assert torch.isfinite(grads).all()


def test_ignored_positions_have_no_loss_and_no_gradient() -> None:
    values, grads = cross_entropy(torch.randn(4, 7), torch.tensor([1, IGNORE, 2, IGNORE]))
    assert values[1] == values[3] == 0
    assert grads[1].abs().sum() == grads[3].abs().sum() == 0


def test_frozen_head_gets_no_gradient(case: dict[str, Tensor]) -> None:
    hidden = case["hidden"].requires_grad_()
    vocabulary_loss(hidden, case["weight"], case["labels"], LossWeights())[0].backward()
    assert hidden.grad is not None
    assert case["weight"].grad is None


def test_second_backward_is_refused(case: dict[str, Tensor]) -> None:
    loss = vocabulary_loss(case["hidden"].requires_grad_(), case["weight"], case["labels"], LossWeights())[0]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_autocast_computes_in_half_precision_and_returns_full(case: dict[str, Tensor]) -> None:
    hidden, weight = case["hidden"].float().requires_grad_(), case["weight"].float().requires_grad_()
    teacher = targets_of(case["teacher_hidden"].float(), case["teacher_weight"].float())
    weights = LossWeights(ce=0.5, kd=0.5, temperature=2.0)
    exact = vocabulary_loss(hidden, weight, case["labels"], weights, teacher)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = vocabulary_loss(hidden, weight, case["labels"], weights, teacher)[0]
    rough.backward()
    assert rough.dtype == weight.grad.dtype == torch.float32
    assert rough.item() != exact.item()
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.usefixtures("chunk")
def test_token_nll_equals_cross_entropy(case: dict[str, Tensor]) -> None:
    expected = F.cross_entropy(case["hidden"] @ case["weight"].T, case["labels"], reduction="none")
    torch.testing.assert_close(token_nll(case["hidden"], case["weight"], case["labels"]), expected)
