"""The loss through the vocabulary head, in chunks of positions, with the gradients formed in the forward pass.

Logits `[B*T, V]` are the biggest tensor of a language model's step: for GPT-2 at 16x128 one is 412 MB, and a plain
distillation step holds about eight of that size. But the gradient of every loss used here with respect to the logits is known
in closed form as soon as the logits are (`divergence.py`). So one pass over chunks of positions computes the logits of
both models, the loss, and its gradients with respect to the hidden states `[B*T, D]` and the head weight `[V, D]`;
the chunk's logits are then dropped. No `[B*T, V]` tensor ever exists and nothing is computed twice. This is the idea of fused
linear cross-entropy kernels (Hsu et al. 2024, Liger Kernel, arXiv:2410.10989, section 3.2), in plain torch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightgpt2.functional.divergence import IGNORE, Divergence, cross_entropy, divergence

# Bytes of one chunk of FP32 logits. A chunk should be long, since each one reads the head weight and updates its gradient
# once, and short, since four arrays of its size are alive: measured in benchmarks/training.py.
CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Teacher:
    """What a distillation loss needs of the teacher.

    Attributes:
        hidden: Final hidden states `[N, D_t]`.
        weight: Vocabulary head `[V, D_t]`.
    """

    hidden: Tensor
    weight: Tensor


@dataclass(frozen=True)
class LossWeights:
    """How the terms of the vocabulary loss are weighed.

    Attributes:
        ce: Weight of the cross-entropy with the labels.
        kd: Weight of the divergence from the teacher.
        divergence: Which divergence.
        temperature: Softmax temperature of the divergence.
        beta: Weight of the teacher in the mixture of the Jensen-Shannon divergence.
    """

    ce: float = 1.0
    kd: float = 0.0
    divergence: Divergence = "kl"
    temperature: float = 1.0
    beta: float = 0.5


def chunk_length(vocabulary: int) -> int:
    """Number of positions whose FP32 logits fill one chunk, at least 16."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype the head's matrix product runs in: autocast's where it is on, as nn.Linear would."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, weights: LossWeights, teacher: Teacher | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = _compute_dtype(hidden)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        sums = hidden.new_zeros(2, dtype=torch.promote_types(hidden.dtype, torch.float32))
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        head = weight.to(dtype)
        step = chunk_length(weight.shape[0])
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], step):
                rows = slice(start, start + step)
                inputs = hidden[rows].to(dtype)
                terms, grad_logits = _chunk(inputs, head, labels[rows], weights, teacher, rows, sums.dtype)
                sums += terms
                grad_logits = grad_logits.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = grad_logits @ head
                if grad_weight is not None and dtype == grad_weight.dtype:
                    grad_weight.addmm_(grad_logits.T, inputs)
                elif grad_weight is not None:
                    grad_weight += grad_logits.T @ inputs
        ctx.grads = (grad_hidden, grad_weight)
        loss = weights.ce * sums[0] + weights.kd * sums[1]
        ce, kd = sums[0].clone(), sums[1].clone()
        ctx.mark_non_differentiable(ce, kd)
        return loss, ce, kd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("vocabulary_loss can be differentiated once: its gradients are scaled in place")
        grads, ctx.grads = ctx.grads, None
        return *(g if g is None else g.mul_(grad.to(g.dtype)) for g in grads), None, None, None


def _chunk(
    inputs: Tensor,
    head: Tensor,
    labels: Tensor,
    weights: LossWeights,
    teacher: Teacher | None,
    rows: slice,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Both terms of one chunk, `[2]`, and the gradient of their weighed sum with respect to its logits, `[n, V]`."""
    logits = (inputs @ head.T).to(dtype)
    ce, grad = cross_entropy(logits, labels)
    grad.mul_(weights.ce)
    if teacher is None:
        return torch.stack([ce.sum(), ce.new_zeros(())]), grad
    targets = (teacher.hidden[rows].to(head.dtype) @ teacher.weight.to(head.dtype).T).to(dtype)
    kd, grad_kd = divergence(logits, targets, weights.divergence, weights.temperature, weights.beta)
    supervised = labels != IGNORE
    grad.addcmul_(grad_kd, supervised.unsqueeze(1).to(dtype), value=weights.kd)
    return torch.stack([ce.sum(), (kd * supervised).sum()]), grad


def vocabulary_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, weights: LossWeights, teacher: Teacher | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighed sum of cross-entropy and distillation loss over the supervised positions of a batch.

    A sum and not a mean: the caller divides by the number of supervised tokens of the whole optimizer step, so that the
    result does not change with padding, micro-batching, accumulation or the number of processes.

    Args:
        hidden: Final hidden states of the student `[N, D]`.
        weight: The student's vocabulary head `[V, D]`, without bias.
        labels: The token that each position predicts `[N]`, or `IGNORE` where it is not supervised.
        weights: Weights and kind of the terms.
        teacher: The teacher's final hidden states and head; without it the distillation term is zero.

    Returns:
        The loss (differentiable once, with respect to `hidden` and `weight`), and detached the sums of the two terms,
        cross-entropy and divergence, unweighed, in nats.
    """
    return _VocabularyLoss.apply(hidden, weight, labels, weights, teacher)  # type: ignore[no-untyped-call]


@torch.no_grad()
def token_nll(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Negative log likelihood of each position's label, without ever holding all logits.

    Args:
        hidden: Final hidden states `[N, D]`.
        weight: Vocabulary head `[V, D]`.
        labels: Token indices or `IGNORE`, `[N]`.

    Returns:
        `[N]` in nats, FP32 or wider, zero where the label is `IGNORE`.
    """
    head = weight.to(_compute_dtype(hidden))
    wide = torch.promote_types(hidden.dtype, torch.float32)
    step = chunk_length(weight.shape[0])
    chunks = [
        torch.nn.functional.cross_entropy(
            (rows.to(head.dtype) @ head.T).to(wide), targets, ignore_index=IGNORE, reduction="none"
        )
        for rows, targets in zip(hidden.split(step), labels.split(step), strict=True)
    ]
    return torch.cat(chunks) if chunks else hidden.new_zeros(0, dtype=wide)
