"""The divergence of a student's predictions from a teacher's: pure torch, in chunks, kept in no copy of the logits.

Shapes: B batch, T tokens of a sequence, N positions of a batch (B * T), V vocabulary, K tokens that are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**24  # logits that are held in float32 at a time
_LEAST = 1e-6  # probability of all tokens that are not compared


def distillation_loss(
    logits: Tensor, teacher: Tensor, ids: Tensor | None, labels: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Mean Kullback-Leibler divergence of the student from the teacher, in nats per predicted token.

    ``T**2 * KL(teacher || student)`` with both softened by ``T`` (Hinton et al., 2015). Over the teacher's K likeliest
    tokens and, as one more outcome, all others together; exact where K is V. For the backward pass it keeps what it was
    given, and computes the probabilities again: beside the gradient, in the type of the logits, no tensor of their
    size exists. It can be differentiated once.

    Args:
        logits: of the student, ``(B, T, V)``.
        teacher: log-probabilities of the teacher at ``temperature``, ``(B, T, K)``.
        ids: their tokens, same shape. ``None``: K is V, and they are in order.
        labels: ``(B, T)``; position i predicts label i + 1, -100 is not counted.
        temperature: ``T``.

    Returns:
        A scalar in float32, in float64 for logits of float64.
    """
    counted = torch.zeros_like(labels, dtype=torch.bool)
    counted[:, :-1] = labels[:, 1:] != -100
    weights = counted.to(_computed(logits)) / counted.sum().clamp(min=1)
    rows = (logits.flatten(0, 1), teacher.flatten(0, 1), None if ids is None else ids.flatten(0, 1))
    return temperature**2 * _Divergence.apply(*rows, weights.flatten(), temperature)


class _Divergence(torch.autograd.Function):
    """Weighted sum of the divergence of each row: logits (N, V), teacher and ids (N, K), weights (N,)."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, teacher: Tensor, ids: Tensor | None, weights: Tensor, temperature: float
    ) -> Tensor:
        normalisers = torch.empty_like(weights)
        total = weights.new_zeros(())
        for rows in _chunks(logits):
            part = _Rows(logits[rows], teacher[rows], None if ids is None else ids[rows], temperature)
            normalisers[rows] = part.normalise()
            total += torch.where(weights[rows] > 0, weights[rows] * part.divergence(), 0).sum()
        ctx.save_for_backward(logits, teacher, ids, weights, normalisers)
        ctx.temperature = temperature
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, teacher, ids, weights, normalisers = ctx.saved_tensors
        scale = grads[0] / ctx.temperature * weights
        grad = torch.empty_like(logits)
        for rows in _chunks(logits):
            part = _Rows(logits[rows], teacher[rows], None if ids is None else ids[rows], ctx.temperature)
            part.normalise(normalisers[rows])
            grad[rows] = part.gradient().mul_(scale[rows].unsqueeze(-1))
        return grad, None, None, None, None


class _Rows:
    """Both models' predictions in C of the N rows."""

    def __init__(self, logits: Tensor, teacher: Tensor, ids: Tensor | None, temperature: float) -> None:
        self.student = logits.to(_computed(logits), copy=True)  # (C, V)
        if temperature != 1:
            self.student /= temperature
        self.teacher, self.ids = teacher.to(self.student.dtype), ids  # (C, K)
        self.partial = teacher.shape[-1] < logits.shape[-1]

    def normalise(self, normaliser: Tensor | None = None) -> Tensor:
        """Subtract the log of the sum of exponentials, ``(C,)``, which is computed unless it is known."""
        if normaliser is None:
            normaliser = self.student.logsumexp(-1)
        self.student -= normaliser.unsqueeze(-1)
        self.compared = self.student if self.ids is None else self.student.gather(-1, self.ids)  # (C, K)
        return normaliser

    def divergence(self) -> Tensor:
        """``(C,)``"""
        divergence = (self.teacher.exp() * (self.teacher - self.compared)).sum(-1)
        if self.partial:
            teacher, student = (_rest(x).clamp(min=_LEAST) for x in (self.teacher, self.compared))
            divergence += teacher * (teacher.log() - student.log())
        return divergence

    def gradient(self) -> Tensor:
        """By the logits divided by the temperature, ``(C, V)``; overwrites the student's predictions."""
        teacher = self.teacher.exp()
        everywhere, compared = teacher.sum(-1, keepdim=True), -teacher
        if self.partial:
            # The others' probability r = 1 - sum(q) has dr/ds_j = q_j * (1 - r - [j is compared]); none where clamped.
            rest = _rest(self.compared).unsqueeze(-1)
            ratio = _rest(self.teacher).clamp(min=_LEAST).unsqueeze(-1) / rest.clamp(min=_LEAST)
            ratio = torch.where(rest < _LEAST, 0, ratio)
            everywhere = everywhere - ratio * (1 - rest)
            compared += ratio * self.compared.exp()
        grad = self.student.exp_().mul_(everywhere)
        return grad.add_(compared) if self.ids is None else grad.scatter_add_(-1, self.ids, compared)


def _chunks(logits: Tensor) -> Iterator[slice]:
    length = max(1, CHUNK // logits.shape[-1])
    return (slice(start, start + length) for start in range(0, len(logits), length))


def _computed(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _rest(log_probabilities: Tensor) -> Tensor:
    """The probability of all tokens but those given, ``(C,)``."""
    return 1 - log_probabilities.exp().sum(-1)
