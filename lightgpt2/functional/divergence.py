"""Losses between rows of logits, each with its gradient in closed form.

Every function takes rows of logits `[n, V]` and returns one value a row, `[n]`, with the gradient of that row's value
with respect to that row's student logits, `[n, V]`. All are softmax cross-entropies of some kind, so the gradient costs
no more than the value, and forming both at once is what lets `vocabulary_loss` never keep a row of logits.

The `[n, V]` arrays are the biggest of a training step: operations work in place wherever the operand is not needed again.
"""

from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["kl", "reverse_kl", "js"]

IGNORE = -100  # label of a position that is not supervised, as in torch.nn.functional.cross_entropy


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log likelihood of the labels; the gradient is `softmax(logits) - onehot(labels)`.

    Args:
        logits: `[n, V]`.
        labels: `[n]`, class indices or `IGNORE`.

    Returns:
        Values `[n]` in nats and gradients `[n, V]`; both are zero where the label is `IGNORE`.
    """
    supervised = labels != IGNORE
    index = labels.clamp(min=0).unsqueeze(1)
    log_probs = torch.log_softmax(logits, dim=-1)
    values = -log_probs.gather(1, index).squeeze(1).where(supervised, 0.0)
    grads = log_probs.exp_()
    grads.scatter_add_(1, index, -torch.ones_like(index, dtype=grads.dtype))
    return values, grads.mul_(supervised.unsqueeze(1))


def divergence(
    student: Tensor, teacher: Tensor, kind: Divergence, temperature: float, beta: float
) -> tuple[Tensor, Tensor]:
    """`T^2 * D(softmax(teacher / T), softmax(student / T))` for one of three divergences D.

    With p the teacher's and q the student's distribution at temperature T:

    - `kl`: KL(p || q) (Hinton et al. 2015, arXiv:1503.02531, eq. 4); gradient in logits `(q - p) / T`.
    - `reverse_kl`: KL(q || p) (Gu et al. 2023, arXiv:2306.08543, eq. 1); gradient `q * (log(q/p) - KL) / T`.
    - `js`: `beta KL(p || m) + (1 - beta) KL(q || m)`, m = beta p + (1 - beta) q (Agarwal et al. 2023,
      arXiv:2306.13649, eq. 2); gradient `(1 - beta) * q * (log(q/m) - KL(q || m)) / T`.

    Args:
        student: Logits `[n, V]`; overwritten.
        teacher: Logits `[n, V]`; overwritten.
        kind: Which divergence.
        temperature: T > 0. The factor T^2 keeps gradients comparable across temperatures.
        beta: Weight of the teacher in the mixture, in (0, 1); used by `js` only.

    Returns:
        Values `[n]` in nats and gradients `[n, V]` with respect to the student's logits.
    """
    log_p = torch.log_softmax(teacher.div_(temperature), dim=-1)
    log_q = torch.log_softmax(student.div_(temperature), dim=-1)
    if kind == "kl":
        p, q = torch.exp(log_p, out=teacher), torch.exp(log_q, out=student)
        values = torch.linalg.vecdot(p, log_p.sub_(log_q))
        grads = q.sub_(p)
    elif kind == "reverse_kl":
        q = torch.exp(log_q, out=student)
        ratio = log_q.sub_(log_p)
        values = torch.linalg.vecdot(q, ratio)
        grads = q.mul_(ratio.sub_(values.unsqueeze(1)))
    else:
        p, q = torch.exp(log_p, out=teacher), torch.exp(log_q, out=student)
        log_m = torch.lerp(q, p, beta).log_()
        # A probability that underflows to zero contributes nothing: x log x -> 0.
        log_m.clamp_(min=torch.finfo(log_m.dtype).min)
        kl_p = torch.linalg.vecdot(p, log_p.sub_(log_m))
        ratio = log_q.sub_(log_m)
        kl_q = torch.linalg.vecdot(q, ratio)
        values = beta * kl_p + (1 - beta) * kl_q
        grads = q.mul_(ratio.sub_(kl_q.unsqueeze(1))).mul_(1 - beta)
    return values * temperature**2, grads.mul_(temperature)


def masked_mse(student: Tensor, teacher: Tensor, supervised: Tensor) -> Tensor:
    """Squared error averaged over the width and summed over the supervised positions.

    Args:
        student: Hidden states `[n, D]`.
        teacher: Hidden states `[n, D]`.
        supervised: Booleans `[n]`.

    Returns:
        Scalar.
    """
    return ((student - teacher).square().mean(dim=-1) * supervised).sum()
