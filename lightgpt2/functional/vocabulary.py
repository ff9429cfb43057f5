"""The loss through the vocabulary head, in chunks of positions, with the gradients formed in the forward pass.

Logits `[B*T, V]` are the biggest tensor of a language model's step: for GPT-2 at 16x128 one is 412 MB, and a plain
distillation step holds about eight of that size. But the gradient of every loss used here with respect to the logits is known
in closed form as soon as the logits are (`divergence.py`). So one pass over chunks of positions computes the logits of
both models, the loss, and its gradients with respect to the hidden states `[B*T, D]` and the head weight `[V, D]`;
the chunk's logits are then dropped. No `[B*T, V]` tensor ever exists and nothing is computed twice. This is the idea of fused
linear cross-entropy kernels (Hsu et al. 2024, Liger Kernel, arXiv:2410.10989, section 3.2), in plain torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightgpt2.functional.divergence import IGNORE, Divergence, cross_entropy, divergence

# Bytes of one chunk of FP32 logits. A chunk should be long, since each one reads the head weight and updates its gradient
# once, and short, since four arrays of its size are alive: measured in benchmarks/training.py.
CHUNK_BYTES = 32 * 2**20

Targets = Callable[[slice, torch.dtype], Tensor]


@dataclass(frozen=True)
class LossWeights:
    """The weights of the terms of the vocabulary loss.

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
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        labels: Tensor,
        weights: LossWeights,
        targets: Targets | None,
        item_weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = _compute_dtype(hidden)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        sums = hidden.new_zeros(2, dtype=torch.promote_types(hidden.dtype, torch.float32))
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        grad_bias = torch.zeros_like(bias) if need_bias and bias is not None else None
        head = weight.to(dtype)
        step = chunk_length(weight.shape[0])
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], step):
                rows = slice(start, start + step)
                inputs = hidden[rows].to(dtype)
                logits = head_logits(inputs, head, bias, scale).to(sums.dtype)
                wanted = None if targets is None else targets(rows, dtype).to(sums.dtype)
                own = None if item_weights is None else item_weights[rows].to(logits.dtype)
                terms, grad_logits = _chunk(logits, labels[rows], weights, wanted, own)
                sums += terms
                if grad_bias is not None:
                    grad_bias += grad_logits.sum(dim=0).to(grad_bias.dtype)
                grad_logits = grad_logits.to(dtype) if scale == 1 else grad_logits.mul_(scale).to(dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = grad_logits @ head
                if grad_weight is not None and dtype == grad_weight.dtype:
                    grad_weight.addmm_(grad_logits.T, inputs)
                elif grad_weight is not None:
                    grad_weight += grad_logits.T @ inputs
        ctx.grads = (grad_hidden, grad_weight, grad_bias)
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
        return *(g if g is None else g.mul_(grad.to(g.dtype)) for g in grads), None, None, None, None, None


def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """The logits `scale * hidden @ weight.T + bias`, `[n, V]`."""
    logits = hidden @ weight.T
    if scale != 1:
        logits = logits * scale
    return logits if bias is None else logits + bias.to(logits.dtype)


def _chunk(
    logits: Tensor, labels: Tensor, weights: LossWeights, targets: Tensor | None, item_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Both terms of one chunk, `[2]`, and the gradient of their weighted sum with respect to its logits, `[n, V]`."""
    ce, grad = cross_entropy(logits, labels)
    grad.mul_(weights.ce)
    supervised = (labels != IGNORE).to(grad.dtype)
    if item_weights is not None:
        ce, supervised = ce * item_weights, supervised * item_weights
        grad.mul_(item_weights.unsqueeze(1))
    if targets is None:
        return torch.stack([ce.sum(), ce.new_zeros(())]), grad
    common = min(logits.shape[1], targets.shape[1])  # rows beyond are padding: no tokenizer has such tokens
    pair = logits[:, :common], targets[:, :common]
    kd, grad_kd = divergence(*pair, weights.divergence, weights.temperature, weights.beta)
    grad[:, :common].addcmul_(grad_kd, supervised.unsqueeze(1), value=weights.kd)
    return torch.stack([ce.sum(), (kd * supervised).sum()]), grad


def vocabulary_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    weights: LossWeights,
    targets: Targets | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
    item_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum of cross-entropy and distillation loss over the supervised items of a batch.

    A sum and not a mean: the caller divides by the number of supervised items of the whole optimizer step, so that the
    result does not change with padding, micro-batching, accumulation or the number of processes.

    Args:
        hidden: What the student's head reads `[N, D]`.
        weight: The student's head `[V, D]`.
        labels: The class of each item `[N]`, or `IGNORE` where it is not supervised.
        weights: Weights and kind of the terms.
        targets: The teacher's logits `[n, V']` of a slice of items, in the given dtype; None: the distillation term is zero.
            Where one vocabulary is padded to more rows than the other, the divergence is over the rows that both have.
        bias: The head's bias `[V]`, if it has one.
        scale: The factor on the products.
        item_weights: The weight of each item in both terms `[N]`; None: 1.

    Returns:
        The loss (differentiable once, with respect to `hidden`, `weight` and `bias`), and detached the sums of the two terms,
        cross-entropy and divergence, unweighted, in nats.
    """
    return _VocabularyLoss.apply(hidden, weight, bias, scale, labels, weights, targets, item_weights)  # type: ignore[no-untyped-call]


@torch.no_grad()
def token_nll(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Negative log likelihood of each item's label, without ever holding all logits.

    Args:
        hidden: What the head reads `[N, D]`.
        weight: The head `[V, D]`.
        labels: Classes or `IGNORE`, `[N]`.
        bias: The head's bias `[V]`, if it has one.
        scale: The factor on the products.

    Returns:
        `[N]` in nats, FP32 or wider, zero where the label is `IGNORE`.
    """
    head = weight.to(_compute_dtype(hidden))
    wide = torch.promote_types(hidden.dtype, torch.float32)
    step = chunk_length(weight.shape[0])
    chunks = [
        torch.nn.functional.cross_entropy(
            head_logits(rows.to(head.dtype), head, bias, scale).to(wide), classes, ignore_index=IGNORE, reduction="none"
        )
        for rows, classes in zip(hidden.split(step), labels.split(step), strict=True)
    ]
    return torch.cat(chunks) if chunks else hidden.new_zeros(0, dtype=wide)
