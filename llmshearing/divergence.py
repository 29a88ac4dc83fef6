"""How far a student's predictions are from a teacher's, without a copy of the logits: pure torch.

Letters: W entries of the student's logits, V tokens that both vocabularies have, K tokens that are compared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK = 2**24  # float32 logits that exist at a time: 64 MB
_LEAST = 1e-6  # probability of the tokens that are not compared


def distillation_loss(
    logits: Tensor,
    teacher: Tensor,
    ids: Tensor | None,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
) -> Tensor:
    """Mean Kullback-Leibler divergence of the student from the teacher, in nats per predicted token.

    ``T**2 * KL(teacher || student)`` with both softened by ``T`` (Hinton et al., 2015). Over the teacher's K likeliest
    tokens and, as one more outcome, all others together; exact where K is the whole vocabulary.

    Beside the logits and their gradient, which are there anyway, memory holds 64 MB of float32 values at a time.

    Args:
        logits: of the student, ``(batch, length, W)``.
        teacher: log-probabilities of the teacher at ``temperature``, ``(batch, length, K)``.
        ids: their tokens, same shape; ``None``: all V in order.
        labels: ``(batch, length)``; position i predicts label i + 1, -100 is not counted.
        temperature: ``T``.
        vocab_size: V; all W if ``None``.
    """
    counted = torch.zeros_like(labels, dtype=torch.bool)
    counted[:, :-1] = labels[:, 1:] != -100
    divergence = _Divergence.apply(
        logits.flatten(0, 1),
        teacher.flatten(0, 1),
        None if ids is None else ids.flatten(0, 1),
        counted.flatten(),
        temperature,
        vocab_size or logits.shape[-1],
    )
    return temperature**2 * divergence / counted.sum().clamp(min=1)


class _Divergence(torch.autograd.Function):
    """Sum of the divergences of the counted rows, in chunks; the backward pass takes them up again."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, teacher: Tensor, ids: Tensor | None, counted: Tensor, temperature: float, size: int
    ) -> Tensor:
        ctx.save_for_backward(logits, teacher, ids, counted)
        ctx.temperature, ctx.size = temperature, size
        total = logits.new_zeros((), dtype=teacher.dtype)
        for rows in _chunks(len(logits), size):
            softened = _softened(logits[rows, :size], temperature)
            divergence, _ = _divergence(softened, teacher[rows], None if ids is None else ids[rows])
            total = total + torch.where(counted[rows], divergence, 0).sum()  # NaN where nothing counts is no matter
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, teacher, ids, counted = ctx.saved_tensors
        grad = torch.zeros_like(logits)
        for rows in _chunks(len(logits), ctx.size):
            softened = _softened(logits[rows, : ctx.size], ctx.temperature)
            taken = None if ids is None else ids[rows]
            of_taken = _divergence(softened, teacher[rows], taken)[1]
            # Through log_softmax: what comes to each token, less its probability times what comes to all.
            whole = softened.softmax(-1).mul_(-of_taken.sum(-1, keepdim=True))
            whole = whole.add_(of_taken) if taken is None else whole.scatter_add_(-1, taken, of_taken)
            whole = torch.where(counted[rows].unsqueeze(-1), whole.mul_(grads[0] / ctx.temperature), 0)
            grad[rows, : ctx.size] = whole.to(grad.dtype)
        return grad, None, None, None, None, None


def _chunks(rows: int, size: int) -> list[slice]:
    step = max(1, _CHUNK // size)
    return [slice(start, start + step) for start in range(0, rows, step)]


def _softened(logits: Tensor, temperature: float) -> Tensor:
    """Logits over the temperature, (rows, V), in float32 or wider."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide if temperature == 1 else wide / temperature


def _divergence(softened: Tensor, teacher: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Divergences (rows,), and their gradients by the student's log-probabilities of the compared tokens, (rows, K)."""
    student = softened if ids is None else softened.gather(-1, ids)
    student = student - softened.logsumexp(-1, keepdim=True)
    taught = teacher.exp()
    divergence, grad = (taught * (teacher - student)).sum(-1), -taught
    if ids is not None and ids.shape[-1] < softened.shape[-1]:
        probabilities = student.exp()
        rest_teacher, rest_student = _rest(taught), 1 - probabilities.sum(-1)
        held = rest_student.clamp(min=_LEAST)
        divergence = divergence + rest_teacher * (rest_teacher.log() - held.log())
        moves = torch.where(rest_student > _LEAST, rest_teacher / held, 0)
        grad = grad + moves.unsqueeze(-1) * probabilities
    return divergence, grad


def _rest(probabilities: Tensor) -> Tensor:
    """The probability of all tokens but those given."""
    return (1 - probabilities.sum(-1)).clamp(min=_LEAST)
